"""A level of a curve is a validation of the user's module: its hooks, what it logs, the weights that it sees."""

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from lightning_lcs import SubspaceModel
from tests.integration.support import Counter, Module, Net, digits, fitted, loader, small_callback

# Sums in another order differ by rounding.
TOLERANCE = 1e-6


class Sensitivity(Module):
    """Needs gradients in validation."""

    def validation_step(self, batch, batch_idx):
        with torch.enable_grad():
            images = batch[0].clone().requires_grad_(True)
            (gradient,) = torch.autograd.grad(self.net(images).sum(), images)
        self.log("val_gradient", gradient.norm())


def test_gradients_in_validation(tmp_path):
    lcs = small_callback()
    fitted(Sensitivity, tmp_path, lcs, inference_mode=False)
    assert all(point.metrics["val_gradient"] > 0.0 for point in lcs.curve)


class Logged(Module):
    """Logs whatever ``log`` takes."""

    def validation_step(self, batch, batch_idx):
        right = (self.net(batch[0]).argmax(1) == batch[1]).float()
        self.log("one", right.mean())
        self.log("shaped", right.mean().view(1, 1))
        self.log("weighted", right.mean(), batch_size=1 + 3 * batch_idx)
        self.log("huge", 2**40 + batch_idx, batch_size=1)
        self.log("small", 1e-30)
        self.log("largest", right.mean(), reduce_fx="max")
        self.log("steps", right.mean(), on_step=True, on_epoch=True)
        self.log_dict({"a": right.sum(), "b": 1}, logger=False)


def test_the_curve_has_what_lightning_reduces(tmp_path):
    """The reference is a plain validation of the network that is cut out at the level."""
    lcs = small_callback()
    module = fitted(Logged, tmp_path, lcs)
    for point in lcs.curve:
        plain = Logged()
        plain.net = lcs.subspace_model.materialize(point.alpha) if point.alpha < 1.0 else module.net
        trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path)
        trainer.validate(plain, loader(digits(64, 32)), verbose=False)
        expected = {k: float(v) for k, v in trainer.callback_metrics.items() if k not in ("steps_step", "steps_epoch")}
        assert point.metrics == pytest.approx(expected, rel=TOLERANCE)


class Hooks(Module):
    """Depends on its own hooks, as plain Lightning calls them."""

    def on_validation_model_eval(self):
        super().on_validation_model_eval()
        self.scale = 2.0

    def on_validation_start(self):
        self.hits = []

    def validation_step(self, batch, batch_idx):
        hit = (self.net(batch[0]).argmax(1) == batch[1]).float() * self.scale
        self.hits.append(hit)
        self.log("steps", hit.mean())

    def on_validation_epoch_end(self):
        self.log("all", torch.cat(self.hits).mean())
        self.log("doubled", 2.0 * self.trainer.callback_metrics["steps"] if self.trainer.callback_metrics else 0.0)

    def on_validation_end(self):
        del self.scale


def test_a_level_runs_the_hooks_of_a_validation(tmp_path):
    lcs = small_callback()
    module = fitted(Hooks, tmp_path, Counter(), lcs)
    for point in lcs.curve:
        metrics = point.metrics
        assert metrics["all"] == pytest.approx(metrics["steps"], rel=TOLERANCE)
        assert metrics["doubled"] == pytest.approx(2.0 * metrics["steps"], rel=TOLERANCE)
        assert metrics["by_callback"] == 0.5
    assert not hasattr(module, "scale")


class TwoLoaders(Module):
    """Notes the loaders whose batches run below full width in the sanity check."""

    def __init__(self, visited, lcs):
        super().__init__()
        self.visit, self.lcs = visited.append, lcs

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        if self.trainer.sanity_checking and self.lcs.subspace_model.alpha < 1.0:
            self.visit(dataloader_idx)
        super().validation_step(batch, batch_idx)


def test_every_validation_loader_is_rehearsed(tmp_path):
    visited, lcs = [], small_callback()
    val = [loader(digits(0, 32)), loader(digits(32, 32))]
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "max_epochs": 1}
    trainer = L.Trainer(accelerator="cpu", callbacks=[lcs], default_root_dir=tmp_path, **options)
    trainer.fit(TwoLoaders(visited, lcs), loader(digits(0, 32)), val)
    assert visited == [0, 1]


