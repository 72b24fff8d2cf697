"""Errors name the argument, the value, and what to do."""

import dataclasses
import inspect
import re

import numpy as np
import pytest
import torch

from lightning_lcs import (
    BatchNormRecalibration,
    CompressibleSubspaceWrapper,
    Distillation,
    LCSCallback,
    Line,
    Loss,
    Quantized,
    Recalibration,
    Sampling,
    Structured,
    SubspaceModel,
    TradeoffMonitor,
    Unstructured,
)
from lightning_lcs.control.policies import BatterySaver
from tests.integration.support import Data, Module, Net, lcs, trainer


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: LCSCallback("pruned"), r"mode='pruned' is not known; choose one of 'quantized'"),
        (lambda: LCSCallback({"name": "pruned"}), r"mode='pruned' is not known"),
        (lambda: LCSCallback(subspace="curve"), r"subspace='curve' is not known; choose one of 'line', 'point'"),
        (
            lambda: LCSCallback(sampling=Sampling(sampler="grid")),
            r"Sampling\(sampler='grid'\) is not known; choose one of 'sandwich', 'uniform'",
        ),
        (
            lambda: LCSCallback(sampling={"alphas_per_step": 1}),
            r"alphas_per_step=1 is below 2: the sandwich rule visits both ends",
        ),
        (lambda: Sampling(alphas_per_step=0, sampler="uniform"), r"alphas_per_step=0\) is below 1: a step needs"),
        (lambda: Line(diversity_weight=-1.0), r"Line\(diversity_weight=-1.0\) is negative; 0 turns the term off"),
        (lambda: LCSCallback(every_n_epochs=0), r"every_n_epochs=0 is below 1; leave it out to measure once"),
        (lambda: LCSCallback(alphas=1), r"alphas=1 is below 2: a grid holds both ends"),
        (lambda: LCSCallback(alphas=[]), r"alphas is empty: give at least one level"),
        (lambda: LCSCallback(alphas=[0.0, 1.5]), r"alpha=1.5 is not in \[0, 1\]: 1 is the full model"),
        (lambda: LCSCallback(alphas=[float("nan")]), r"alpha=nan is not in \[0, 1\]"),
        (lambda: Recalibration(images=-1), r"Recalibration\(images=-1\) is negative"),
        (
            lambda: LCSCallback(recalibration={"images": 0}, sampling={"sampler": [0.5]}),
            r"Recalibration\(images=0\) needs a sampler that visits alpha = 1 at every step",
        ),
        (lambda: Sampling(sampler=[]), r"Sampling\(sampler=\[\]\) visits no level"),
        (lambda: Sampling(sampler=[0.5, 2.0]), r"alpha=2.0 is not in \[0, 1\]"),
        (
            lambda: Sampling(sampler=[0.5], alphas_per_step=3),
            r"Sampling\(alphas_per_step=3\) does not fit its sampler, which gives 1 levels",
        ),
        (
            lambda: Sampling(split=True, alphas_per_step=1, sampler="uniform"),
            r"Sampling\(split=True\) divides a batch over the levels of a step, and the sampler visits one",
        ),
        (
            lambda: Sampling(split=[0.5, 0.5], alphas_per_step=3),
            r"Sampling\(split=\[0.5, 0.5\]\) is not a share above 0 for each of the 3 levels .* \(0.2, 0.2, 0.6\)",
        ),
        (
            lambda: LCSCallback("quantized", sampling={"sampler": [0.0, 1.0]}, recalibration={"images": 0}),
            r"Recalibration\(images=0\) does not go with quantized mode, which compresses alpha = 1",
        ),
        (
            lambda: Distillation(loss=3),
            r"Distillation\(loss=3\) is not known; give 'logits', 'features', or",
        ),
        (lambda: Distillation(loss="features", modules=[1]), r"modules=\[1\]\) is not a list of paths"),
        (lambda: Sampling(split=0.5), r"Sampling\(split=0.5\) is neither true nor false nor a list of the shares"),
        (lambda: Sampling(split=["a"]), r"Sampling\(split=\['a'\]\) is neither true nor false nor a list"),
        (lambda: Sampling(split=[1.0]), r"Sampling\(split=\[1.0\]\) divides a batch over .* the sampler visits one"),
        (lambda: Sampling(split=[0.5, 0.5, 0.5]), r"with a sum of 1"),
        (lambda: Sampling(split=[0.5, 0.5, 0.0]), r"a share above 0"),
        (lambda: Sampling(warmup=1.5), r"Sampling\(warmup=1.5\) is not in \[0, 1\]"),
        (
            lambda: Loss(reduction="max"),
            r"Loss\(reduction='max'\) is not known; choose one of 'full_half', 'mean', 'sum'",
        ),
        (lambda: LCSCallback(sampling={"warm": 1}), r"sampling has no option 'warm' \(did you mean 'warmup'\?\)"),
        (lambda: SubspaceModel(Net(), line={"ends": 2}), r"line has no option 'ends'; its options are 'parameters'"),
        (lambda: Loss(scale_penalty=-1.0), r"Loss\(scale_penalty=-1.0\) is not 0 or above; 0 turns the term off"),
        (lambda: LCSCallback.method("vs"), r"method 'vs' is not known; choose from"),
        (lambda: LCSCallback.method("bits-9"), r"method 'bits-9' is not known"),
        (lambda: LCSCallback.method("sparsity-1"), r"method 'sparsity-1' is not known"),
        (lambda: LCSCallback(recalibration={"levels": [2.0]}), r"alpha=2.0 is not in \[0, 1\]"),
        (lambda: Structured(min_width=0.0), r"min_width=0.0 is not in \(0, 1\]: it is the share of channels kept"),
        (lambda: Structured(min_width=1.5), r"min_width=1.5 is not in \(0, 1\]"),
        (lambda: TradeoffMonitor(every_n_epochs=-1), r"every_n_epochs=-1 is below 1"),
        (lambda: TradeoffMonitor([1.1]), r"alpha=1.1 is not in \[0, 1\]"),
        (lambda: BatchNormRecalibration(images=-5), r"images=-5 is negative"),
    ],
)
def test_arguments(make, match):
    with pytest.raises(ValueError, match=match):
        make()


