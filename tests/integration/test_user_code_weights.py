"""Checkpoints, curves and files never pair the statistics or metrics of some weights with other weights."""

import contextlib
import copy
import dataclasses
import functools
import warnings

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_lcs import LCSCallback, SubspaceModel
from lightning_lcs.io.checkpoint import CHECKPOINT_KEY
from tests.integration.support import Data, Module, Net, group_norm, lcs, trainer

DROPPED = r"statistics of the levels are dropped.*recalibrate\(\)"
OTHERS = "batch-norm statistics of other weights"
LEFT_OUT = r"gets no batch-norm statistics.*trainer.validate.*recalibrate\(\)"


class SavesAverages(L.Callback):
    """Averages of the weights, which stand in the checkpoint in place of the weights."""

    def __init__(self) -> None:
        self.averages: dict[str, torch.Tensor] = {}

    def on_train_batch_end(self, trainer, pl_module, *args):
        for name, value in pl_module.named_parameters():
            average = self.averages.setdefault(name, value.detach().clone())
            average.lerp_(value.detach(), 0.1)

    def on_save_checkpoint(self, trainer, pl_module, checkpoint):
        held = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: self.averages.get(name, value) for name, value in held.items()}


def checkpoint_of(folder, *callbacks, subspace="point", **options):
    callback = lcs(subspace=subspace)
    run = trainer(folder, callback, *callbacks, **options)
    run.fit(Module(lr=0.2), datamodule=Data())
    run.save_checkpoint(folder / "model.ckpt")
    return callback, folder / "model.ckpt"


def opened(path, network=None):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return SubspaceModel.from_checkpoint(path, Net() if network is None else network)


@pytest.mark.parametrize("subspace", ["point", "line"])
def test_a_checkpoint_of_the_weights_that_were_trained_keeps_its_statistics(tmp_path, subspace):
    callback, path = checkpoint_of(tmp_path, subspace=subspace)
    for module in (Net(), Module()):
        model = opened(path, module)
        assert set(model.statistics) == {0.0, 0.5}
        assert model.runner.statistics_weights == callback.subspace_model.runner.fingerprint()
        model.save(tmp_path / "model.lcs")


def test_a_checkpoint_of_averages_is_opened_without_the_statistics_of_the_weights(tmp_path):
    _, path = checkpoint_of(tmp_path, SavesAverages())
    with pytest.warns(UserWarning, match=DROPPED):
        model = SubspaceModel.from_checkpoint(path, Net())
    assert model.statistics == {}
    batches = [images for images, _ in Data().train_dataloader()]
    model.recalibrate(batches, alphas=[0.0, 0.5])
    own = copy.deepcopy(model.statistics)
    model.save(tmp_path / "model.lcs")
    loaded = SubspaceModel.load(tmp_path / "model.lcs")
    for alpha, tensors in own.items():
        for name, value in tensors.items():
            assert torch.equal(loaded.statistics[alpha][name], value)


class EndsWithOtherWeights(Module):
    """Puts other weights in place when training has ended, as averages are."""

    def on_train_end(self):
        exchange(self)


