"""DDP on two processes: both draw the same alphas and synchronise once per step, and the curve uses the data of both.

python examples/two_processes.py
"""

import argparse
from pathlib import Path

import lightning as L
from classifier import Classifier

from lightning_lcs import LCSCallback
from lightning_lcs.data import DigitsDataModule


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path("runs/two_processes"))
    arguments = parser.parse_args()
    L.seed_everything(0, verbose=False)
    trainer = L.Trainer(
        accelerator="cpu",  # or "gpu", with no other change
        strategy="ddp",
        devices=2,
        max_epochs=arguments.epochs,
        callbacks=[LCSCallback(mode="structured")],
        default_root_dir=arguments.folder,
        log_every_n_steps=5,
    )
    trainer.fit(Classifier("resnet10t", in_chans=1), datamodule=DigitsDataModule())
    if trainer.is_global_zero:
        print(f"{trainer.world_size} processes, {len(trainer.callbacks[0].curve)} levels measured")


if __name__ == "__main__":
    main()
