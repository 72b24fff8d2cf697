"""The user's code runs as under plain Lightning: nothing that a level does leaves a trace."""

import collections
import functools
import random

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import Logger
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from tests.integration.support import Counter, Module, Net, digits, fitted, small_callback

# Sums in another order differ by rounding.
TOLERANCE = 1e-6


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
    ours = fitted(Busy, tmp_path, counters[1], small_callback(**options))
    if options["mode"] == "quantized":
        # alpha = 1 is a level of its own there, whose predictions are not those of the plain network.
        assert (ours.steps, ours.updates, ours.outputs["draws"]) == (plain.steps, plain.updates, plain.outputs["draws"])
    else:
        assert ours.state() == plain.state()
    assert counters[0].batches == counters[1].batches
    assert counters[0].seen == counters[1].seen


def test_without_the_snapshot_the_state_is_another(tmp_path, monkeypatch):
    monkeypatch.setattr("lightning_lcs.training.user_code.snapshot.Snapshot.restore", lambda self: None)
    plain, ours = fitted(Busy, tmp_path), fitted(Busy, tmp_path, small_callback())
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
    seen, lcs = [], small_callback(recalibration={"images": 0})
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
    for callbacks in ([], [small_callback()]):
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
    found = [
        fitted(functools.partial(Adversarial, how), tmp_path, small_callback(**options)) for how in ("backward", "grad")
    ]
    for one, other in zip(found[0].state_dict().values(), found[1].state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, rtol=0.0, atol=TOLERANCE)


def test_a_gradient_penalty_trains_and_recalibrates(tmp_path):
    lcs = small_callback()
    fitted(functools.partial(Adversarial, "penalty"), tmp_path, lcs)
    assert set(lcs.subspace_model.statistics) >= {0.0, 0.5}


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
    fitted(Shows, tmp_path, small_callback(), logger=loggers[1])
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
        fitted(Evaluates, tmp_path, small_callback())


@pytest.mark.parametrize("mode", ["unstructured", "quantized"])
@pytest.mark.parametrize("validated", [True, False])
@pytest.mark.filterwarnings("ignore:no validation data")
def test_running_statistics_are_those_of_the_last_weights(tmp_path, mode, validated):
    """No step of these modes visits the network's own batch norms, which a plain checkpoint holds."""
    lcs = small_callback(mode=mode, recalibration={"images": 64, "levels": [0.0, 0.5]})
    without = {} if validated else {"limit_val_batches": 0, "num_sanity_val_steps": 0}
    module = fitted(Module, tmp_path, lcs, **without)
    with torch.no_grad():
        hidden = module.net.conv1(digits(0, 64).tensors[0]).mean((0, 2, 3))
    # Eight bits round weights and inputs.
    scale = hidden.abs().max()
    assert (module.net.norm1.running_mean - hidden).abs().max() <= (0.05 if mode == "quantized" else 1e-4) * scale


class Once(Module):
    """Registers hooks and a group of its optimizer in its first step."""

    def __init__(self):
        super().__init__()
        self.more, self.calls, self.done = nn.Parameter(torch.zeros(1)), [], False

    def training_step(self, batch, batch_idx):
        if not self.done:
            self.done = True
            self.loss.register_forward_hook(lambda *_: self.calls.append(1))
            self.net.head.weight.register_hook(lambda gradient: gradient * 0.5)
            self.trainer.optimizers[0].add_param_group({"params": [self.more], "lr": 0.5})
        return super().training_step(batch, batch_idx) + self.more.sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.net.parameters(), 0.0)


def test_what_a_step_registers_once(tmp_path):
    lcs = small_callback(mode="structured", sampling={"sampler": [0.0, 1.0]})
    plain, ours = fitted(Once, tmp_path, num_sanity_val_steps=0), fitted(Once, tmp_path, lcs, num_sanity_val_steps=0)
    assert len(plain.calls) == len(ours.calls)
    assert torch.equal(plain.more, ours.more)
    assert [len(group["params"]) for group in ours.trainer.optimizers[0].param_groups] == [9, 1]
    assert len(ours.net.head.weight._backward_hooks) == 1