@pytest.mark.parametrize(
    "kind", [Sampling, Loss, Distillation, Recalibration, Line, Structured, Unstructured, Quantized, BatterySaver]
)
def test_options_of_another_type(kind):
    checked = []
    for field in dataclasses.fields(kind):
        if set(field.type.split(" | ")) <= {"bool", "int", "float", "str", "None"}:
            checked.append(field.name)
            with pytest.raises(TypeError, match=rf"{kind.__name__}\({field.name}=\[1\]\) is not (a|true)"):
                kind(**{field.name: [1]})
    assert checked


def test_numbers_as_text_and_as_numpy_has_them():
    with pytest.raises(TypeError, match=r"Quantized\(per_channel='yes'\) is not true or false"):
        Quantized(per_channel="yes")
    with pytest.raises(TypeError, match=r"Sampling\(warmup=True\) is not a number"):
        Sampling(warmup=True)
    for options in ({"ema_decay": "0.9"}, {"every_n_epochs": "1"}, {"seed": None}):
        ((name, value),) = options.items()
        with pytest.raises(TypeError, match=rf"LCSCallback\({name}={value!r}\) is not a (whole )?number"):
            LCSCallback(**options)
    assert Quantized(min_bits=np.int64(4)).bit_width(0.0) == 4


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("parameters", "some"),
        ("start", "zero"),
        ("diversity_weight", float("nan")),
    ],
)
def test_options_are_checked_when_the_callback_is_made(argument, value):
    with pytest.raises(ValueError, match=f"{argument}="):
        LCSCallback(line={argument: value})


