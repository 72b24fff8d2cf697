"""The curve of a saved checkpoint, by validate and test; and predictions at a level."""

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from lightning_lcs import BatchNormRecalibration, LCSCallback, SubspaceModel, TradeoffMonitor
from tests.integration.support import Data, Module, Net, digits, lcs, loader, trainer

# Losses near 2.3: Lightning averages those of alpha = 1 in float32 at the end of fit, the curve averages in float64.
METRIC_TOLERANCE = 1e-5
# The same operations, but another memory layout (a graph of its own) or other kernels (another batch size).
OUTPUT_TOLERANCE = 1e-5


def fitted(folder, *callbacks, **options):
    """A trained module's checkpoint, and the callback that trained it."""
    callback = lcs()
    best = ModelCheckpoint(folder, filename="model")
    run = trainer(folder, callback, *callbacks, best, enable_checkpointing=True, **{"max_epochs": 2, **options})
    run.fit(Module(), datamodule=Data())
    return callback, folder / "model.ckpt"


def assert_same_metrics(curve, expected):
    assert [point.alpha for point in curve] == [point.alpha for point in expected]
    for point, other in zip(curve, expected, strict=True):
        assert point.metrics.keys() == other.metrics.keys()
        for name, value in other.metrics.items():
            assert abs(point.metrics[name] - value) <= METRIC_TOLERANCE
        assert (point.params, point.macs, point.size_bytes) == (other.params, other.macs, other.size_bytes)


@pytest.mark.parametrize("data", ["datamodule", "loader"])
def test_validate_gives_the_curve_of_the_end_of_fit(tmp_path, data):
    callback, path = fitted(tmp_path)
    again = lcs()
    module = Module()
    # With the statistics in the checkpoint, validation needs no training data.
    source = {"datamodule": Data()} if data == "datamodule" else {"dataloaders": Data().val_dataloader()}
    results = trainer(tmp_path, again).validate(module, **source, ckpt_path=path, verbose=False)
    assert_same_metrics(again.curve, callback.curve)
    assert abs(results[0]["val_acc"] - callback.curve[-1].metrics["val_acc"]) <= METRIC_TOLERANCE
    for (w0, w1), (v0, v1) in zip(
        again.subspace_model.endpoint_pairs(), callback.subspace_model.endpoint_pairs(), strict=True
    ):
        assert torch.equal(w0, v0)
        assert torch.equal(w1, v1)


def test_test_measures_the_test_data(tmp_path):
    callback, path = fitted(tmp_path)
    again = lcs()
    trainer(tmp_path, again).test(Module(), datamodule=Data(), ckpt_path=path, verbose=False)
    model = callback.subspace_model.eval()
    images, labels = digits(100, 40).tensors
    for point in again.curve:
        with model.at_alpha(point.alpha), torch.no_grad():
            accuracy = (model(images).argmax(1) == labels).float().mean().item()
        assert set(point.metrics) == {"test_acc"}
        assert abs(point.metrics["test_acc"] - accuracy) <= METRIC_TOLERANCE


def test_validate_and_test_after_fit_in_the_same_trainer(tmp_path):
    callback = lcs()
    run, module = trainer(tmp_path, callback), Module()
    run.fit(module, datamodule=Data())
    at_the_end = list(callback.curve)
    statistics = callback.subspace_model.statistics[0.0]
    run.validate(module, datamodule=Data(), verbose=False)
    assert_same_metrics(callback.curve, at_the_end)
    run.test(module, datamodule=Data(), verbose=False)
    assert "test_acc" in callback.curve[0].metrics
    assert callback.subspace_model.statistics[0.0] is statistics


def test_validate_of_a_plainly_trained_network(tmp_path):
    """What a network loses when it is cut to size without having learned to be."""
    module, callback = Module(), lcs(subspace="point")
    trainer(tmp_path).fit(module, datamodule=Data())
    before = {name: value.clone() for name, value in module.state_dict().items()}
    trainer(tmp_path, callback).validate(module, datamodule=Data(), verbose=False)
    assert len(callback.curve) == 3
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("first", [True, False])
def test_the_last_checkpoint_of_an_early_stop_holds_statistics(tmp_path, first):
    stopping, callback = EarlyStopping("val_loss", patience=1, min_delta=10.0), lcs()
    order = [stopping, callback] if first else [callback, stopping]
    best = ModelCheckpoint(tmp_path, filename="model", save_last=True)
    trainer(tmp_path, *order, best, enable_checkpointing=True, max_epochs=9).fit(Module(), datamodule=Data())
    model = SubspaceModel.from_checkpoint(tmp_path / "last.ckpt", Module())
    assert model.statistics


