"""Lightning's averages of weights: files hold them with their statistics, and the curve is that of the averages.

On a line they are averages of both ends.
"""

import copy
import warnings

import pytest
import torch
from lightning.pytorch import callbacks
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_lcs import CompressibleSubspaceWrapper, LCSCallback, SubspaceModel
from lightning_lcs.subspace.running import calibration
from tests.integration.support import Module, Net, digits, group_norm, lcs, loader, older_lightning, trainer

pytestmark = pytest.mark.skipif(older_lightning, reason="Lightning before 2.6 has no EMAWeightAveraging")
VALIDATION = digits(48, 40)
# timm's smallest networks need larger images.
WIDE = torch.utils.data.TensorDataset(
    torch.nn.functional.interpolate(digits(0, 32).tensors[0], 32), digits(0, 32).tensors[1]
)
MODES = ["structured", "unstructured", "quantized"]
LINES = [{"subspace": "point"}, {"subspace": "line", "line": {"parameters": "all"}}]
DECAY = 0.8


def ids(options):
    return options["subspace"]


def fit(folder, *others, ckpt_path=None, epochs=2, every=None, averages=None, norm=None):
    torch.manual_seed(0)
    module = Module() if norm is None else Module(Net(norm))
    saving = ModelCheckpoint(folder, "{epoch}", save_top_k=-1, every_n_train_steps=every)
    averages = averages or callbacks.EMAWeightAveraging(decay=DECAY)
    run = trainer(folder, *others, averages, saving, max_epochs=epochs, enable_checkpointing=True)
    run.fit(module, loader(digits(0, 48)), loader(VALIDATION), ckpt_path=ckpt_path)
    return module, run, saving.best_model_path


@pytest.mark.parametrize("first", [True, False])
def test_averages_are_those_of_a_run_without_it(tmp_path, first):
    """With a sampler that trains the full network alone."""
    plain, _, path = fit(tmp_path / "plain")
    callback = lcs(subspace="point", sampling={"sampler": [1.0]})
    torch.manual_seed(0)
    ours, _, our_path = fit(tmp_path / "ours", callback)
    for name, value in plain.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name
    theirs, mine = torch.load(path, weights_only=False), torch.load(our_path, weights_only=False)
    for key in ("state_dict", "current_model_state", "averaging_state"):
        assert mine[key].keys() == theirs[key].keys()
        assert all(torch.equal(value, theirs[key][name]) for name, value in mine[key].items()), key


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("line", LINES, ids=ids)
def test_the_file_and_the_curve_are_of_the_averages(tmp_path, mode, line):
    callback = lcs(mode=mode, **line)
    _, _, path = fit(tmp_path, callback)
    content = torch.load(path, weights_only=False)
    assert not torch.equal(content["state_dict"]["net.head.weight"], content["current_model_state"]["net.head.weight"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opened = SubspaceModel.from_checkpoint(path, Module())
    assert opened.statistics.keys() == callback.subspace_model.statistics.keys()
    assert opened.runner.statistics_weights == callback.subspace_model.runner.fingerprint()
    images, labels = VALIDATION.tensors
    for point in callback.curve:
        opened.set_alpha(point.alpha)
        with torch.no_grad():
            accuracy = (opened(images).argmax(1) == labels).float().mean().item()
        assert accuracy == pytest.approx(point.metrics["val_acc"], abs=1e-6)


def test_a_file_of_an_earlier_epoch_has_statistics_of_its_own_averages(tmp_path):
    torch.manual_seed(0)
    module, callback = Module(), lcs(subspace="point")
    best = ModelCheckpoint(tmp_path, "{epoch}", monitor="train_acc_epoch", mode="min")
    averages = callbacks.EMAWeightAveraging(decay=0.8)
    run = trainer(tmp_path, averages, callback, best, max_epochs=2, enable_checkpointing=True)
    run.fit(module, loader(digits(0, 48)), loader(VALIDATION))
    assert "epoch=0" in best.best_model_path
    opened = SubspaceModel.from_checkpoint(best.best_model_path, Module())
    assert opened.runner.statistics_fit()
    kept = copy.deepcopy(dict(opened.statistics))
    opened.recalibrate(digits(0, 48).tensors[0].split(16), list(kept))
    for level, tensors in kept.items():
        for name, value in tensors.items():
            torch.testing.assert_close(opened.statistics[level][name], value, rtol=0.0, atol=1e-5)


@pytest.mark.parametrize("mode", ["unstructured", "quantized"])  # structured steps update them, and Lightning averages
@pytest.mark.parametrize("every", [1, 3])
def test_running_statistics_in_a_file_are_those_of_the_averages(tmp_path, mode, every):
    """Also where a file is written before the validation of the same averages."""
    torch.manual_seed(0)
    saving = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=5)
    averages = callbacks.EMAWeightAveraging(decay=0.5, update_every_n_steps=every)
    callback = lcs(mode=mode, subspace="point")
    run = trainer(tmp_path, callback, averages, saving, max_epochs=2, enable_checkpointing=True)
    run.fit(Module(), loader(digits(0, 48)), loader(VALIDATION))
    opened = SubspaceModel.from_checkpoint(saving.best_model_path, Module())
    found = {name: value.clone() for name, value in opened.module.named_buffers() if "running" in name}
    with opened.runner.collecting() as collector, torch.no_grad():
        expected = calibration.collect(collector, digits(0, 48).tensors[0].split(16), [1.0], opened)[1.0]
    for name, value in found.items():
        torch.testing.assert_close(value, expected[f"{opened.parts[0].prefix}{name}"], rtol=0.0, atol=1e-5)


def swa(line):
    # A file of a run that ends is written in the extra epoch; one that goes on is of an epoch before.
    return callbacks.StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=1, annealing_epochs=2)


