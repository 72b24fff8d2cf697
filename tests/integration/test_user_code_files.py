"""Places that a curve can't be written to cost the curve there, never the run or its last checkpoint."""

import shutil

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger

from lightning_lcs import SubspaceModel
from lightning_lcs.loggers import registry
from lightning_lcs.utils import files
from tests.integration.support import Data, Module, lcs, trainer


class Remembering(Logger):
    """A logger that remembers its metrics, and fails where it is told to."""

    def __init__(self, folder, fails=()):
        super().__init__()
        self.folder, self.fails, self.metrics = folder, fails, {}

    name, version, experiment = "", "", None
    save_dir = property(lambda self: str(self.folder))

    def log_hyperparams(self, *args, **kwargs):
        pass

    def log_metrics(self, metrics, step=None):
        if "log_metrics" in self.fails and any(key.startswith("lcs/val") for key in metrics):
            raise ConnectionError("the server does not answer")
        self.metrics.update(metrics)


def fit(folder, logger, **options):
    """Three epochs with a curve after each; what plain Lightning keeps must be kept."""
    saving, callback = ModelCheckpoint(folder / "saved", save_last=True), lcs(every_n_epochs=1)
    run = trainer(folder, callback, saving, logger=logger, max_epochs=3, enable_checkpointing=True, **options)
    run.fit(Module(), datamodule=Data())
    assert torch.load(folder / "saved" / "last.ckpt", weights_only=True)["epoch"] == 2
    assert SubspaceModel.from_checkpoint(folder / "saved" / "last.ckpt", Module()).statistics
    assert len(callback.curve) == 3
    assert run.callback_metrics["lcs/val_acc/mean"] == pytest.approx(
        sum(point.metrics["val_acc"] for point in callback.curve) / 3
    )
    return callback


def test_a_file_in_the_place_of_the_folder(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    logger = Remembering(tmp_path / "file" / "below")
    with pytest.warns(UserWarning, match=r"writing the files of the curve to .*below failed \(NotADirectoryError"):
        fit(tmp_path, logger)
    assert "lcs/val_acc/mean" in logger.metrics


def test_a_folder_on_another_machine(tmp_path):
    with pytest.warns(UserWarning, match=r"the files of the curve to s3://bucket/runs failed .* not a folder of this"):
        fit(tmp_path, Remembering("s3://bucket/runs"))
    assert not (tmp_path / "s3:").exists()


def test_a_full_disk(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.warns(UserWarning, match=r"the files of the curve .*No space left on device"):
        fit(tmp_path, Remembering(tmp_path / "logs"))
    assert not list((tmp_path / "logs").iterdir())


def test_a_folder_that_is_removed_meanwhile_is_made_anew(tmp_path):
    class Removed(Remembering):
        def log_metrics(self, metrics, step=None):
            super().log_metrics(metrics, step)
            shutil.rmtree(self.folder, ignore_errors=True)

    logger = Removed(tmp_path / "logs")
    fit(tmp_path, logger, log_every_n_steps=1000)
    assert "lcs/val_acc/mean" in logger.metrics


def test_a_curves_file_of_the_users_own_is_left_alone(tmp_path):
    (tmp_path / "curves.csv").write_text("x,y\n1,2\n")
    callback = lcs()
    with pytest.warns(UserWarning, match="the files of the curve .* holds no curve"):
        trainer(tmp_path, callback).validate(Module(), datamodule=Data(), verbose=False)
    assert len(callback.curve) == 3
    assert (tmp_path / "curve.csv").exists()
    assert (tmp_path / "curves.csv").read_text() == "x,y\n1,2\n"


def test_a_logger_that_fails_costs_what_it_would_have_got(tmp_path):
    failing, working = Remembering(tmp_path / "a", fails=("log_metrics",)), Remembering(tmp_path / "b")
    with pytest.warns(UserWarning, match=r"the values of the curve to Remembering failed \(ConnectionError"):
        fit(tmp_path, [failing, working])
    assert "lcs/val_acc/mean" not in failing.metrics
    assert "lcs/val_acc/mean" in working.metrics
    assert (tmp_path / "a" / "curve.csv").exists()


def test_pictures_that_fail_do_not_cost_the_values(tmp_path, monkeypatch):
    def fails(logger, measurement):
        raise TimeoutError("the upload of a picture")

    monkeypatch.setitem(registry.DRAWS, "Remembering", fails)
    logger = Remembering(tmp_path / "logs")
    with pytest.warns(UserWarning, match=r"the pictures and tables of the curve to Remembering failed \(TimeoutError"):
        fit(tmp_path, logger)
    assert "lcs/val_acc/mean" in logger.metrics
