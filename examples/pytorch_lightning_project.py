"""A project that imports ``pytorch_lightning`` (2.0 or newer) and not ``lightning``: the callback is the same.

python examples/pytorch_lightning_project.py
"""

import argparse
from pathlib import Path

import pytorch_lightning as pl
import timm
import torch
from torch.utils.data import DataLoader

from lightning_lcs import LCSCallback
from lightning_lcs.data import DigitsDataModule


class Project(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = timm.create_model("resnet10t", in_chans=1, num_classes=10)

    def training_step(self, batch, batch_idx):
        return torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def loaders() -> tuple[DataLoader, DataLoader]:
    data = DigitsDataModule()
    data.setup("fit")
    return data.train_dataloader(), data.val_dataloader()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path("runs/pytorch_lightning"))
    arguments = parser.parse_args()
    pl.seed_everything(0)
    lcs = LCSCallback(mode="structured")
    trainer = pl.Trainer(max_epochs=arguments.epochs, callbacks=[lcs], default_root_dir=arguments.folder)
    trainer.fit(Project(), *loaders())


if __name__ == "__main__":
    main()
