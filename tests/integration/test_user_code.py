"""The user's code runs as under plain Lightning: nothing that a level does leaves a trace."""

import collections
import functools
import random

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_lcs import LCSCallback, SubspaceModel
from tests.integration.support import Module, Net, digits, loader

# Sums in another order differ by rounding.
TOLERANCE = 1e-6


def callback(**options):
    grid = {"images": 32, "levels": [0.0, 0.5]}
    return LCSCallback(**({"target": "net", "subspace": "point", "alphas": 3, "recalibration": grid} | options))


def fitted(make, path, *callbacks, epochs=2, **options):
    """A new module after two epochs on 64 images; the seed is the same for all."""
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    options = {**quiet, "enable_model_summary": False, "default_root_dir": path, "max_epochs": epochs, **options}
    L.seed_everything(3, verbose=False)
    module = make()
    train, val = loader(digits(0, 64), shuffle=True), loader(digits(64, 32))
    L.Trainer(accelerator="cpu", callbacks=list(callbacks), **options).fit(module, train, val)
    return module


class Meter:
    """A user's own meter."""

    def __init__(self):
        self.total, self.history = 0.0, []

    def update(self, value):
        self.total += value
        self.history.append(value)


class Busy(Module):
    """Keeps state of every kind, in its steps and in its hooks; its weights stay as they are."""

    def __init__(self):
        super().__init__()
        self.lr = 0.0
        self.teacher = Net().requires_grad_(False)
        self.updates = nn.Parameter(torch.zeros(1), requires_grad=False)
        self.register_buffer("queue", torch.zeros(8, 10))
        self.center = torch.zeros(10)
        self.steps, self.best = 0, float("inf")
        self.array = np.zeros(10)
        self.meter, self.recent = Meter(), collections.deque(maxlen=5)
        self.outputs = {"train": [], "val": [], "hooks": [], "draws": []}

    def training_step(self, batch, batch_idx):
        images, labels = batch
        with torch.no_grad():
            self.updates += 1
            for teacher, student in zip(self.teacher.parameters(), self.net.parameters(), strict=False):
                teacher.data.mul_(0.9).add_(student.data, alpha=0.1)
        logits = self.net(images + 0.1 * torch.rand_like(images))
        loss = F.cross_entropy(logits, labels)
        value = float(loss.detach())
        self.queue.data[batch_idx % 8] = logits.detach()[0]
        self.center.mul_(0.5).add_(logits.detach().mean(0))
        self.steps, self.best = self.steps + 1, min(self.best, value)
        self.array[self.steps % 10] = value
        self.meter.update(value)
        self.recent.append(loss.detach())
        self.outputs["train"].append(logits.detach())
        self.outputs["draws"].append((random.random(), float(np.random.rand()), float(torch.rand(1))))
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        self.outputs["val"].append(loss)
        self.meter.update(float(loss))
        self.outputs["draws"].append(float(torch.rand(1)))
        self.log("val_loss", loss)

    def on_validation_start(self):
        self.outputs["hooks"].append("start")

    def on_validation_epoch_end(self):
        self.outputs["hooks"].append("epoch end")
        self.log("val_all", torch.stack(self.outputs["val"]).mean())
        self.outputs["val"].clear()

    def on_validation_end(self):
        self.outputs["hooks"].append("end")

    def state(self):
        objects = [self.steps, self.best, self.array.tolist(), self.meter.total, self.meter.history]
        tensors = [self.queue, self.center, *self.recent, *self.outputs["train"], *self.state_dict().values()]
        return objects, self.outputs["hooks"], self.outputs["draws"], [tensor.tolist() for tensor in tensors]


