"""Fashion-MNIST: a plain network, and the same recipe as a compressible subspace (point, line, and the fast recipe).

    python examples/fashion_mnist.py                   # all runs that are missing, then the table
    python examples/fashion_mnist.py --methods point   # one of them

Every run writes ``runs/fashion/METHOD/curve.csv`` and a checkpoint; a run whose curve exists is not repeated.
"""

import argparse
import csv
from pathlib import Path

import lightning as L
from classifier import Classifier
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from rich.console import Console
from rich.table import Table

from lightning_lcs import LCSCallback
from lightning_lcs.data import FashionMNISTDataModule

METHODS = {"plain": {}, "point": {"subspace": "point"}, "line": {"subspace": "line"}, "fast": {"recipe": "fast"}}


def train(method: str, folder: Path, epochs: int, data: FashionMNISTDataModule) -> None:
    L.seed_everything(0)
    module = Classifier("resnet10t", in_chans=1)
    lcs = LCSCallback(mode="structured", recalibration={"images": 2048}, **METHODS[method])
    checkpoint = ModelCheckpoint(folder, filename="model", save_last=False, enable_version_counter=False)
    options = {"logger": CSVLogger(folder, name="", version=""), "max_epochs": epochs, "enable_model_summary": False}
    # The plain network is trained without the callback, then cut to the same widths and recalibrated.
    trainer = L.Trainer(callbacks=[checkpoint] if method == "plain" else [lcs, checkpoint], **options)
    trainer.fit(module, data)
    if method == "plain":
        L.Trainer(callbacks=[lcs], **options).validate(module, data)


def show(folder: Path) -> None:
    found = {m: folder / m / "curve.csv" for m in METHODS if (folder / m / "curve.csv").exists()}
    curves = {m: {row["width"]: row for row in csv.DictReader(path.open())} for m, path in found.items()}
    table = Table(title="Fashion-MNIST, test accuracy in percent")
    for heading in ("width", "params", "MACs", *curves):
        table.add_column(heading, justify="right")
    for width, row in reversed(next(iter(curves.values())).items()):
        accuracies = [f"{100 * float(curve[width]['val_acc']):.2f}" for curve in curves.values()]
        table.add_row(f"{float(width):.3f}", f"{int(row['params']):,}", f"{int(row['macs']):,}", *accuracies)
    Console(width=100).print(table)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=METHODS)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("runs/fashion"))
    arguments = parser.parse_args()
    for method in arguments.methods:
        if not (arguments.folder / method / "curve.csv").exists():
            train(method, arguments.folder / method, arguments.epochs, FashionMNISTDataModule())
    show(arguments.folder)
