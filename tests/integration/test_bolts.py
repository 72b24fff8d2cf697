"""Beside lightning-bolts 0.7.0, whose ``pytorch_lightning`` is below 2: run by `make bolts` in its own environment."""

import struct
import warnings

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import nn

from lightning_lcs import CompressibleSubspaceWrapper, LCSCallback
from lightning_lcs.cli.main import run
from lightning_lcs.data import AdaptedDataModule

# What bolts, its Lightning and its numpy say about themselves fills screens.
pytestmark = [pytest.mark.bolts, pytest.mark.filterwarnings("ignore")]
QUICK = {"alphas": 3, "recalibration": {"images": 64, "levels": 3}}


@pytest.fixture(scope="module")
def bolts():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pl_bolts.datamodules
        import pl_bolts.optimizers.lr_scheduler
    return pl_bolts


@pytest.fixture
def digits(bolts):
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    images = pixels.reshape(-1, 1, 8, 8).repeat(4, 2).repeat(4, 3).astype("float32") / 8 - 1
    return bolts.datamodules.SklearnDataModule(images, labels, batch_size=32)


def write_as_fashion_mnist(folder):
    """scikit-learn's digits under the names and in the format of Fashion-MNIST's files, which need a download."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    images = np.pad(
        (pixels.reshape(-1, 8, 8) * 15).astype(np.uint8).repeat(3, 1).repeat(3, 2), ((0, 0), (2, 2), (2, 2))
    )
    folder.mkdir(parents=True)
    for part, some in (("train", slice(0, 1500)), ("t10k", slice(1500, None))):
        count = len(labels[some])
        header = struct.pack(">HBBIII", 0, 8, 3, count, 28, 28)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(header + images[some].tobytes())
        header = struct.pack(">HBBI", 0, 8, 1, count)
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(header + labels[some].astype(np.uint8).tobytes())


def trainer(tmp_path, *callbacks):
    return pl.Trainer(
        accelerator="cpu",
        callbacks=list(callbacks),
        default_root_dir=tmp_path,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        limit_train_batches=3,
        limit_val_batches=2,
        logger=False,
        max_epochs=2,
    )


def test_a_bolts_data_module_needs_the_adapter(tmp_path, digits):
    with pytest.raises((ValueError, AttributeError)):
        trainer(tmp_path).fit(CompressibleSubspaceWrapper("resnet10t", in_chans=1), datamodule=digits)


def test_a_bolts_data_module_with_it(tmp_path, digits):
    callback = LCSCallback(**QUICK)
    model, data = CompressibleSubspaceWrapper("resnet10t", num_classes=10, in_chans=1), AdaptedDataModule(digits)
    run = trainer(tmp_path, callback)
    run.fit(model, datamodule=data)
    assert [point.width for point in callback.curve] == pytest.approx([0.25, 0.625, 1.0], abs=0.01)
    assert digits.trainer is run
    assert data.batch_size == 32
    run.test(model, datamodule=data)
    assert "test_acc" in run.callback_metrics


def test_the_warm_up_cosine_schedule_as_it_is(tmp_path, bolts, digits):
    class Mine(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
            self.head = nn.Linear(8, 10)
            self.rates = []

        def forward(self, x):
            return self.head(self.net(x))

        def training_step(self, batch, batch_idx):
            self.rates.append(self.optimizers().param_groups[0]["lr"])
            return nn.functional.cross_entropy(self(batch[0]), batch[1].long())

        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), 0.1)
            schedule = bolts.optimizers.lr_scheduler.LinearWarmupCosineAnnealingLR(optimizer, 1, 2, 0.01)
            return [optimizer], [schedule]

    module = Mine()
    trainer(tmp_path, LCSCallback(**QUICK, subspace="point", target="net")).fit(
        module, datamodule=AdaptedDataModule(digits)
    )
    assert sorted(set(module.rates)) == pytest.approx([0.01, 0.1])


def test_from_yaml(tmp_path, bolts, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_as_fashion_mnist(tmp_path / "FashionMNIST" / "raw")
    (tmp_path / "mine.yaml").write_text(
        f"""
model: {{model: resnet10t, num_classes: 10, in_chans: 1}}
data:
  class_path: AdaptedDataModule
  init_args:
    datamodule:
      class_path: pl_bolts.datamodules.FashionMNISTDataModule
      init_args: {{data_dir: {tmp_path}, batch_size: 16}}
trainer:
  max_epochs: 1
  limit_train_batches: 2
  limit_val_batches: 1
  accelerator: cpu
  logger: false
  enable_progress_bar: false
  callbacks:
    - class_path: lightning_lcs.LCSCallback
      init_args: {QUICK}
"""
    )
    run(["fit", "--config", "mine.yaml"])
    assert len((tmp_path / "lightning_lcs_logs" / "curve.csv").read_text().splitlines()) == 4


def test_its_own_trainer_is_refused(tmp_path, bolts):
    import pytorch_lightning

    with pytest.warns(UserWarning, match=r"pytorch_lightning 1\.9.* use lightning.pytorch.Trainer"):
        callback = LCSCallback()
    with pytest.raises(ValueError, match="Expected a parent"):
        pytorch_lightning.Trainer(callbacks=[callback], logger=False, accelerator="cpu")
