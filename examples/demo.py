"""The demo: one training run on real images, one checkpoint, any width; beside it the same network trained plainly.

python examples/demo.py
"""

import argparse
import logging
import time
import warnings
from pathlib import Path

import lightning as L
from classifier import Classifier
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from lightning_lcs import LCSCallback
from lightning_lcs.data import DigitsDataModule
from lightning_lcs.reporting.curve import write_csv
from lightning_lcs.reporting.plots import plot_curves
from lightning_lcs.reporting.table import print_curves


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--folder", type=Path, default=Path("runs/demo"))
    arguments = parser.parse_args()
    folder, start = arguments.folder, time.monotonic()
    # Lightning's advice on workers and logging intervals is for larger data than 1,797 digits.
    warnings.filterwarnings("ignore", module="lightning")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    data = DigitsDataModule()
    options = {"max_epochs": arguments.epochs, "enable_model_summary": False, "logger": CSVLogger(folder, "logs", "")}

    print("\nTraining resnet10t as a compressible subspace: LCSCallback on a plain LightningModule ...", flush=True)
    L.seed_everything(0, verbose=False)
    lcs = LCSCallback(mode="structured")
    # Every checkpoint holds batch-norm statistics for all levels: save one, at the end.
    checkpoint = ModelCheckpoint(folder, filename="lcs", every_n_epochs=arguments.epochs, enable_version_counter=False)
    L.Trainer(callbacks=[lcs, checkpoint], **options).fit(Classifier("resnet10t", in_chans=1), data)

    print("\nTraining the same network plainly, then cutting it to the same widths ...", flush=True)
    L.seed_everything(0, verbose=False)
    plain = Classifier("resnet10t", in_chans=1)
    L.Trainer(**options, enable_checkpointing=False).fit(plain, data)
    cut = LCSCallback(mode="structured", subspace="point")
    L.Trainer(callbacks=[cut], **options).validate(plain, data, verbose=False)

    curves = {"subspace": lcs.curve, "plain, cut": cut.curve}
    print()
    print_curves(curves)
    table = write_csv(curves, folder / "curve.csv")
    picture = plot_curves(curves, "val_acc", folder / "curve.png", "resnet10t on scikit-learn's digits")
    print(
        f"\nDone in {time.monotonic() - start:.0f} s. One checkpoint, every width: {folder / 'lcs.ckpt'}\n"
        f"Table: {table}    Picture: {picture}\n\n"
        "What to do next:\n"
        "  * your project: add LCSCallback(mode='structured') to Trainer(callbacks=[...])\n"
        "  * a trained network at any width, in a new process:\n"
        f"      SubspaceModel.from_checkpoint('{folder / 'lcs.ckpt'}', module).set_alpha(0.35)\n"
        "  * read docs/getting-started.md"
    )


if __name__ == "__main__":
    main()
