"""When the curve is measured."""

import pytest
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from lightning_lcs.training.curves.measurement import Measurement
from tests.integration.support import Module, lcs, trainer


@pytest.fixture
def runs(monkeypatch):
    """Global step of every measurement."""
    steps = []
    original = Measurement.run

    def spy(self, trainer, *args, **kwargs):
        steps.append(trainer.global_step)
        return original(self, trainer, *args, **kwargs)

    monkeypatch.setattr(Measurement, "run", spy)
    return steps


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"max_epochs": 3}, [9]),
        ({"max_epochs": 2, "val_check_interval": 1}, [6]),
        ({"max_epochs": 3, "check_val_every_n_epoch": 2}, [9]),
        ({"max_epochs": 1, "check_val_every_n_epoch": 5}, [3]),
        ({"max_epochs": -1, "max_steps": 6}, [6]),
        ({"max_epochs": 9, "max_steps": 4}, [4]),
        ({"max_epochs": 1, "accumulate_grad_batches": 2}, [2]),
        ({"fast_dev_run": True}, [1]),
    ],
    ids=[
        "each-epoch",
        "each-batch",
        "every-second-epoch",
        "no-validation",
        "steps",
        "steps-within-an-epoch",
        "accumulated",
        "fast-dev-run",
    ],
)
def test_once_by_default(tmp_path, train, val, runs, options, expected):
    callback = lcs()
    trainer(tmp_path, callback, **options).fit(Module(), train, val)
    assert runs == expected
    assert len(callback.curve) == 3
    assert "val_acc" in callback.curve[0].metrics


def test_every_n_epochs(tmp_path, train, val, runs):
    trainer(tmp_path, lcs(every_n_epochs=2), max_epochs=5).fit(Module(), train, val)
    assert runs == [6, 12, 15]


def test_every_epoch_with_several_validations_in_it(tmp_path, train, val, runs):
    trainer(tmp_path, lcs(every_n_epochs=1), max_epochs=2, val_check_interval=1).fit(Module(), train, val)
    assert runs == [3, 6]


def test_never_in_the_sanity_check(tmp_path, train, val, runs):
    class Before(Callback):
        def on_train_start(self, trainer, pl_module):
            self.runs = list(runs)

    before = Before()
    callback = lcs(every_n_epochs=1)
    trainer(tmp_path, callback, before, num_sanity_val_steps=2).fit(Module(), train, val)
    assert before.runs == []
    assert runs == [3]


@pytest.mark.parametrize("first", [True, False])
def test_early_stopping_still_gives_a_curve(tmp_path, train, val, runs, first):
    stopping, callback = EarlyStopping("val_loss", patience=1, min_delta=10.0), lcs()
    order = [stopping, callback] if first else [callback, stopping]
    run = trainer(tmp_path, *order, max_epochs=9)
    run.fit(Module(), train, val)
    assert stopping.stopped_epoch == 1
    assert runs == [6]
    assert len(callback.curve) == 3


def test_a_mean_over_the_curve_can_be_monitored(tmp_path, train, val):
    class Means(Callback):
        def __init__(self):
            self.seen = []

        def on_train_epoch_end(self, trainer, pl_module):
            self.seen.append(trainer.callback_metrics["lcs/val_loss/mean"].item())

    means, best = Means(), ModelCheckpoint(tmp_path, monitor="lcs/val_loss/mean", filename="best")
    callback = lcs(every_n_epochs=1)
    trainer(tmp_path, callback, means, best, max_epochs=3, enable_checkpointing=True).fit(Module(), train, val)
    assert len(means.seen) == 3
    assert best.best_model_score.item() == min(means.seen)
    last = [point.metrics["val_loss"] for point in callback.curve]
    assert abs(means.seen[-1] - sum(last) / 3) < 1e-6


@pytest.mark.filterwarnings("ignore:no validation data. the accuracy-efficiency curve:UserWarning")
def test_without_validation_data_there_is_no_curve(tmp_path, train):
    callback = lcs()
    trainer(tmp_path, callback).fit(Module(), train)
    assert callback.curve == []
    # The statistics are there all the same: the model runs at any level.
    assert callback.subspace_model.statistics


def test_missing_validation_data_is_said(tmp_path, train):
    with pytest.warns(UserWarning, match="no validation data: the accuracy-efficiency curve is not measured"):
        trainer(tmp_path, lcs()).fit(Module(), train)
