"""Beside Lightning's other callbacks, in either order in the list: training is what it is without them."""

import csv
import functools

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    DeviceStatsMonitor,
    EarlyStopping,
    GradientAccumulationScheduler,
    LearningRateFinder,
    LearningRateMonitor,
    ModelCheckpoint,
    ModelSummary,
    RichModelSummary,
    RichProgressBar,
    ThroughputMonitor,
    Timer,
    TQDMProgressBar,
)
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.tuner import Tuner
from torch import nn

from lightning_lcs import SubspaceModel
from lightning_lcs.functional.sampling import SAMPLERS, step_generator
from tests.integration.beside import Endpoints, Mine, assert_same_curve, assert_same_training, either_order, fit
from tests.integration.support import digits, lcs, loader, older_lightning, trainer

# Five steps in float32 against the same sums in another order, relative to the largest entry of each tensor.
UPDATE_TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Runs without another callback, each made once."""

    @functools.cache
    def run(kind=Mine, max_epochs=1, **arguments):
        return fit(tmp_path_factory.mktemp("plain"), make=lambda: kind(**arguments), max_epochs=max_epochs)

    return run


class Values(Callback):
    """A monitored value after every epoch."""

    def __init__(self, name):
        self.name = name
        self.seen = []

    def on_train_epoch_end(self, trainer, pl_module):
        self.seen.append(trainer.callback_metrics[self.name].item())


def stop_of(values, patience):
    """Epochs after which as many have brought nothing better."""
    best, waited = -1.0, 0
    for epoch, value in enumerate(values):
        best, waited = (value, 0) if value > best else (best, waited + 1)
        if waited == patience:
            return epoch + 1
    return None


def run_of(folder, *others, first=True, epochs=12):
    options = {"make": lambda: Mine(lr=1.2), "callback": lcs(every_n_epochs=1), "max_epochs": epochs}
    return fit(folder, *others, first=first, **options)


@pytest.fixture(scope="module")
def unstopped(tmp_path_factory):
    """What the monitors see of a run that nothing stops."""
    monitors = Values("val_acc"), Values("lcs/val_acc/mean")
    run_of(tmp_path_factory.mktemp("unstopped"), *monitors)
    return {values.name: values.seen for values in monitors}


@either_order
@pytest.mark.parametrize("monitor", ["val_acc", "lcs/val_acc/mean"])
def test_early_stopping(tmp_path, first, monitor, unstopped):
    """It stops where the values say so, and the run is the one that was meant to end there."""
    stop = stop_of(unstopped[monitor], 2)
    assert 3 < stop < 12
    stopping = EarlyStopping(monitor, mode="max", patience=2)
    stopped, callback, run = run_of(tmp_path, stopping, first=first)
    assert stopping.stopped_epoch + 1 == run.current_epoch == stop
    meant, meant_callback, _ = run_of(tmp_path, epochs=stop)
    assert_same_training(stopped, meant)
    assert_same_curve(callback, meant_callback)


@either_order
def test_early_stopping_on_the_curve_after_validation(tmp_path, first):
    """Its way with ``check_val_every_n_epoch`` or ``val_check_interval``."""
    stopping = EarlyStopping("lcs/val_acc/mean", mode="max", min_delta=1.0, patience=1, check_on_train_epoch_end=False)
    _, callback, run = fit(tmp_path, stopping, first=first, callback=lcs(every_n_epochs=1), max_epochs=4)
    assert run.current_epoch == 2
    assert stopping.best_score is not None
    assert len(callback.curve) == 3


@either_order
def test_model_checkpoint_by_the_curve(tmp_path, first):
    """The best by the mean over the curve is kept, with what it takes to run at any level."""
    values = Values("lcs/val_acc/mean")
    plain = fit(tmp_path, values, callback=lcs(every_n_epochs=1), max_epochs=4)
    saving = ModelCheckpoint(tmp_path, "{epoch}", monitor="lcs/val_acc/mean", mode="max", save_top_k=2, save_last=True)
    options = {"max_epochs": 4, "enable_checkpointing": True}
    callback = lcs(every_n_epochs=1)
    watching = Endpoints(callback)
    saved = fit(tmp_path, saving, watching, first=first, callback=callback, **options)
    assert_same_training(saved[0], plain[0])
    assert_same_curve(saved[1], plain[1])
    assert saving.best_model_score.item() == max(values.seen)
    kept = {float(score) for score in saving.best_k_models.values()}
    assert kept == set(sorted(values.seen)[-2:])
    assert len(list(tmp_path.glob("*.ckpt"))) == 3
    for path in tmp_path.glob("*.ckpt"):
        model = SubspaceModel.from_checkpoint(path, Mine())
        assert set(model.statistics) == {0.0, 0.5}
        epoch = torch.load(path, weights_only=True)["epoch"]
        for pair, expected in zip(model.endpoint_pairs(), watching.seen[epoch + 1], strict=True):
            assert all(torch.equal(a, b) for a, b in zip(pair, expected, strict=True))


@pytest.mark.skipif(older_lightning, reason="after Lightning 2.5's finder other batches come, without LCSCallback, too")
@either_order
def test_learning_rate_finder(tmp_path, first, plain):
    """The rate that it suggests is set, and the run is the one that starts with this rate."""
    finder = LearningRateFinder(min_lr=1e-4, max_lr=0.5, num_training_steps=20, early_stop_threshold=None)
    found = fit(tmp_path, finder, first=first, make=lambda: Mine(lr=9.0, batch_size=4), max_epochs=2)
    suggested = finder.optimal_lr.suggestion()
    assert found[0].lr == suggested
    assert 1e-4 < suggested < 0.5
    meant, callback, _ = plain(Mine, max_epochs=2, lr=suggested, batch_size=4)
    assert_same_training(found[0], meant)
    assert_same_curve(found[1], callback)
    trained = {id(p) for group in found[2].optimizers[0].param_groups for p in group["params"]}
    assert {id(p) for pair in found[1].subspace_model.endpoint_pairs() for p in pair} <= trained


def test_the_tuner(tmp_path, plain):
    """It ends a fit of its own before the first step; the fit afterwards is the one with what it has found."""
    torch.manual_seed(3)
    module, callback = Mine(lr=9.0, batch_size=4), lcs()
    run = trainer(tmp_path, callback, max_epochs=2)
    found = Tuner(run).lr_find(module, min_lr=1e-4, max_lr=0.5, num_training=20, early_stop_threshold=None)
    assert not {"training_step", "backward", "on_load_checkpoint"} & set(module.__dict__)
    run.fit(module)
    meant, meant_callback, _ = plain(Mine, max_epochs=2, lr=found.suggestion(), batch_size=4)
    assert_same_training(module, meant)
    assert_same_curve(callback, meant_callback)


@either_order
@pytest.mark.parametrize("mode", ["power", "binsearch"])
def test_batch_size_finder(tmp_path, first, mode, plain):
    """The size that it finds is used, and the run is the one that starts with this size."""
    # Lightning 2.5 tries a size more, and takes it whole.
    margin, best = ({}, 16) if older_lightning else ({"margin": 0.0}, 8)
    finder = BatchSizeFinder(mode, steps_per_trial=1, init_val=4, max_trials=2, **margin)
    found = fit(tmp_path, finder, first=first)
    assert found[0].batch_size == finder.optimal_batch_size == best
    meant, callback, _ = plain(Mine, batch_size=best)
    assert_same_training(found[0], meant)
    assert_same_curve(found[1], callback)


def logged(folder, *others, **options):
    """A run with a logger, and what it wrote: column -> values."""
    ran = fit(folder, *others, logger=CSVLogger(folder, "logs", ""), **options)
    with (folder / "logs" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return ran, {name: [row[name] for row in rows if row[name]] for name in rows[0]}


class Scheduled(Mine):
    """A rate that falls at every step."""

    flops_per_batch = 1

    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        return [optimizer], [{"scheduler": torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5), "interval": "step"}]


@either_order
def test_learning_rate_monitor(tmp_path, first, plain):
    """One rate per step, whatever the number of levels."""
    monitor = LearningRateMonitor("step", log_momentum=True)
    watched, columns = logged(tmp_path, monitor, first=first, make=Scheduled)
    assert_same_training(watched[0], plain(Scheduled)[0])
    assert [float(value) for value in columns["lr-SGD"]] == [0.1, 0.05, 0.025]
    assert [float(value) for value in columns["lr-SGD-momentum"]] == [0.9, 0.9, 0.9]


@pytest.mark.skipif(older_lightning, reason="Lightning 2.5's monitor fails at a validation, without LCSCallback, too")
@either_order
def test_throughput_monitor(tmp_path, first, plain):
    """It counts each image once, and none of those that the curve reads."""
    monitor = ThroughputMonitor(lambda batch: len(batch[0]), window_size=2)
    watched, columns = logged(
        tmp_path / "watched", monitor, first=first, make=Scheduled, callback=lcs(every_n_epochs=1)
    )
    assert_same_training(watched[0], plain(Scheduled)[0])
    assert [float(value) for value in columns["train/samples"]] == [16, 32, 48]
    assert [float(value) for value in columns["validate/samples"]] == [16, 32, 40]


@either_order
@pytest.mark.parametrize("kind", [ModelSummary, RichModelSummary])
def test_model_summary(tmp_path, first, kind, plain):
    """The numbers are those of the user's own network, as without LCSCallback."""
    seen = []

    class Kept(kind):
        @staticmethod
        def summarize(summary_data, total_parameters, trainable_parameters, *args, **kwargs):
            seen.append((total_parameters, trainable_parameters))
            kind.summarize(summary_data, total_parameters, trainable_parameters, *args, **kwargs)

    def make():
        module = Mine()
        module.example_input_array = digits(0, 2).tensors[0]
        return module

    watched = fit(tmp_path, Kept(max_depth=-1), first=first, make=make)
    count = sum(p.numel() for p in Mine().parameters())
    assert seen == [(count, count)]
    assert_same_training(watched[0], plain()[0])


