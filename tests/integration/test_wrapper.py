"""CompressibleSubspaceWrapper: a LightningModule of its own."""

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import IterableDataset

from lightning_lcs import CompressibleSubspaceWrapper, LCSCallback, Line, Structured, SubspaceModel
from lightning_lcs.subspace.modes.registry import mode_to_dict
from tests.integration.support import Data, Module, Net, digits, lcs, loader, trainer

IMAGES = digits(0, 8).tensors[0]
# The same small network as a graph of its own: other memory layout, same operations.
OUTPUT_TOLERANCE = 1e-5
# torch's schedules multiply rates step by step in float64.
RATE_TOLERANCE = 1e-8


def wrapped(network, **options):
    """A wrapper with a line, like the callback of ``lcs()``."""
    return CompressibleSubspaceWrapper(network, **{"subspace": "line", **options})


def resnet(**options):
    return wrapped("test_resnet", in_chans=1, **{"learning_rate": 0.05, **options})


def assert_moved(model, before):
    for (w0, w1), (v0, v1) in zip(model.endpoint_pairs(), before, strict=True):
        assert not torch.equal(w0, v0)
        assert not torch.equal(w1, v1)


def copies(model):
    return [(w0.detach().clone(), w1.detach().clone()) for w0, w1 in model.endpoint_pairs()]


def callbacks_of(run):
    return [callback for callback in run.callbacks if isinstance(callback, LCSCallback)]


def test_a_timm_model_brings_its_own_callback(tmp_path):
    module = resnet()
    before, attributes = copies(module.subspace_model), set(module.__dict__)
    run = trainer(tmp_path)
    run.fit(module, datamodule=Data())
    (callback,) = callbacks_of(run)
    assert callback.subspace_model is module.subspace_model
    assert [round(point.width, 3) for point in callback.curve] == [0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0]
    assert set(callback.curve[0].metrics) == {"val_acc", "val_loss"}
    assert_moved(module.subspace_model, before)
    assert set(module.__dict__) - {"_hparams"} == attributes - {"_hparams"}


def test_a_callback_in_the_trainer_is_used(tmp_path):
    module, callback = wrapped(Net()), lcs()
    run = trainer(tmp_path, callback)
    run.fit(module, datamodule=Data())
    assert callbacks_of(run) == [callback]
    assert callback.subspace_model is module.subspace_model
    assert [point.alpha for point in callback.curve] == [0.0, 0.5, 1.0]


def test_a_callback_of_its_own_is_not_added_twice(tmp_path):
    module, run = wrapped(Net()), trainer(tmp_path)
    run.fit(module, datamodule=Data())
    run.validate(module, datamodule=Data(), verbose=False)
    assert len(callbacks_of(run)) == 1


@pytest.mark.parametrize(
    ("wrapper", "callback", "match"),
    [
        ({"mode": Structured(min_width=0.5)}, {}, "LCSCallback has mode=Structured.min_width=0.25. and the module's"),
        ({"subspace": "point"}, {}, "LCSCallback has subspace='line' and the module's SubspaceModel subspace='point'"),
    ],
)
def test_wrapper_and_callback_must_agree(tmp_path, wrapper, callback, match):
    with pytest.raises(ValueError, match=match):
        trainer(tmp_path, lcs(**callback)).fit(wrapped(Net(), **wrapper), datamodule=Data())


