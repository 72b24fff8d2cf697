"""Statistics and curves know the weights that they belong to."""

import copy
import dataclasses
import pickle
import warnings

import pytest
import torch
from torch import nn

from lightning_lcs.export.level_file import save_level
from lightning_lcs.model import SubspaceModel
from lightning_lcs.subspace.curves.curve import CurvePoint
from lightning_lcs.subspace.fingerprint import differ, fingerprint
from lightning_lcs.subspace.running import level_runner
from tests.helpers import Chain, scramble

IMAGES = torch.randn(3, 3, 8, 8)
OTHERS = "statistics of other weights"


def chain(subspace="point", statistics=True):
    model = SubspaceModel(scramble(Chain()), IMAGES, subspace=subspace).eval()
    if statistics:
        model.recalibrate([IMAGES], alphas=[0.0, 0.5])
    return model


@torch.no_grad()
def change(model):
    next(model.module.parameters()).flatten()[0] += 1e-6


@torch.no_grad()
def run(model, alpha=0.5):
    with model.at_alpha(alpha):
        return model(IMAGES)


def write_data(model):
    model.module.get_parameter("conv1.weight").data.mul_(2.0)  # which changes no version


def move_endpoint(model):
    with torch.no_grad():
        model.endpoint_pairs()[0][0].add_(1.0)


@pytest.mark.parametrize("changed", [change, write_data, move_endpoint])
def test_any_change_of_weights_is_seen_and_can_be_undone(changed):
    model = chain("line")
    before, state = model.runner.fingerprint(), copy.deepcopy(list(model.parameters()))
    changed(model)
    assert differ(model.runner.fingerprint(), before)
    assert not model.runner.statistics_fit()
    with torch.no_grad():
        for value, old in zip(model.parameters(), state, strict=True):
            value.copy_(old)
    assert model.runner.fingerprint() == before
    assert model.runner.statistics_fit()


def test_what_leaves_the_weights_as_they_are_is_not_seen():
    model = chain("line")
    before = model.runner.fingerprint()
    model.train()(IMAGES)  # running statistics move
    model.requires_grad_(False).eval().to(memory_format=torch.channels_last)
    copies = (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model)))
    assert {copied.runner.fingerprint() for copied in copies} == {before}
    assert all(copied.runner.evaluation.fits.__self__ is copied.runner for copied in copies)


def test_a_copy_has_weights_of_its_own():
    model = chain()
    twin = copy.deepcopy(model)
    change(twin)
    assert model.runner.statistics_fit()
    assert not twin.runner.statistics_fit()


def test_a_cast_rounds_weights_and_is_not_another_training():
    model = chain()
    of_type = {torch.float32: model.runner.fingerprint()}
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        of_type[dtype] = model.to(dtype).runner.fingerprint()
        assert model.runner.statistics_fit()
    assert len(set(of_type.values())) == len({value[:2] for value in of_type.values()}) == 4
    assert not any(differ(one, other) for one in of_type.values() for other in of_type.values())


def test_tied_parameters_count_once_and_parameters_without_data_not_at_all():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.b, self.a, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.head(self.a(self.b(x)))

    model = SubspaceModel(Tied(), mode="unstructured", subspace="point")
    model.module.a.weight = model.module.b.weight
    tied = model.runner.fingerprint()
    model.module.a.weight = nn.Parameter(model.module.b.weight.detach().clone())
    assert differ(model.runner.fingerprint(), tied)
    assert fingerprint(model.to("meta").parts) == ""


def test_statistics_bring_the_weights_that_they_were_collected_at():
    model = chain(statistics=False)
    assert model.runner.statistics_fit()
    change(model)
    assert model.runner.statistics_fit()  # there are none
    model.recalibrate([IMAGES], alphas=[0.5])
    assert model.runner.statistics_weights == model.runner.fingerprint()
    change(model)
    assert not model.runner.statistics_fit()
    model.runner.store_full(model.runner.collect([IMAGES], [1.0], model))  # running statistics only
    assert not model.runner.statistics_fit()
    model.statistics = model.statistics  # the user says that they are right
    assert model.runner.statistics_fit()
    model.runner.set_statistics(model.statistics, "")  # of an origin that nobody knows
    change(model)
    assert model.runner.statistics_fit()
    model.statistics = {}
    assert model.runner.statistics_weights == ""


