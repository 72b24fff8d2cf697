"""The other name of Lightning, which is a class tree of its own."""

import csv
import logging

import pytest
import torch
from torch import nn

from lightning_lcs import LCSCallback, SubspaceModel
from tests.integration.support import Data, Net

pl = pytest.importorskip("pytorch_lightning", reason="pytorch_lightning is not installed: its users are not tested")


class Theirs(pl.LightningModule):
    """A user's module that imports ``pytorch_lightning``."""

    def __init__(self):
        super().__init__()
        self.net = Net()

    def training_step(self, batch, batch_idx):
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", nn.functional.cross_entropy(self.net(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def test_fit_checkpoint_and_curve(tmp_path):
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    callback, data = LCSCallback(alphas=3, recalibration_levels=3), Data()
    saving = pl.callbacks.ModelCheckpoint(tmp_path, filename="model")
    run = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        callbacks=[callback, saving],
        logger=pl.loggers.CSVLogger(tmp_path, "logs", "v"),
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    module = Theirs()
    run.fit(module, data.train_dataloader(), data.val_dataloader())
    assert [point.alpha for point in callback.curve] == [0.0, 0.5, 1.0]
    assert all(not torch.equal(w0, w1) for w0, w1 in callback.subspace_model.endpoint_pairs())
    with (tmp_path / "logs" / "v" / "metrics.csv").open(newline="") as file:
        assert any(row.get("lcs/val_loss/mean") for row in csv.DictReader(file))
    model = SubspaceModel.from_checkpoint(tmp_path / "model.ckpt", Net())
    assert model.statistics
    assert set(module.__dict__) - {"_hparams"} == set(Theirs().__dict__) - {"_hparams"}