@either_order
@pytest.mark.parametrize("kind", [RichProgressBar, TQDMProgressBar])
def test_progress_bars(tmp_path, first, kind, plain, capsys):
    """The curve is printed beside the bar."""
    watched = fit(tmp_path, kind(), first=first, enable_progress_bar=True)
    assert "val_acc" in capsys.readouterr().out
    assert_same_training(watched[0], plain()[0])
    assert_same_curve(watched[1], plain()[1])


@either_order
@pytest.mark.parametrize("kind", [lambda: Timer("00:01:00:00"), lambda: DeviceStatsMonitor(cpu_stats=False)])
def test_other_watchers(tmp_path, first, kind, plain):
    watched, _ = logged(tmp_path, kind(), first=first)
    assert_same_training(watched[0], plain()[0])


@either_order
def test_gradient_accumulation_scheduler(tmp_path, first):
    """Every batch in the first epoch, pairs of batches in the second: an explicit mean of losses."""
    torch.manual_seed(3)
    model = SubspaceModel(Mine().net, subspace="point").train()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    batches = list(loader(digits(0, 48)))
    for index, (images, labels) in enumerate(batches * 2):
        accumulate, last = (1, True) if index < 3 else (2, index in (4, 5))
        losses = []
        for alpha in SAMPLERS["sandwich"](step_generator(0, index), 3):
            with model.at_alpha(alpha):
                losses.append(nn.functional.cross_entropy(model(images), labels) / (2 if alpha == 1.0 else 4))
        (sum(losses) / accumulate).backward()
        if last:
            optimizer.step()
            optimizer.zero_grad()
    scheduler, callback = GradientAccumulationScheduler({0: 1, 1: 2}), lcs(subspace="point")
    module, _, run = fit(tmp_path, scheduler, first=first, callback=callback, max_epochs=2)
    assert run.global_step == 5
    ours = dict(module.net.named_parameters())
    for name, expected in model.module.named_parameters():
        assert (ours[name] - expected).abs().max() <= UPDATE_TOLERANCE * expected.abs().max(), name