class Stages(Module):
    """Notes the stage in which training batches are transferred."""

    def __init__(self, stages):
        super().__init__()
        self.note = stages.add

    def on_before_batch_transfer(self, batch, dataloader_idx):
        if self.trainer.state.stage is not None and len(batch[0]) == 16:
            self.note((self.trainer.state.stage.value, self.trainer.training))
        return batch


def test_training_batches_of_recalibration_are_transferred_in_the_stage_train(tmp_path):
    stages = set()
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "max_epochs": 1}
    trainer = L.Trainer(accelerator="cpu", callbacks=[small_callback()], default_root_dir=tmp_path, **options)
    trainer.fit(Stages(stages), loader(digits(0, 32)), loader(digits(32, 8), batch_size=8))
    assert stages == {("train", True)}


@pytest.mark.filterwarnings("ignore:Total length of `DataLoader`")
def test_an_empty_validation_loader_is_a_warning(tmp_path):
    lcs = small_callback()
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "max_epochs": 1}
    trainer = L.Trainer(accelerator="cpu", callbacks=[lcs], default_root_dir=tmp_path, **options)
    with pytest.warns(UserWarning, match="no validation data"):
        trainer.fit(Module(), loader(digits(0, 32)), loader(digits(0, 0)))
    assert lcs.curve == []


class Averages(L.Callback):
    """Exchanges weights and their averages at the start and the end of a validation, or of its epoch."""

    def __init__(self, where):
        self.average = None
        for hook in ("start", "end"):
            setattr(self, f"on_validation_{'epoch_' if where == 'epoch' else ''}{hook}", self.exchange)

    def on_train_batch_end(self, trainer, pl_module, *args):
        now = {name: value.detach().clone() for name, value in pl_module.net.named_parameters()}
        if self.average is None:
            self.average = now
        for name, value in now.items():
            self.average[name].lerp_(value, 0.1)

    def exchange(self, trainer, pl_module):
        for name, value in pl_module.net.named_parameters() if self.average else ():
            held = value.detach().clone()
            value.data.copy_(self.average[name])
            self.average[name].copy_(held)


@pytest.mark.parametrize("where", ["validation", "epoch"])
@pytest.mark.parametrize("first", [True, False])
def test_averages_are_measured_with_statistics_of_their_own(tmp_path, where, first):
    lcs, averages = small_callback(recalibration={"images": 64, "levels": [0.0, 0.5]}), Averages(where)
    order = [lcs, averages] if first else [averages, lcs]
    best = ModelCheckpoint(tmp_path, save_last=True)
    module = fitted(Module, tmp_path, *order, best, enable_checkpointing=True)
    trained = {name: value.clone() for name, value in module.net.state_dict().items()}
    model = SubspaceModel.from_checkpoint(tmp_path / "last.ckpt", Net())
    saved = model.module.state_dict()
    assert all(torch.equal(value, saved[name]) for name, value in trained.items()), "the checkpoint has other weights"
    assert model.runner.statistics_fit()
    # The curve is of the averages, as the validation of alpha = 1 is.
    reference = Net()
    reference.load_state_dict({**trained, **averages.average})
    weights = SubspaceModel(reference, subspace="point")
    assert {point.weights for point in lcs.curve} == {weights.runner.fingerprint()}
    hits = (reference.eval()(digits(64, 32).tensors[0]).argmax(1) == digits(64, 32).tensors[1]).float().mean()
    assert lcs.curve[-1].metrics["val_acc"] == pytest.approx(float(hits), abs=TOLERANCE)
    with pytest.raises(ValueError, match="other weights"):
        model.save(tmp_path / "best.lcs", levels=lcs.curve)


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_a_plain_checkpoint_has_no_curve(tmp_path):
    fitted(Module, tmp_path, ModelCheckpoint(tmp_path, save_last=True), enable_checkpointing=True)
    lcs = small_callback()
    trainer = L.Trainer(accelerator="cpu", callbacks=[lcs], logger=CSVLogger(tmp_path), enable_progress_bar=False)
    with pytest.warns(UserWarning, match="was saved without LCSCallback"):
        trainer.validate(Module(), loader(digits(64, 32)), ckpt_path=tmp_path / "last.ckpt", verbose=False)
    assert lcs.curve == []