@pytest.mark.parametrize(
    "options", [{"target": "loss"}, {"line": {"parameters": "all"}}, {"line": {"start": "independent"}}]
)
def test_no_option_of_the_callback_is_dropped(tmp_path, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        trainer(tmp_path, lcs(**options)).fit(wrapped(Net()), datamodule=Data())


def saved(folder, module):
    saving = ModelCheckpoint(folder, filename="model")
    run = trainer(folder, lcs(), saving, enable_checkpointing=True)
    run.fit(module, datamodule=Data())
    return folder / "model.ckpt"


def assert_same_levels(first, second):
    for alpha in (0.0, 0.5, 1.0):
        with torch.no_grad(), first.eval().at_alpha(alpha), second.eval().at_alpha(alpha):
            assert torch.equal(first(IMAGES), second(IMAGES))


def test_load_from_checkpoint_by_name(tmp_path):
    module = resnet(model_options={"drop_rate": 0.1})
    path = saved(tmp_path, module)
    loaded = CompressibleSubspaceWrapper.load_from_checkpoint(path)
    assert_same_levels(loaded.subspace_model, module.subspace_model)
    assert loaded.hparams == module.hparams
    with torch.no_grad():
        assert torch.equal(loaded.eval()(IMAGES), module.eval()(IMAGES))


def test_load_from_checkpoint_with_a_network(tmp_path):
    module = wrapped(Net())
    path = saved(tmp_path, module)
    loaded = CompressibleSubspaceWrapper.load_from_checkpoint(path, model=Net())
    assert_same_levels(loaded.subspace_model, module.subspace_model)


@pytest.mark.parametrize("kind", ["wrapper", "network"])
def test_from_checkpoint(tmp_path, kind):
    module = wrapped(Net())
    path = saved(tmp_path, module)
    model = SubspaceModel.from_checkpoint(path, wrapped(Net()) if kind == "wrapper" else Net())
    assert_same_levels(model, module.subspace_model)
    small = model.materialize(0.5)
    with torch.no_grad(), model.at_alpha(0.5):
        expected = model(IMAGES)
        assert (small(IMAGES) - expected).abs().max() <= OUTPUT_TOLERANCE * expected.abs().max()


@pytest.mark.parametrize("mode", ["structured", Structured(min_width=0.5), {"name": "structured", "min_width": 0.5}])
def test_hyperparameters_are_plain_data(mode):
    module = CompressibleSubspaceWrapper("test_resnet", in_chans=1, mode=mode)
    width = 0.25 if mode == "structured" else 0.5
    assert module.hparams["mode"] == mode_to_dict(Structured(min_width=width))
    assert module.subspace_model.mode == Structured(min_width=width)
    plain = (str, int, float, bool, dict, type(None))
    assert all(isinstance(value, plain) for value in module.hparams.values())
    assert "model" not in wrapped(Net(), mode=mode).hparams
    assert (module.hparams["subspace"], module.hparams["line"]["parameters"]) == ("point", "norm")


@pytest.mark.parametrize("line", [Line(parameters="all"), {"parameters": "all"}], ids=["object", "mapping"])
def test_a_line_in_checkpoints_is_plain_data(tmp_path, line):
    module = wrapped("test_resnet", in_chans=1, line=line)
    assert module.hparams["line"] == {"parameters": "all", "start": "copy", "diversity_weight": 0.0}
    run = trainer(tmp_path)
    run.strategy.connect(module)
    run.save_checkpoint(tmp_path / "model.ckpt")
    loaded = CompressibleSubspaceWrapper.load_from_checkpoint(tmp_path / "model.ckpt")
    assert loaded.subspace_model.line == module.subspace_model.line == Line(parameters="all")


def test_a_callback_without_a_subspace_takes_that_of_the_wrapper(tmp_path):
    callback = LCSCallback(mode="unstructured", alphas=2, sampling={"warmup": 0})
    module = wrapped(Net(), mode="unstructured", subspace="point", line={"diversity_weight": 0.5})
    trainer(tmp_path, callback).fit(module, datamodule=Data())
    assert (callback.subspace_model.subspace, callback.options.sampler) == ("point", "weighted_draws")
    assert callback.options.diversity_weight == 0.5


def test_resuming(tmp_path):
    torch.manual_seed(0)
    whole = wrapped(Net(), learning_rate=0.05, scheduler="constant")
    start = {name: value.clone() for name, value in whole.state_dict().items()}
    trainer(tmp_path, lcs(), max_epochs=2).fit(whole, datamodule=Data())
    first = wrapped(Net(), learning_rate=0.05, scheduler="constant")
    first.load_state_dict(start)
    path = saved(tmp_path, first)
    second = wrapped(Net(), learning_rate=0.05, scheduler="constant")
    trainer(tmp_path, lcs(), max_epochs=2).fit(second, datamodule=Data(), ckpt_path=path)
    for (name, a), (_, b) in zip(whole.named_parameters(), second.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    assert whole.subspace_model.endpoint_pairs()


def test_test_and_predict(tmp_path):
    module, run = wrapped(Net()), trainer(tmp_path)
    run.fit(module, datamodule=Data())
    run.test(module, datamodule=Data(), verbose=False)
    (callback,) = callbacks_of(run)
    assert set(callback.curve[0].metrics) == {"test_acc"}
    with module.subspace_model.at_alpha(0.0):
        predicted = torch.cat(run.predict(module, Data().val_dataloader()))
    assert predicted.shape == (40, 10)


def test_an_unknown_scheduler():
    with pytest.raises(ValueError, match="scheduler='step' is not known; choose one of 'cosine', 'constant'"):
        wrapped(Net(), scheduler="step")


class Rates(Callback):
    """The learning rate of every step."""

    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.seen.append(trainer.optimizers[0].param_groups[0]["lr"])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"scheduler": "constant"}, [0.4] * 6),
        ({"scheduler": "constant", "warmup_epochs": 1.0}, [0.4 / 3, 0.4 * 5 / 9, 0.4 * 7 / 9, 0.4, 0.4, 0.4]),
        ({"scheduler": "cosine"}, [0.4 * (1 + c) / 2 for c in (1.0, 0.8660254, 0.5, 0.0, -0.5, -0.8660254)]),
    ],
)
def test_schedules(tmp_path, options, expected):
    rates = Rates()
    module = wrapped(Net(), learning_rate=0.4, **options)
    trainer(tmp_path, lcs(), rates, max_epochs=2).fit(module, datamodule=Data())
    assert rates.seen == pytest.approx(expected, abs=RATE_TOLERANCE)


class Endless(IterableDataset):
    """Images without a length: the number of steps is not known."""

    def __iter__(self):
        yield from digits(0, 48)


def test_data_without_a_length(tmp_path):
    options = {"limit_val_batches": 1, "max_epochs": 1}
    module = wrapped(Net(), scheduler="constant", learning_rate=0.05)
    trainer(tmp_path, lcs(), **options).fit(module, loader(Endless()), Data().val_dataloader())
    # With a number of steps given a schedule is possible, too.
    module = wrapped(Net(), scheduler="cosine", learning_rate=0.05)
    run = trainer(tmp_path, lcs(), max_steps=3, limit_val_batches=1)
    run.fit(module, loader(Endless()), Data().val_dataloader())
    assert run.global_step == 3


def test_a_schedule_over_data_without_a_length_says_what_is_missing(tmp_path):
    module = wrapped(Net(), scheduler="cosine")
    with pytest.raises(ValueError, match="max_steps"):
        trainer(tmp_path, lcs()).fit(module, loader(Endless()), Data().val_dataloader())


def test_a_warm_up_without_training_steps(tmp_path):
    module = wrapped(Net(), warmup_epochs=0.5)
    trainer(tmp_path, lcs(), limit_train_batches=0).fit(module, datamodule=Data())


def test_the_wrapper_beside_other_modules_of_the_user(tmp_path):
    """A subspace model in a user's own module, made by hand, with the wrapper's callback defaults."""
    module = Module(SubspaceModel(Net(), subspace="line"))
    before = copies(module.net)
    trainer(tmp_path, lcs()).fit(module, datamodule=Data())
    assert_moved(module.net, before)