class Stops(callbacks.Callback):
    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 2:
            raise KeyError("stopped")


@pytest.mark.parametrize("make", [lambda _: None, swa], ids=["ema", "swa"])
@pytest.mark.parametrize("line", LINES, ids=ids)
def test_a_resumed_run_ends_as_one_that_was_not_stopped(tmp_path, line, make):
    whole, _, path = fit(tmp_path / "whole", lcs(**line), epochs=4, averages=make(line))
    folder = tmp_path / "stopped"

    with pytest.raises(KeyError, match="stopped"):
        fit(folder, lcs(**line), Stops(), epochs=4, averages=make(line))
    resumed, _, other = fit(folder, lcs(**line), epochs=4, averages=make(line), ckpt_path=folder / "epoch=1.ckpt")
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    expected, found = (torch.load(file, weights_only=False)["lightning_lcs"] for file in (path, other))
    assert expected["statistics_weights"] == found["statistics_weights"]
    assert expected["statistics"]


class Records(callbacks.Callback):
    """Both ends of the line after each step, or before each epoch."""

    def __init__(self, each):
        self.each = each
        self.found = []

    def note(self, when, trainer):
        if when == self.each:
            model = next(c for c in trainer.callbacks if isinstance(c, LCSCallback)).subspace_model
            self.found.append([[w.detach().clone() for w in pair] for pair in model.endpoint_pairs()])

    def on_train_batch_end(self, trainer, *args):
        self.note("batch", trainer)

    def on_train_epoch_start(self, trainer, pl_module):
        self.note("epoch", trainer)


def test_both_ends_are_averaged_alike(tmp_path):
    callback, records = lcs(**LINES[1]), Records("batch")
    _, _, path = fit(tmp_path, records, callback)
    average = records.found[0]
    for step in records.found[1:]:
        average = [
            [DECAY * old + (1.0 - DECAY) * new for old, new in zip(pair, now, strict=True)]
            for pair, now in zip(average, step, strict=True)
        ]
    for pair, expected in zip(callback.subspace_model.endpoint_pairs(), average, strict=True):
        for value, other in zip(pair, expected, strict=True):
            torch.testing.assert_close(value, other, rtol=0.0, atol=1e-6)
    content = torch.load(path, weights_only=False)["lightning_lcs"]
    part = callback.subspace_model.parts[0]
    pairs = callback.subspace_model.endpoint_pairs()
    raw = {id(w0): value for (w0, _), (value, _) in zip(pairs, records.found[-1], strict=True)}
    for name, w0 in part.endpoints.items():
        assert torch.equal(content["endpoint_0"][part.prefix + name], w0)
        assert torch.equal(content["current_endpoint_0"][part.prefix + name], raw[id(w0)])


