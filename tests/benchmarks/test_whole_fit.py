"""What a whole fit costs with LCSCallback: steps, statistics, curves and checkpoints together."""

import statistics
import tempfile
import time

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_lcs import LCSCallback
from tests.benchmarks.timing import images

pytestmark = [pytest.mark.benchmark, pytest.mark.filterwarnings("ignore")]
EPOCHS, TRAINING, VALIDATION = 4, 5000, 1000


def block(inputs: int, outputs: int, stride: int = 1) -> nn.Module:
    conv = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


class Small(L.LightningModule):
    """A user's small CNN on images of 28 pixels, whose metric improves in every epoch, so that each is saved."""

    def __init__(self) -> None:
        super().__init__()
        blocks = [block(1, 16, 2), block(16, 32), block(32, 32), block(32, 64, 2), block(64, 64), block(64, 64)]
        self.net = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_acc", (self.net(batch[0]).argmax(1) == batch[1]).float().mean() + self.current_epoch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)


def loader(count: int, batch: int) -> DataLoader:
    x = images(count, 1, 28)
    return DataLoader(TensorDataset(x, torch.arange(count) % 10), batch)


def seconds(*callbacks: L.Callback) -> float:
    folder = tempfile.mkdtemp()
    saving = ModelCheckpoint(folder, monitor="val_acc", mode="max")
    trainer = L.Trainer(
        accelerator="cpu", callbacks=[*callbacks, saving], logger=False, enable_progress_bar=False,
        enable_model_summary=False, max_epochs=EPOCHS, default_root_dir=folder,
    )  # fmt: skip
    start = time.perf_counter()
    trainer.fit(Small(), loader(TRAINING, 64), loader(VALIDATION, 250))
    return time.perf_counter() - start


@pytest.mark.parametrize(
    ("name", "options", "most"),
    [
        ("structured", {"mode": "structured"}, 3.4),
        ("structured, split batch", {"mode": "structured", "sampling": {"split": True}}, 1.6),
        ("unstructured", {"mode": "unstructured"}, 1.75),
        ("quantized", {"mode": "quantized"}, 1.6),
    ],
)
def test_a_whole_fit_against_a_plain_one(name, options, most):
    """With a checkpoint in each epoch, and the curve of seven levels at the end."""
    torch.set_num_threads(1)
    seconds()
    ratios = []
    for _ in range(2):
        plain = seconds()
        ratios.append(seconds(LCSCallback(**options)) / plain)
    ratio = statistics.median(ratios)
    print(f"\n{name}: a whole fit of {EPOCHS} epochs with {EPOCHS} checkpoints / a plain one: {ratio:.2f}")
    assert ratio <= most