def exchange(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(0.9)


@pytest.mark.parametrize("subspace", ["point", "line"])
@pytest.mark.parametrize("mode", ["structured", "quantized"])
@pytest.mark.parametrize("kind", [Module, EndsWithOtherWeights])
def test_weights_that_were_exchanged_after_training_are_saved_without_statistics(tmp_path, kind, mode, subspace):
    module, path = kind(lr=0.2), tmp_path / "model.ckpt"
    callback = lcs(mode=mode, subspace=subspace)
    run = trainer(tmp_path, callback)
    run.fit(module, datamodule=Data())
    if kind is Module:
        exchange(module)
    with pytest.warns(UserWarning, match=LEFT_OUT):
        run.save_checkpoint(path)
    with pytest.warns(UserWarning, match="holds no batch-norm statistics of its levels"):
        model = SubspaceModel.from_checkpoint(path, Net())
    assert not model.statistics
    assert all(torch.equal(model.module.state_dict()[name], value) for name, value in module.net.state_dict().items())
    # Where alpha = 1 is compressed, it has nothing better than the statistics of training until the validation ends.
    with pytest.warns(UserWarning, match=OTHERS) if mode == "quantized" else contextlib.nullcontext():
        run.validate(module, datamodule=Data(), verbose=False)
    run.save_checkpoint(path)
    model = opened(path)
    assert model.statistics
    assert model.runner.statistics_weights == model.runner.fingerprint()
    measured = callback.curve[-1].metrics["val_loss"]
    assert measured == pytest.approx(run.validate(module, datamodule=Data(), verbose=False)[0]["val_loss"])


def test_without_batch_norm_exchanged_weights_are_saved_silently(tmp_path):
    module, run = Module(Net(group_norm)), trainer(tmp_path, lcs())
    run.fit(module, datamodule=Data())
    exchange(module)
    run.save_checkpoint(tmp_path / "model.ckpt")
    assert not opened(tmp_path / "model.ckpt", Net(group_norm)).statistics


def test_the_weights_of_training_are_saved_with_their_statistics_after_others_were(tmp_path):
    module, run = Module(), trainer(tmp_path, lcs())
    run.fit(module, datamodule=Data())
    trained = copy.deepcopy(module.state_dict())
    exchange(module.net.head)
    with pytest.warns(UserWarning, match=LEFT_OUT):
        run.save_checkpoint(tmp_path / "other.ckpt")
    module.load_state_dict(trained)
    run.save_checkpoint(tmp_path / "model.ckpt")
    assert set(opened(tmp_path / "model.ckpt").statistics) == {0.0, 0.5}


def test_a_checkpoint_that_does_not_say_what_its_statistics_belong_to_is_taken_as_it_is(tmp_path):
    _, path = checkpoint_of(tmp_path, SavesAverages())
    content = torch.load(path, weights_only=True)
    del content[CHECKPOINT_KEY]["statistics_weights"]
    torch.save(content, path)
    model = opened(path)
    assert set(model.statistics) == {0.0, 0.5}
    model.save(tmp_path / "model.lcs")
    with torch.no_grad():
        model.module.head.bias.add_(1.0)
    with pytest.raises(ValueError, match=r"recalibrate\(\)"):
        model.save(tmp_path / "model.lcs")


@pytest.mark.parametrize("trained", ["bf16-true", "32-true"])
def test_a_checkpoint_may_be_opened_in_another_precision(tmp_path, trained):
    _, path = checkpoint_of(tmp_path, precision=trained)
    for dtype in (torch.float32, torch.bfloat16):
        assert set(opened(path, Net().to(dtype)).statistics) == {0.0, 0.5}


def test_the_curve_of_the_last_weights_is_not_saved_with_the_best(tmp_path):
    callback = lcs(subspace="point", recalibration={"every_checkpoint": True})
    saving = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    module, run = Module(lr=0.2), trainer(tmp_path, callback, saving, enable_checkpointing=True, max_epochs=2)
    run.fit(module, datamodule=Data())
    first, last = (SubspaceModel.from_checkpoint(tmp_path / f"epoch={epoch}.ckpt", Net()) for epoch in (0, 1))
    weights = callback.subspace_model.runner.fingerprint()
    curve = [dataclasses.replace(point, weights=weights) for point in callback.curve]
    last.save(tmp_path / "last.lcs", levels=curve)
    with pytest.raises(ValueError, match="measured at other weights"):
        first.save(tmp_path / "best.lcs", levels=curve)
    assert not (tmp_path / "best.lcs").exists()
    # What the error says to do.
    run.validate(module, datamodule=Data(), ckpt_path=tmp_path / "epoch=0.ckpt", verbose=False)
    weights = callback.subspace_model.runner.fingerprint()
    curve = [dataclasses.replace(point, weights=weights) for point in callback.curve]
    for model in (callback.subspace_model, first):
        model.save(tmp_path / "best.lcs", levels=curve)
    best = SubspaceModel.load(tmp_path / "best.lcs")
    assert [level.metrics for level in best.levels] == [point.metrics for point in callback.curve]


class ShowsAverages(L.Callback):
    """Averages that stand in the place of the weights during a validation."""

    def __init__(self, both_ends: bool = False) -> None:
        self.both_ends = both_ends
        self.averages: dict[str, torch.Tensor] = {}
        self.callback: LCSCallback

    def _weights(self, module):
        second = [w0 for w0, _ in self.callback.subspace_model.endpoint_pairs()] if self.both_ends else []
        return [*module.parameters(), *second]

    def on_train_batch_end(self, trainer, pl_module, *args):
        for place, value in enumerate(self._weights(pl_module)):
            self.averages.setdefault(place, value.detach().clone()).lerp_(value.detach(), 0.1)

    def _exchange(self, module):
        for place, value in enumerate(self._weights(module)):
            if place in self.averages:
                held = value.detach().clone()
                value.data.copy_(self.averages[place])
                self.averages[place] = held

    def on_validation_start(self, trainer, pl_module):
        self._exchange(pl_module)

    def on_validation_end(self, trainer, pl_module):
        self._exchange(pl_module)


@pytest.mark.parametrize(
    ("subspace", "both_ends", "warned"), [("line", False, 1), ("line", True, 0), ("point", False, 0)]
)
def test_averages_at_one_end_of_a_line_are_a_warning(tmp_path, subspace, both_ends, warned):
    shows = ShowsAverages(both_ends)
    shows.callback = callback = lcs(subspace=subspace)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        trainer(tmp_path, callback, shows, max_epochs=1).fit(Module(lr=0.2), datamodule=Data())
    assert sum("only at one end of the line" in str(each.message) for each in found) == warned


EXCHANGES = [("model_eval", "model_train"), ("start", "end"), ("epoch_start", "epoch_end"), ("start", "model_train")]


class Averaged(Module):
    """Averages in the place of the weights during a validation: guarded by a flag, or in a bare exchange."""

    def __init__(self, hooks, guarded) -> None:
        super().__init__(lr=0.2)
        self.guarded, self.shown, self.seen = guarded, False, []
        self.averages = [parameter.detach().clone() for parameter in self.net.parameters()]
        for hook, shown in zip(hooks, (True, False), strict=True):
            original = getattr(self, f"on_validation_{hook}")
            setattr(self, f"on_validation_{hook}", functools.partial(self._exchange, original, shown))

    def _exchange(self, original, shown):
        original()
        if self.guarded and self.shown == shown:
            return
        self.shown = shown
        for average, parameter in zip(self.averages, self.net.parameters(), strict=True):
            held = parameter.detach().clone()
            parameter.data.copy_(average)
            average.copy_(held)

    def on_train_batch_end(self, *args):
        for average, parameter in zip(self.averages, self.net.parameters(), strict=True):
            average.lerp_(parameter.detach(), 0.1)

    def validation_step(self, batch, batch_idx):
        self.seen.append([parameter.detach().clone() for parameter in self.net.parameters()])
        super().validation_step(batch, batch_idx)


@pytest.mark.parametrize("guarded", [True, False])
@pytest.mark.parametrize("hooks", EXCHANGES)
def test_a_curve_is_of_the_averages_and_leaves_them_and_the_weights_as_they_are(tmp_path, hooks, guarded):
    found = []
    # Trained at alpha = 1 alone, the weights are those of plain training.
    callback = lcs(subspace="point", sampling={"sampler": [1.0]}, every_n_epochs=1)
    for callbacks in ([], [callback]):
        torch.manual_seed(0)
        module = Averaged(hooks, guarded)
        trainer(tmp_path, *callbacks, max_epochs=2).fit(module, datamodule=Data())
        found.append((list(module.net.parameters()), module.averages))
    for one, other in zip(found[0][0] + found[0][1], found[1][0] + found[1][1], strict=True):
        assert torch.equal(one, other)
    # Averages are of every level, and statistics of the averages.
    last = module.seen[-1]
    with torch.no_grad():
        for parameter, value in zip(module.net.parameters(), last, strict=True):
            parameter.copy_(value)
    assert {point.weights for point in callback.curve} == {callback.subspace_model.runner.fingerprint()}
    assert callback.subspace_model.runner.statistics_fit()
    module.eval()
    images, labels = Data().val_dataloader().dataset.tensors
    for point in callback.curve:
        with callback.subspace_model.at_alpha(point.alpha), torch.no_grad():
            loss = torch.nn.functional.cross_entropy(callback.subspace_model(images), labels)
        assert point.metrics["val_loss"] == pytest.approx(float(loss), abs=1e-4)
