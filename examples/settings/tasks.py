"""Networks, data and schedules on which compare.py trains: those of a user, and those of the paper's comparison."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import lightning as L
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset

from lightning_lcs.data import FashionMNISTDataModule

sys.path.append(str(Path(__file__).parents[1]))
from preresnet import PreResNet


class SmallNet(nn.Module):
    """Six convolutions with batch norms, as a project of a user's own may have them."""

    def __init__(self) -> None:
        super().__init__()
        shapes = [(1, 16, 2), (16, 32, 1), (32, 32, 1), (32, 64, 2), (64, 64, 1), (64, 64, 1)]
        self.features = nn.Sequential(*(self._block(*shape) for shape in shapes))
        self.head = nn.Linear(64, 10)

    @staticmethod
    def _block(inputs: int, outputs: int, stride: int) -> nn.Module:
        conv = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x).mean((2, 3)))


@dataclass(frozen=True)
class Task:
    network: Callable[[], nn.Module]
    learning_rate: float
    schedule: str
    epochs: int
    batch_size: int
    data: Callable[[], FashionMNISTDataModule]
    images: int
    test_images: int

    def loaders(self) -> tuple[DataLoader, DataLoader]:
        data = self.data()
        data.setup("fit")

        def first(loader: DataLoader, count: int) -> Dataset:
            return Subset(loader.dataset, range(count))

        train = first(data.train_dataloader(), self.images)
        test = first(data.val_dataloader(), self.test_images)
        return DataLoader(train, self.batch_size, shuffle=True, drop_last=True), DataLoader(test, 500)


class Module(L.LightningModule):
    """A classifier as a user may have written it."""

    def __init__(self, task: Task, learning_rate: float | None = None) -> None:
        super().__init__()
        self.net = task.network()
        self.task = task
        self.learning_rate = learning_rate or task.learning_rate

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(_channels_last(batch[0])), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_acc", (self.net(_channels_last(batch[0])).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self):
        rate, steps = self.learning_rate, int(self.trainer.estimated_stepping_batches)
        optimizer = torch.optim.SGD(self.parameters(), rate, momentum=0.9, weight_decay=5e-4)
        if self.task.schedule == "one cycle":
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
        else:
            warmup = torch.optim.lr_scheduler.LinearLR(optimizer, 0.05, total_iters=steps // 20)
            cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps - steps // 20)
            schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, [warmup, cosine], [steps // 20])
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _channels_last(x: torch.Tensor) -> torch.Tensor:
    """On a processor, the convolutions of cPreResNet take half of the time in this order."""
    return x.contiguous(memory_format=torch.channels_last)


TASKS = {
    # A project that adopts the callback: six epochs of 6,000 images with batches of 64.
    "small": Task(SmallNet, 0.1, "one cycle", 6, 64, FashionMNISTDataModule, 6000, 5000),
    # The setting of the paper's comparison in docs/results.md, for 20 epochs.
    "preresnet": Task(
        lambda: PreResNet(blocks=1), 0.1, "cosine", 20, 128,
        lambda: FashionMNISTDataModule(channels=3, augment=True), 10000, 10000,
    ),
}  # fmt: skip