@pytest.mark.parametrize("norm", [torch.nn.BatchNorm2d, group_norm], ids=["batch", "group"])
def test_stochastic_averages_are_those_of_a_run_without_it(tmp_path, norm):
    """With batch norms Lightning appends an epoch for their statistics; else it exchanges the weights at the end."""
    ran = []
    for other in ([], [lcs(subspace="point", sampling={"sampler": [1.0]})]):
        ran.append(fit(tmp_path / str(len(ran)), *other, epochs=3, averages=swa(None), norm=norm)[0])
    for name, value in ran[0].state_dict().items():
        assert torch.equal(ran[1].state_dict()[name], value), name


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("norm", [torch.nn.BatchNorm2d, group_norm], ids=["batch", "group"])
@pytest.mark.parametrize("line", LINES, ids=ids)
def test_stochastic_averages_are_of_both_ends_and_the_curve_is_of_them(tmp_path, mode, norm, line):
    callback, records = lcs(mode=mode, **line), Records("epoch")
    fit(tmp_path, records, callback, epochs=3, averages=swa(line), norm=norm)
    model = callback.subspace_model
    if model.endpoint_pairs():
        epochs = records.found[:3]  # Lightning averages the weights at the start of each epoch
        for place, pair in enumerate(model.endpoint_pairs()):
            for end, value in enumerate(pair):
                mean = torch.stack([epoch[place][end] for epoch in epochs]).mean(0)
                torch.testing.assert_close(value, mean, rtol=0.0, atol=1e-6)
    images, labels = VALIDATION.tensors
    assert len(callback.curve) >= 2
    for point in callback.curve:
        assert point.weights == model.runner.fingerprint()
        with torch.no_grad(), model.eval().at_alpha(point.alpha):
            accuracy = (model(images).argmax(1) == labels).float().mean().item()
        assert accuracy == pytest.approx(point.metrics["val_acc"], abs=1e-6)