@pytest.mark.parametrize(
    "make", [LCSCallback, SubspaceModel, CompressibleSubspaceWrapper], ids=lambda kind: kind.__name__
)
@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("line_parameters", r"line_parameters is now line=Line\(parameters=...\)"),
        ("endpoint_start", r"endpoint_start is now line=Line\(start=...\)"),
        ("min_width", r"min_width is an option of a mode: give mode=Structured\(min_width=...\)"),
        ("max_bits", r"max_bits is an option of a mode: give mode=Quantized\(max_bits=...\)"),
        ("subspaces", r"has no option 'subspaces' \(did you mean 'subspace'\?\); its options are .*norm"),
        ("min_widht", r"did you mean 'min_width'.*give mode=Structured\(min_width=...\)"),
    ],
)
def test_a_keyword_that_is_an_option_elsewhere(make, name, match):
    with pytest.raises(TypeError, match=f"^{make.__name__}.*{match}"):
        make(**{name: 0})


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("sampler", "sampling=Sampling(sampler=...)"),
        ("alphas_per_step", "sampling=Sampling(alphas_per_step=...)"),
        ("training_levels", "sampling=Sampling(levels=...)"),
        ("warmup", "sampling=Sampling(warmup=...)"),
        ("warmup_schedule", "sampling=Sampling(warmup_schedule=...)"),
        ("loss_reduction", "loss=Loss(reduction=...)"),
        ("scale_penalty", "loss=Loss(scale_penalty=...)"),
        ("diversity_weight", "line=Line(diversity_weight=...)"),
        ("recalibration_images", "recalibration=Recalibration(images=...)"),
        ("recalibration_levels", "recalibration=Recalibration(levels=...)"),
    ],
)
def test_an_old_name_says_where_the_option_is_now(name, place):
    with pytest.raises(TypeError, match=f"^{re.escape(f'LCSCallback: {name} is now {place}')}$"):
        LCSCallback(**{name: 0})


def test_the_signature_is_the_one_that_is_written():
    options = inspect.signature(LCSCallback).parameters
    assert list(options)[:4] == ["mode", "subspace", "target", "alphas"]
    assert options["sampling"].default == Sampling()
    assert not any(option.kind is option.VAR_KEYWORD for option in options.values())


def test_groups_as_objects_and_as_mappings():
    sampling, loss = {"alphas_per_step": 3, "levels": 0}, {"reduction": "sum"}
    given = LCSCallback(sampling=sampling, loss=loss, line={"start": "independent"}, recalibration={"images": 5})
    same = LCSCallback(
        sampling=Sampling(alphas_per_step=3, levels=0),
        loss=Loss(reduction="sum"),
        line=Line(start="independent"),
        recalibration=Recalibration(images=5),
    )
    for name in ("sampling", "loss", "line", "recalibration", "options"):
        assert getattr(given, name) == getattr(same, name)


@pytest.mark.parametrize("value", [3, "sandwich", [1.0]])
def test_a_group_that_is_neither_an_object_nor_a_mapping(value):
    with pytest.raises(TypeError, match=r"sampling=.* is not a Sampling; give Sampling\(...\) or a mapping"):
        LCSCallback(sampling=value)


def test_several_modes():
    with pytest.raises(ValueError, match=r"mode=\['structured', 'quantized'\] names several modes"):
        LCSCallback(mode=["structured", "quantized"])


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"parameters": "some"}, r"Line\(parameters='some'\) is not known; choose one of 'norm', 'backbone', 'all'"),
        ({"start": "zero"}, r"Line\(start='zero'\) is not known; choose one of 'copy', 'independent'"),
    ],
)
def test_options_of_the_line(options, match):
    for make in (lambda: SubspaceModel(Net(), line=options), lambda: lcs(line=options)):
        with pytest.raises(ValueError, match=match):
            make()