class Counter(L.Callback):
    """A user's callback, which counts."""

    def __init__(self):
        self.batches = {"train": 0, "val": 0}
        self.seen = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.batches["train"] += 1

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        self.batches["val"] += 1
        pl_module.log("by_callback", float(batch_idx), batch_size=1)

    def on_validation_epoch_end(self, trainer, pl_module):
        self.seen.append(sorted(k for k in trainer.callback_metrics if not k.startswith("lcs/")))


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "structured"},
        {"mode": "unstructured", "sampling": {"sampler": [0.0, 1.0]}},
        {"mode": "quantized"},
        {"mode": "structured", "sampling": {"sampler": [0.0, 0.3, 1.0]}},
        {"mode": "structured", "every_n_epochs": 1},
    ],
    ids=str,
)
def test_all_state_is_that_of_plain_lightning(tmp_path, options):
    """The weights don't move, so that every number is the same to the last bit."""
    counters = [Counter(), Counter()]
    plain = fitted(Busy, tmp_path, counters[0])
    ours = fitted(Busy, tmp_path, counters[1], callback(**options))
    if options["mode"] == "quantized":
        # alpha = 1 is a level of its own there, whose predictions are not those of the plain network.
        assert (ours.steps, ours.updates, ours.outputs["draws"]) == (plain.steps, plain.updates, plain.outputs["draws"])
    else:
        assert ours.state() == plain.state()
    assert counters[0].batches == counters[1].batches
    assert counters[0].seen == counters[1].seen


def test_without_the_snapshot_the_state_is_another(tmp_path, monkeypatch):
    monkeypatch.setattr("lightning_lcs.training.user_state.Snapshot.restore", lambda self: None)
    plain, ours = fitted(Busy, tmp_path), fitted(Busy, tmp_path, callback())
    assert ours.state() != plain.state()


class Pops(Module):
    """Changes its batch: takes an entry out, scales in place, appends."""

    def __init__(self, seen):
        super().__init__()
        self.see = seen.append

    def training_step(self, batch, batch_idx):
        self.see((sorted(batch), float(batch["image"].sum()), len(batch["notes"])))
        labels = batch.pop("label")
        batch["image"].mul_(0.5)
        batch["notes"].append("seen")
        return F.cross_entropy(self.net(batch["image"]), labels)

    def validation_step(self, batch, batch_idx):
        self.log("val_sum", batch["image"].sum())
        batch["image"].zero_()
        self.net(batch["image"])


def test_each_level_gets_the_batch_as_it_came(tmp_path):
    images, labels = digits(0, 48).tensors
    batches = [{"image": images[i : i + 16].clone(), "label": labels[i : i + 16], "notes": []} for i in (0, 16, 32)]
    validated = [{"image": batch["image"].clone()} for batch in batches]
    expected = [(sorted(batch), float(batch["image"].sum()), 0) for batch in batches]
    total = float(torch.stack([batch["image"].sum() for batch in validated]).mean())
    seen, lcs = [], callback(recalibration={"images": 0})
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "max_epochs": 1}
    trainer = L.Trainer(accelerator="cpu", callbacks=[lcs], num_sanity_val_steps=0, default_root_dir=tmp_path, **quiet)
    trainer.fit(Pops(seen), DataLoader(batches, batch_size=None), DataLoader(validated, batch_size=None))
    assert len(seen) > len(batches)
    assert all(entry in expected for entry in seen)
    # The validation of alpha = 1 zeroes the images, as it does in plain Lightning; the levels find zeros, not more.
    assert lcs.curve[-1].metrics["val_sum"] == pytest.approx(total, abs=TOLERANCE * abs(total) + TOLERANCE)


class Schedules(Module):
    """Changes the settings of its optimizer in its steps."""

    def training_step(self, batch, batch_idx):
        self.trainer.optimizers[0].param_groups[0]["lr"] *= 2.0
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch, batch_idx):
        self.trainer.optimizers[0].param_groups[0]["momentum"] *= 0.5
        super().validation_step(batch, batch_idx)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 1e-6, momentum=0.9)


def test_settings_of_an_optimizer_that_a_step_changes(tmp_path):
    found = []
    for callbacks in ([], [callback()]):
        module = fitted(Schedules, tmp_path, *callbacks)
        found.append({k: v for k, v in module.trainer.optimizers[0].param_groups[0].items() if k != "params"})
    assert found[0] == found[1]


class Adversarial(Module):
    """A step with gradients of its own, by one of three ways."""

    def __init__(self, how):
        super().__init__()
        self.how = how

    def training_step(self, batch, batch_idx):
        images = batch[0].clone().requires_grad_(True)
        loss = F.cross_entropy(self.net(images), batch[1])
        if self.how == "penalty":
            return loss + torch.autograd.grad(loss, images, create_graph=True)[0].square().sum()
        if self.how == "backward":
            loss.backward()
            gradient = images.grad
        else:
            (gradient,) = torch.autograd.grad(loss, images)
        return F.cross_entropy(self.net((images + 0.1 * gradient.sign()).detach()), batch[1])


