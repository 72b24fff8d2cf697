"""Segmentation at every width: a U-Net with skips and transposed convolutions finds the digit of each pixel.

python examples/segmentation.py
"""

import argparse
from pathlib import Path

import lightning as L
import torch
from torch import nn
from torchmetrics.classification import MulticlassJaccardIndex

from lightning_lcs import LCSCallback
from lightning_lcs.data import DigitsDataModule

PAPER = 10  # the class of pixels without ink, after the ten digits


def block(inputs: int, outputs: int) -> nn.Sequential:
    layers = [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.down1, self.down2 = block(1, channels), block(channels, 2 * channels)
        self.middle = block(2 * channels, 4 * channels)
        self.up2 = nn.ConvTranspose2d(4 * channels, 2 * channels, 2, stride=2)
        self.up1 = nn.ConvTranspose2d(2 * channels, channels, 2, stride=2)
        self.join2, self.join1 = block(4 * channels, 2 * channels), block(2 * channels, channels)
        self.head = nn.Conv2d(channels, PAPER + 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        fine = self.down1(x)
        coarse = self.down2(nn.functional.max_pool2d(fine, 2))
        deep = self.middle(nn.functional.max_pool2d(coarse, 2))
        coarse = self.join2(torch.cat([coarse, self.up2(deep)], 1))
        return self.head(self.join1(torch.cat([fine, self.up1(coarse)], 1)))


class Segmentation(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = UNet()
        self.val_iou = MulticlassJaccardIndex(PAPER + 1)

    @staticmethod
    def task(batch: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        images, labels = batch
        ink = images[:, 0] > 0
        return images, torch.where(ink, labels[:, None, None], PAPER)

    def training_step(self, batch, batch_idx):
        images, classes = self.task(batch)
        loss = nn.functional.cross_entropy(self.net(images), classes)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        images, classes = self.task(batch)
        self.val_iou(self.net(images), classes)
        self.log("val_iou", self.val_iou)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--folder", type=Path, default=Path("runs/segmentation"))
    arguments = parser.parse_args()
    L.seed_everything(0, verbose=False)
    trainer = L.Trainer(
        max_epochs=arguments.epochs, callbacks=[LCSCallback()], default_root_dir=arguments.folder, log_every_n_steps=5
    )
    trainer.fit(Segmentation(), datamodule=DigitsDataModule())


if __name__ == "__main__":
    main()