def test_the_best_checkpoint_holds_statistics(tmp_path):
    """The epoch with the best validation, not the last one, is what people deploy."""

    class Worse(Module):
        def validation_step(self, batch, batch_idx):
            self.log("val_acc", 1.0 / (1 + self.current_epoch))
            self.net(batch[0])

    best = ModelCheckpoint(tmp_path, monitor="val_acc", mode="max", filename="best")
    trainer(tmp_path, lcs(), best, enable_checkpointing=True, max_epochs=3).fit(Worse(), datamodule=Data())
    assert SubspaceModel.from_checkpoint(tmp_path / "best.ckpt", Module()).statistics


def test_predictions_at_a_level_are_those_of_the_materialized_model(tmp_path):
    callback = lcs(alphas=6, recalibration={"levels": 6})
    module, run = Module(), trainer(tmp_path, callback)
    run.fit(module, datamodule=Data())
    images = digits(300, 20)
    with callback.subspace_model.at_alpha(0.4):
        predicted = torch.cat(run.predict(module, loader(images)))
    small = callback.subspace_model.materialize(0.4)
    with torch.no_grad():
        expected = small(images.tensors[0])
        full = module.eval()(images.tensors[0])
    assert (predicted - expected).abs().max() <= OUTPUT_TOLERANCE * expected.abs().max()
    assert (predicted - full).abs().max() > 0.01
    # Two batches against one.
    at_full = torch.cat(run.predict(module, loader(images)))
    assert (at_full - full).abs().max() <= OUTPUT_TOLERANCE * full.abs().max()


def test_validate_at_a_level_shows_the_numbers_of_that_level(tmp_path):
    callback = lcs()
    module, run = Module(), trainer(tmp_path, callback)
    run.fit(module, datamodule=Data())
    at_the_end = list(callback.curve)
    with callback.subspace_model.at_alpha(0.5):
        results = run.validate(module, datamodule=Data(), verbose=False)
    assert abs(results[0]["val_loss"] - at_the_end[1].metrics["val_loss"]) <= METRIC_TOLERANCE
    assert_same_metrics(callback.curve, at_the_end)


def test_the_two_helpers_alone(tmp_path):
    """BatchNormRecalibration and TradeoffMonitor on a trained SubspaceModel, without an LCSCallback."""
    callback, path = fitted(tmp_path)
    model = SubspaceModel.from_checkpoint(path, Net())
    model.statistics = {}
    recalibration, monitor = BatchNormRecalibration(3), TradeoffMonitor(3, latency=False)
    module = Module(model)
    trainer(tmp_path, recalibration, monitor).validate(module, datamodule=Data(), verbose=False)
    assert set(model.statistics) == {0.0, 0.5}
    assert_same_metrics(monitor.curve, callback.curve)


def test_helpers_given_to_the_trainer_are_the_ones_used(tmp_path):
    recalibration, monitor = BatchNormRecalibration([0.0, 0.2], images=16), TradeoffMonitor([0.0, 0.2, 1.0], 1)
    callback = LCSCallback()
    trainer(tmp_path, callback, recalibration, monitor).fit(Module(), datamodule=Data())
    assert callback.curve is monitor.curve
    assert [point.alpha for point in monitor.curve] == [0.0, 0.2, 1.0]
    assert set(callback.subspace_model.statistics) == {0.0, 0.2}


def test_recalibrating_by_hand_afterwards_gives_the_same_curve(tmp_path):
    callback, _ = fitted(tmp_path)
    model = callback.subspace_model
    before = {alpha: dict(tensors) for alpha, tensors in model.statistics.items()}
    model.recalibrate([images for images, _ in Data().train_dataloader()], [0.0, 0.5])
    for alpha, tensors in before.items():
        for name, value in tensors.items():
            # Other batches of the same 48 images.
            assert (model.statistics[alpha][name] - value).abs().max() <= 0.1 * value.abs().max().clamp_min(1.0)


class Watches(Callback):
    """Whether the module's ``forward`` is replaced while the trainer works on it."""

    def on_predict_start(self, trainer, pl_module):
        self.patched = "forward" in pl_module.net.__dict__


def test_predict_hooks_in_and_out(tmp_path):
    watch, module = Watches(), Module()
    trainer(tmp_path, lcs(), watch).predict(module, loader(digits(0, 16)))
    assert watch.patched
    assert "forward" not in module.net.__dict__