def test_a_file_of_your_own_holds_the_averages_without_statistics(tmp_path):
    class Saves(callbacks.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            trainer.save_checkpoint(tmp_path / "own.ckpt")

    fit(tmp_path / "files", lcs(subspace="point", recalibration={"every_checkpoint": True}), Saves())
    with pytest.warns(UserWarning, match="holds no batch-norm statistics of its levels"):
        SubspaceModel.from_checkpoint(tmp_path / "own.ckpt", Module())


@pytest.mark.parametrize("line", LINES, ids=ids)
def test_ema_decay_is_lightnings_callback(tmp_path, line):
    given = fit(tmp_path / "given", lcs(**line))[0]
    callback = lcs(**line, ema_decay=DECAY)
    for folder in ("own", "again"):
        run = trainer(tmp_path / folder, callback, max_epochs=2)
        torch.manual_seed(0)
        module = Module()
        run.fit(module, loader(digits(0, 48)), loader(VALIDATION))
        for name, value in given.state_dict().items():
            assert torch.equal(module.state_dict()[name], value), name
        # Another trainer gets another one; the same trainer keeps its own for another fit.
        run.fit_loop.max_epochs = 3
        run.fit(module, loader(digits(0, 48)), loader(VALIDATION))
        kinds = [type(each).__name__ for each in run.callbacks]
        assert kinds[:2] == ["LCSCallback", "EMAWeightAveraging"]
        assert kinds.count("EMAWeightAveraging") == 1


def test_one_average_is_enough(tmp_path):
    with pytest.raises(ValueError, match=r"ema_decay=0\.9, and the trainer has EMAWeightAveraging: give one"):
        fit(tmp_path, lcs(ema_decay=0.9))


@pytest.mark.parametrize("decay", [0.0, 1.0, 1.5])
def test_a_decay_outside_its_range(decay):
    with pytest.raises(ValueError, match=rf"ema_decay={decay} is not in \(0, 1\)"):
        lcs(ema_decay=decay)


class Momentum(callbacks.Callback):
    """Changes the momentum of batch norms in the second epoch, as StochasticWeightAveraging does in its last."""

    def __init__(self, momentum):
        self.momentum = momentum

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            pl_module.net.norm1.momentum = pl_module.net.norm2.momentum = self.momentum


@pytest.mark.parametrize("momentum", [0.01, None])
@pytest.mark.parametrize("mode", MODES)
def test_statistics_do_not_depend_on_a_momentum_that_changes(tmp_path, mode, momentum):
    torch.manual_seed(0)
    module, callback = Module(), lcs(mode=mode, subspace="point", recalibration={"images": 48})
    run = trainer(tmp_path, callback, Momentum(momentum), max_epochs=2)
    run.fit(module, loader(digits(0, 48)), loader(VALIDATION))
    with torch.no_grad():
        made = module.net.conv1(digits(0, 48).tensors[0])
    names = [name for name in callback.subspace_model.statistics[0.5] if name.endswith("norm1.running_mean")]
    if mode != "structured":  # all channels, of weights that are hardly sparse or quantized
        found = module.net.norm1.running_mean
        assert (found - made.mean((0, 2, 3))).abs().max() < 0.3 * made.std()
    for name in names:
        found = callback.subspace_model.statistics[0.5][name]
        expected = made.mean((0, 2, 3))[: len(found)]
        assert (found - expected).abs().max() < 0.3 * made.std()


@pytest.mark.parametrize("subspace", ["point", "line"])
def test_a_wrapper_saves_and_resumes_both_ends(tmp_path, subspace):
    def make():
        torch.manual_seed(0)
        return CompressibleSubspaceWrapper("test_resnet", num_classes=10, in_chans=1, subspace=subspace)

    def fit_wrapper(folder, *others, path=None):
        module, callback = make(), lcs(subspace=subspace, ema_decay=DECAY)
        saving = ModelCheckpoint(folder, save_last=True)
        run = trainer(folder, callback, *others, saving, max_epochs=3, enable_checkpointing=True)
        run.fit(module, loader(WIDE), loader(WIDE), ckpt_path=path)
        return callback

    whole = fit_wrapper(tmp_path / "whole")
    opened = SubspaceModel.from_checkpoint(tmp_path / "whole" / "last.ckpt", make())
    assert opened.runner.fingerprint() == whole.curve[0].weights
    with pytest.raises(KeyError, match="stopped"):
        fit_wrapper(tmp_path / "first", Stops())
    resumed = fit_wrapper(tmp_path / "first", path=tmp_path / "first" / "last.ckpt")
    for pair, expected in zip(
        resumed.subspace_model.endpoint_pairs(), whole.subspace_model.endpoint_pairs(), strict=True
    ):
        for value, other in zip(pair, expected, strict=True):
            assert torch.equal(value, other)


@pytest.mark.parametrize("norm", ["instance", "group"])
@pytest.mark.parametrize("first", [True, False])
def test_averages_of_norms_that_were_replaced(tmp_path, norm, first):
    torch.manual_seed(0)
    callback, averages = lcs(norm=norm, subspace="point"), callbacks.EMAWeightAveraging(decay=DECAY)
    order = [averages, callback] if first else [callback, averages]
    saving = ModelCheckpoint(tmp_path, save_last=True)
    run = trainer(tmp_path, *order, saving, max_epochs=1, enable_checkpointing=True)
    run.fit(Module(), loader(digits(0, 48)), loader(VALIDATION))
    opened = SubspaceModel.from_checkpoint(tmp_path / "last.ckpt", Module())
    assert opened.runner.fingerprint() == callback.curve[0].weights