def test_a_line_without_norm_layers(tmp_path):
    with pytest.raises(ValueError, match=r"Line\(parameters='norm'\) finds no normalisation layer.*parameters='all'"):
        trainer(tmp_path, lcs()).fit(Module(Net(lambda channels: torch.nn.Identity())), datamodule=Data())


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_levels_of_a_model(alpha):
    model = SubspaceModel(Net())
    model.set_alpha(0.5)
    for use in (model.set_alpha, model.efficiency, model.materialize, lambda a: model.at_alpha(a).__enter__()):
        with pytest.raises(ValueError, match=r"alpha=.* is not in \[0, 1\]"):
            use(alpha)
    assert model.alpha == 0.5


def test_two_callbacks(tmp_path):
    with pytest.raises(ValueError, match="the trainer has two LCSCallbacks: give it one"):
        trainer(tmp_path, lcs(), lcs()).fit(Module(), datamodule=Data())
    with pytest.raises(ValueError, match="the trainer has 2 callbacks of kind TradeoffMonitor: give it one"):
        trainer(tmp_path, lcs(), TradeoffMonitor(), TradeoffMonitor()).fit(Module(), datamodule=Data())


@pytest.mark.parametrize(
    ("options", "helper"),
    [
        ({"alphas": 5}, TradeoffMonitor(3)),
        ({"every_n_epochs": 2}, TradeoffMonitor(7)),
        ({"recalibration": {"images": 16}}, BatchNormRecalibration(images=32)),
    ],
)
def test_settings_in_two_places_that_disagree(tmp_path, options, helper):
    with pytest.raises(ValueError, match=next(iter(options))):
        trainer(tmp_path, LCSCallback(**options), helper).fit(Module(), datamodule=Data())


def test_two_optimizers(tmp_path):
    class Two(Module):
        def configure_optimizers(self):
            return [torch.optim.SGD(self.net.parameters(), 0.1), torch.optim.SGD(self.net.head.parameters(), 0.1)]

    with pytest.raises(RuntimeError, match="multiple optimizers is only supported with manual optimization"):
        trainer(tmp_path, lcs()).fit(Two(), datamodule=Data())


@pytest.mark.filterwarnings("ignore:`LightningModule.configure_optimizers` returned `None`:UserWarning")
def test_no_optimizer_trains_nothing(tmp_path):
    class Without(Module):
        def configure_optimizers(self):
            return None

    module, callback = Without(), lcs()
    before = {name: p.detach().clone() for name, p in module.net.named_parameters()}
    trainer(tmp_path, callback).fit(module, datamodule=Data())
    assert all(torch.equal(module.net.get_parameter(name), value) for name, value in before.items())
    assert len(callback.curve) == 3


class Early(Module):
    """An optimizer over parameters that were collected before the second endpoints existed."""

    def __init__(self):
        super().__init__()
        self.collected = list(self.net.parameters())

    def configure_optimizers(self):
        return torch.optim.SGD(self.collected, 0.1)


@pytest.mark.parametrize("count", [1, 2])
def test_an_error_at_the_start_leaves_the_module_clean(tmp_path, count):
    module = Early()
    attributes = set(module.__dict__)
    with pytest.raises(RuntimeError if count == 1 else ValueError):
        trainer(tmp_path, *[lcs() for _ in range(count)]).fit(module, datamodule=Data())
    assert set(module.__dict__) - {"_hparams"} == attributes - {"_hparams"}
    assert "forward" not in module.net.__dict__


def test_a_network_that_cannot_be_traced(tmp_path):
    class Branching(Net):
        def forward(self, x):
            return super().forward(x) * (2.0 if x.mean().item() > 0 else 1.0)

    with pytest.raises(RuntimeError, match=r"Branching can't be traced.*test_bad_input.py.*target="):
        trainer(tmp_path, lcs()).fit(Module(Branching()), datamodule=Data())
