"""What LCSCallback costs inside a Lightning trainer: a step, a recalibration, a curve."""

import copy
import itertools
import statistics
import tempfile
import time
from collections.abc import Iterator

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_lcs import LCSCallback, SubspaceModel, levels
from lightning_lcs.functional.sampling import sandwich, step_generator
from lightning_lcs.training.curves.evaluation import evaluate_level
from tests.benchmarks.timing import images, resnet10t

pytestmark = [pytest.mark.benchmark, pytest.mark.filterwarnings("ignore")]
BATCH = 128


class Classifier(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = resnet10t()

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", nn.functional.cross_entropy(self.net(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)


def data(batches: int) -> DataLoader:
    x = images(BATCH * batches, 1, 32)
    return DataLoader(TensorDataset(x, torch.arange(len(x)) % 10), BATCH)


def trainer(*callbacks: L.Callback, **options: object) -> L.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    quiet["default_root_dir"] = tempfile.mkdtemp()
    return L.Trainer(
        accelerator="cpu", callbacks=list(callbacks), enable_model_summary=False, num_sanity_val_steps=0,
        **{**quiet, "max_epochs": 1, **options},
    )  # fmt: skip


class Clock(L.Callback):
    """Runs a hand-written step of another network between the trainer's steps, and times both.

    A step of a third one goes before them: oneDNN compiles a kernel for every shape that it has not seen yet, which the
    first to run at a width drawn at random would pay for.
    """

    def __init__(self, by_hand: Iterator[None], first: Iterator[None] | None = None) -> None:
        self.by_hand = by_hand
        self.first = itertools.repeat(None) if first is None else first
        self.times: list[tuple[float, float]] = []
        self._start = 0.0

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        next(self.first)
        self._start = time.perf_counter()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        swept = time.perf_counter() - self._start
        pl_module.zero_grad()
        start = time.perf_counter()
        next(self.by_hand)
        self.times.append((swept, time.perf_counter() - start))


def _hand_written(network: nn.Module, loader: DataLoader) -> Iterator[None]:
    """The same three losses in a plain PyTorch loop: one backward per level, one optimizer step."""
    model = SubspaceModel(network, images(2, 1, 32), subspace="point").train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    for step, (x, y) in enumerate(loader):
        optimizer.zero_grad()
        for alpha in sandwich(step_generator(0, step), 3):
            with model.runner.training_level(alpha):
                nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        for parameter in network.parameters():
            parameter.grad = None
        yield


class Manual(Classifier):
    """The same step with manual optimization."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        for level in levels(self):
            self.manual_backward(level.weight * super().training_step(batch, batch_idx))
        optimizer.step()


@pytest.mark.parametrize("kind", [Classifier, Manual])
def test_a_step_under_the_trainer_costs_what_it_costs_by_hand(kind):
    module = kind()
    loader = data(26)
    clock = Clock(*(_hand_written(copy.deepcopy(module.net), loader) for _ in range(2)))
    trainer(LCSCallback(subspace="point", sampling={"levels": 0}), clock, limit_val_batches=0).fit(module, loader)
    times = clock.times[4:]  # the first ones trace
    ratio = statistics.median(swept / by_hand for swept, by_hand in times)
    print(f"\n{kind.__name__}: a step under the trainer / by hand: {ratio:.3f}")
    assert ratio <= 1.03


def _plain(network: nn.Module, loader: DataLoader) -> Iterator[None]:
    """Plain steps of the full network."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    for x, y in loader:
        optimizer.zero_grad()
        nn.functional.cross_entropy(network.train()(x), y).backward()
        optimizer.step()
        for parameter in network.parameters():
            parameter.grad = None
        yield


@pytest.mark.parametrize(("mode", "most"), [("structured", 0.95), ("unstructured", 1.45), ("quantized", 1.8)])
def test_a_step_on_a_split_batch_against_a_plain_step(mode, most):
    module = Classifier()
    loader = data(30)
    clock = Clock(_plain(copy.deepcopy(module.net), loader))
    lcs = LCSCallback(mode, subspace="point", sampling={"split": True, "levels": 5})
    trainer(lcs, clock, limit_val_batches=0).fit(module, loader)
    ratio = statistics.median(swept / by_hand for swept, by_hand in clock.times[10:])  # kernels for new shapes
    print(f"\n{mode}: a step on a split batch under the trainer / a plain step by hand: {ratio:.3f}")
    assert ratio <= most


class Recalibrate(L.Callback):
    """Times one more recalibration at the end of a fit."""

    def __init__(self, lcs: LCSCallback) -> None:
        self.lcs = lcs
        self.seconds = 0.0

    def on_train_end(self, trainer, pl_module):
        start = time.perf_counter()
        upkeep = self.lcs._upkeep
        upkeep.recalibrator.run(trainer, pl_module, self.lcs.subspace_model, also=upkeep.measurement.alphas)
        self.seconds = time.perf_counter() - start


def test_a_recalibration_costs_a_tenth_of_an_epoch_at_most():
    """Of 60,000 images, as on Fashion-MNIST; the epoch is reckoned from the median step."""
    callback = LCSCallback(subspace="point")
    clock, recalibrate = Clock(itertools.repeat(None)), Recalibrate(callback)
    trainer(callback, clock, recalibrate, limit_val_batches=0).fit(Classifier(), data(20))
    epoch = statistics.median(step for step, _ in clock.times[4:]) * 60_000 / BATCH
    share = recalibrate.seconds / epoch
    print(f"\nrecalibration of {len(callback.subspace_model.statistics)} levels / an epoch: {share:.3f}")
    assert share <= 0.1


def test_a_curve_costs_seven_native_validation_passes():
    module, callback = Classifier(), LCSCallback(subspace="point")
    loader = data(8)
    run = trainer(callback)
    run.fit(module, data(2), loader)
    model = callback.subspace_model
    levels = [point.alpha for point in callback.curve]
    natives = {alpha: model.materialize(alpha) for alpha in levels}
    module.eval()

    def native_pass(network: nn.Module) -> None:
        with torch.inference_mode():
            for x, y in loader:
                nn.functional.cross_entropy(network(x), y)

    callback.setup(run, module, "validate")
    times: list[tuple[float, float]] = []
    for _ in range(8):
        start = time.perf_counter()
        for alpha in levels:
            evaluate_level(run, module, model, alpha)
        curve = time.perf_counter() - start
        start = time.perf_counter()
        for network in natives.values():
            native_pass(network)
        times.append((curve, time.perf_counter() - start))
    callback.teardown(run, module, "validate")
    ratio = statistics.median(curve / native for curve, native in times)
    print(f"\na curve of {len(levels)} levels / as many native validation passes: {ratio:.3f}")
    # Each level is a validation by Lightning's own loop, with its hooks and its logging.
    assert ratio <= 1.1