def test_a_level_on_statistics_of_other_weights_warns_once():
    model = chain()
    change(model)
    with pytest.warns(UserWarning, match=OTHERS):
        run(model, 0.0)
    change(model)
    for alpha in (0.0, 0.5):
        run(model, alpha)
    model.recalibrate([IMAGES], alphas=[0.0, 0.5])
    run(model)
    change(model)
    with pytest.warns(UserWarning, match=OTHERS):
        model.materialize(0.5)


def test_moving_training_and_the_full_level_do_not_warn():
    model = chain()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for moved in (torch.channels_last, torch.contiguous_format):
            model.to(memory_format=moved)
            run(model)
        change(model)
        run(model, 1.0)
        run(model.train())


def test_weights_are_hashed_once_and_not_per_forward(monkeypatch):
    model, calls = chain(), []
    monkeypatch.setattr(level_runner, "fingerprint", lambda parts: calls.append(0) or fingerprint(parts))
    for _ in range(3):
        for alpha in (0.0, 0.5):
            run(model, alpha)
            with model.at_alpha(alpha):
                model(IMAGES)  # with gradients, where tensors are not kept
    assert len(calls) == 1


def test_a_file_holds_statistics_of_its_own_weights(tmp_path):
    model = chain()
    model.save(tmp_path / "m.lcs")
    written = (tmp_path / "m.lcs").read_bytes()
    change(model)
    for save in (lambda: model.save(tmp_path / "m.lcs"), lambda: save_level(model, 1.0, tmp_path / "m.lcs")):
        with pytest.raises(ValueError, match=r"other weights .* recalibrate\(\)"):
            save()
    assert (tmp_path / "m.lcs").read_bytes() == written
    model.recalibrate([IMAGES], alphas=[0.5])
    model.save(tmp_path / "m.lcs")


def curve_of(model, weights):
    costs = [model.efficiency(alpha) for alpha in (0.0, 0.5, 1.0)]
    return [CurvePoint(**vars(cost), latency_ms=1.0, metrics={"val_acc": 0.5}, weights=weights) for cost in costs]


@pytest.mark.parametrize("statistics", [True, False])
def test_a_file_holds_metrics_of_its_own_weights(tmp_path, statistics):
    model = chain(statistics=statistics)
    curve = curve_of(model, model.runner.fingerprint())
    model.save(tmp_path / "m.lcs", levels=curve)
    change(model)
    if statistics:
        model.recalibrate([IMAGES], alphas=[0.0, 0.5])
    with pytest.raises(
        ValueError, match=r"alpha=0 .*other weights(.|\n)*validate\(module, ckpt_path=(.|\n)*lcs\.curve"
    ):
        model.save(tmp_path / "m.lcs", levels={"phone": curve[0]})
    model.save(tmp_path / "m.lcs", levels=[0.0, 1.0])
    model.save(tmp_path / "m.lcs", levels=[dataclasses.replace(point, weights="") for point in curve])


def test_the_table_of_a_file_is_that_of_its_weights(tmp_path):
    model = SubspaceModel(scramble(Chain()), IMAGES, mode="unstructured", subspace="point").eval()
    model.recalibrate([IMAGES], alphas=[0.0, 0.5])
    model.save(tmp_path / "m.lcs", levels=curve_of(model, model.runner.fingerprint()))
    loaded = SubspaceModel.load(tmp_path / "m.lcs", Chain())
    run(loaded)
    loaded.save(tmp_path / "again.lcs")
    for other in (model, loaded):
        change(other)
        other.recalibrate([IMAGES], alphas=[0.0, 0.5])
        with pytest.raises(ValueError, match="measured at other weights"):
            other.save(tmp_path / "again.lcs", levels=loaded.levels)
    with pytest.raises(ValueError, match="measured at other weights"):
        loaded.save(tmp_path / "again.lcs")
    loaded.save(tmp_path / "again.lcs", levels=[0.0, 1.0])


def test_one_level_of_a_structured_file_is_cut_from_its_own_weights(tmp_path):
    chain().save(tmp_path / "m.lcs")
    loaded = SubspaceModel.load(tmp_path / "m.lcs")
    save_level(loaded, 0.5, tmp_path / "level.lcs")
    change(loaded)
    with pytest.raises(ValueError, match="other weights"):
        save_level(loaded, 0.5, tmp_path / "level.lcs")
    with pytest.raises(RuntimeError, match="runs in evaluation only"):
        loaded.recalibrate([IMAGES])
