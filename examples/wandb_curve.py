"""The curve in Weights & Biases: panels against width, MACs, size and latency, and a table, set up automatically.

First run wandb login or set WANDB_MODE=offline, then
python examples/wandb_curve.py
"""

import argparse
from pathlib import Path

import lightning as L
from classifier import Classifier
from lightning.pytorch.loggers import WandbLogger

from lightning_lcs import LCSCallback
from lightning_lcs.data import DigitsDataModule


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--project", default="lightning-lcs")
    parser.add_argument("--folder", type=Path, default=Path("runs/wandb"))
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    L.seed_everything(0, verbose=False)
    trainer = L.Trainer(
        max_epochs=arguments.epochs,
        # A curve is measured every second epoch, and is shown together with the one before it.
        callbacks=[LCSCallback(mode="structured", every_n_epochs=2)],
        logger=WandbLogger(project=arguments.project, save_dir=arguments.folder),
        default_root_dir=arguments.folder,
        log_every_n_steps=5,
    )
    trainer.fit(Classifier("resnet10t", in_chans=1), datamodule=DigitsDataModule())


if __name__ == "__main__":
    main()
