"""What the integration tests share: real images, a small network, a user's module, a quiet trainer."""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import lightning as L
import torch
from packaging.version import Version
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from lightning_lcs import LCSCallback

BATCH = 16


@lru_cache(maxsize=1)
def _all_digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    return torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 8.0 - 1.0, torch.tensor(labels)


def digits(start: int, count: int) -> TensorDataset:
    """scikit-learn's digits, 8 x 8 pixels."""
    images, labels = _all_digits()
    return TensorDataset(images[start : start + count], labels[start : start + count])


def loader(dataset: Any, batch_size: int = BATCH, **options: Any) -> DataLoader[tuple[Tensor, ...]]:
    return DataLoader(dataset, batch_size=batch_size, **options)


class Net(nn.Module):
    """Convolution, norm, ReLU, twice; pooling; a linear head."""

    def __init__(self, norm: Callable[[int], nn.Module] = nn.BatchNorm2d, first: int = 8, second: int = 8) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, first, 3, padding=1, bias=False)
        self.norm1 = norm(first)
        self.conv2 = nn.Conv2d(first, second, 3, stride=2, padding=1)
        self.norm2 = norm(second)
        self.head = nn.Linear(second, 10)

    def features(self, x: Tensor) -> Tensor:
        x = self.norm1(self.conv1(x)).relu()
        return self.norm2(self.conv2(x)).relu()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean((2, 3)))


# Reasons are given where it is used.
older_lightning = Version(L.__version__) < Version("2.6")


def group_norm(channels: int) -> nn.Module:
    return nn.GroupNorm(1, channels)


class Module(L.LightningModule):
    """A user's module: losses and metrics are siblings of the network; it knows nothing of lightning-lcs."""

    def __init__(self, net: nn.Module | None = None, lr: float = 0.1) -> None:
        super().__init__()
        self.net = Net() if net is None else net
        self.loss = nn.CrossEntropyLoss()
        self.train_acc = MulticlassAccuracy(10, average="micro")
        self.val_acc = MulticlassAccuracy(10, average="micro")
        self.test_acc = MulticlassAccuracy(10, average="micro")
        self.lr = lr

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)

    def training_step(self, batch, batch_idx):
        images, labels = batch
        logits = self.net(images)
        loss = self.loss(logits, labels)
        self.train_acc(logits, labels)
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        self.log("train_acc", self.train_acc, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        images, labels = batch
        logits = self.net(images)
        self.val_acc(logits, labels)
        self.log("val_acc", self.val_acc)
        self.log("val_loss", self.loss(logits, labels))

    def test_step(self, batch, batch_idx):
        images, labels = batch
        self.test_acc(self.net(images), labels)
        self.log("test_acc", self.test_acc)

    def predict_step(self, batch, batch_idx):
        return self.net(batch[0])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class Data(L.LightningDataModule):
    """The loaders of the fixtures as a data module."""

    def train_dataloader(self):
        return loader(digits(0, 48))

    def val_dataloader(self):
        return loader(digits(48, 40))

    def test_dataloader(self):
        return loader(digits(100, 40))


def lcs(**options: Any) -> LCSCallback:
    """An LCSCallback of a line with few levels, so that curves are quick, and with draws as the samplers give them.

    A mapping of a group of options adds to these.
    """
    groups = {"recalibration": {"levels": 3}, "sampling": {"levels": 0}}
    given = {name: {**group, **options.pop(name, {})} for name, group in groups.items()}
    return LCSCallback(**{"subspace": "line", "alphas": 3, **given, **options})


def trainer(folder: Path, *callbacks: L.Callback, **options: Any) -> L.Trainer:
    """A trainer on the CPU that shows and writes nothing but what is asked for."""
    defaults = {
        "accelerator": "cpu",
        "max_epochs": 1,
        "logger": False,
        "enable_progress_bar": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
        "default_root_dir": folder,
    }
    return L.Trainer(callbacks=list(callbacks), **{**defaults, **options})


def plain_copy(module: nn.Module, kind: Callable[[], nn.Module] = Net) -> nn.Module:
    """A new network with the same weights and statistics, and no second endpoints."""
    copy = kind()
    copy.load_state_dict(module.state_dict())
    return copy


class Counter(L.Callback):
    """A user's callback, which counts."""

    def __init__(self) -> None:
        self.batches = {"train": 0, "val": 0}
        self.seen: list[list[str]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.batches["train"] += 1

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self.batches["val"] += 1
        pl_module.log("by_callback", float(batch_idx), batch_size=1)

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.seen.append(sorted(k for k in trainer.callback_metrics if not k.startswith("lcs/")))


def small_callback(**options: Any) -> LCSCallback:
    """A callback with a point, a curve of three levels, and statistics of two."""
    grid = {"images": 32, "levels": [0.0, 0.5]}
    return LCSCallback(**({"target": "net", "subspace": "point", "alphas": 3, "recalibration": grid} | options))


def fitted(make: Callable[[], Any], path: Path, *callbacks: Any, epochs: int = 2, **options: Any) -> Any:
    """A new module after two epochs on 64 images; the seed is the same for all."""
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    options = {**quiet, "enable_model_summary": False, "default_root_dir": path, "max_epochs": epochs, **options}
    L.seed_everything(3, verbose=False)
    module = make()
    train, val = loader(digits(0, 64), shuffle=True), loader(digits(64, 32))
    L.Trainer(accelerator="cpu", callbacks=list(callbacks), **options).fit(module, train, val)
    return module