@pytest.mark.parametrize("mode", ["structured", "unstructured", "quantized"])
@pytest.mark.parametrize("sampler", [[0.0, 1.0], [0.5], "uniform"])
def test_gradients_of_a_backward_inside_the_step_are_thrown_away(tmp_path, mode, sampler):
    options = {"mode": mode, "sampling": {"sampler": sampler}}
    found = [fitted(functools.partial(Adversarial, how), tmp_path, callback(**options)) for how in ("backward", "grad")]
    for one, other in zip(found[0].state_dict().values(), found[1].state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, rtol=0.0, atol=TOLERANCE)


def test_a_gradient_penalty_trains_and_recalibrates(tmp_path):
    lcs = callback()
    fitted(functools.partial(Adversarial, "penalty"), tmp_path, lcs)
    assert set(lcs.subspace_model.statistics) >= {0.0, 0.5}


class Sensitivity(Module):
    """Needs gradients in validation."""

    def validation_step(self, batch, batch_idx):
        with torch.enable_grad():
            images = batch[0].clone().requires_grad_(True)
            (gradient,) = torch.autograd.grad(self.net(images).sum(), images)
        self.log("val_gradient", gradient.norm())


def test_gradients_in_validation(tmp_path):
    lcs = callback()
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
    lcs = callback()
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
    lcs = callback()
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
    visited, lcs = [], callback()
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
    trainer = L.Trainer(accelerator="cpu", callbacks=[callback()], default_root_dir=tmp_path, **options)
    trainer.fit(Stages(stages), loader(digits(0, 32)), loader(digits(32, 8), batch_size=8))
    assert stages == {("train", True)}


class Recorder(Logger):
    """A logger that keeps what its experiment was told."""

    def __init__(self):
        super().__init__()
        self.shown, self.metrics = [], []

    name, version = "recorder", "0"

    @property
    def experiment(self):
        return self

    def show(self, step, value):
        self.shown.append((step, value))

    def log_metrics(self, metrics, step=None):
        self.metrics.append((sorted(k for k in metrics if not k.startswith("lcs/")), step))

    def log_hyperparams(self, *args, **kwargs):
        pass


class Shows(Module):
    """Writes to its logger's experiment in its steps."""

    def training_step(self, batch, batch_idx):
        self.logger.experiment.show(self.global_step, "train")
        assert isinstance(self.logger, Recorder)
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch, batch_idx):
        self.logger.experiment.show(self.global_step, "val")
        self.logger.log_metrics({"own": 1.0}, step=self.global_step)
        super().validation_step(batch, batch_idx)


def test_a_logger_is_told_of_alpha_1_only(tmp_path):
    loggers = [Recorder(), Recorder()]
    fitted(Shows, tmp_path, logger=loggers[0])
    fitted(Shows, tmp_path, callback(), logger=loggers[1])
    assert loggers[0].shown == loggers[1].shown
    assert loggers[0].metrics == [entry for entry in loggers[1].metrics if entry[0]]
    assert type(loggers[1]) is Recorder


def test_eval_inside_a_step_below_full_width_is_a_warning(tmp_path):
    class Evaluates(Module):
        def training_step(self, batch, batch_idx):
            self.net.eval()
            with torch.no_grad():
                self.net(batch[0])
            self.net.train()
            return super().training_step(batch, batch_idx)

    with pytest.warns(UserWarning, match="on the batch-norm statistics of alpha=1"):
        fitted(Evaluates, tmp_path, callback())


@pytest.mark.filterwarnings("ignore:Total length of `DataLoader`")
def test_an_empty_validation_loader_is_a_warning(tmp_path):
    lcs = callback()
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
    lcs, averages = callback(recalibration={"images": 64, "levels": [0.0, 0.5]}), Averages(where)
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
    lcs = callback()
    trainer = L.Trainer(accelerator="cpu", callbacks=[lcs], logger=CSVLogger(tmp_path), enable_progress_bar=False)
    with pytest.warns(UserWarning, match="was saved without LCSCallback"):
        trainer.validate(Module(), loader(digits(64, 32)), ckpt_path=tmp_path / "last.ckpt", verbose=False)
    assert lcs.curve == []
