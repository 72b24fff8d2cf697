"""Sparsity for storage: one training run, and files that shrink with the share of zeros.

python examples/sparse_for_storage.py     # two minutes on one core

One file holds all levels: the weights of the densest level, and a threshold per weight for each other level.
"""

import argparse
from pathlib import Path

import lightning as L
import torch
from classifier import Classifier
from rich.console import Console
from rich.table import Table

from lightning_lcs import LCSCallback, Recalibration, Unstructured
from lightning_lcs.data import DigitsDataModule
from lightning_lcs.export.sparse import load_sparse, save_sparse

ALPHAS = (0.0, 0.1, 0.25, 0.5)  # 90, 81, 67.5 and 45 % zeros


@torch.inference_mode()
def accuracy(network: torch.nn.Module, loader) -> float:
    answers = [network(images).argmax(1) == labels for images, labels in loader]
    return float(torch.cat(answers).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--folder", type=Path, default=Path("runs/sparse"))
    arguments = parser.parse_args()
    L.seed_everything(0, verbose=False)
    data = DigitsDataModule(image_size=16)
    lcs = LCSCallback(
        mode=Unstructured(max_sparsity=0.9),
        subspace="point",
        alphas=[*ALPHAS, 1.0],
        recalibration=Recalibration(levels=ALPHAS),
    )
    trainer = L.Trainer(max_epochs=arguments.epochs, callbacks=[lcs], default_root_dir=arguments.folder)
    trainer.fit(Classifier("resnet10t", in_chans=1), datamodule=data)
    model = lcs.subspace_model.eval()

    table = Table(title="Files of one level each, read back into a new network")
    for heading in ("sparsity", "float32 values", "int8 values", "of dense", "val_acc, int8"):
        table.add_column(heading, justify="right")
    for alpha in ALPHAS:
        exact = save_sparse(model, arguments.folder / f"{alpha}.safetensors", alpha)
        coded = save_sparse(model, arguments.folder / f"{alpha}_int8.safetensors", alpha, values="int8")
        network = Classifier("resnet10t", in_chans=1).net.eval()
        load_sparse(coded.path, network)
        sizes = (f"{file.size_bytes / 1e6:.2f} MB" for file in (exact, coded))
        share, right = coded.size_bytes / coded.dense_bytes, accuracy(network, data.val_dataloader())
        table.add_row(f"{model.mode.sparsity(alpha):.3f}", *sizes, f"{share:.3f}", f"{right:.4f}")
    Console().print(table)

    every = save_sparse(model, arguments.folder / "levels.safetensors", ALPHAS)
    network = Classifier("resnet10t", in_chans=1).net.eval()
    levels = load_sparse(every.path, network)
    print(f"{every.path}: all {len(ALPHAS)} levels in {every.size_bytes / 1e6:.2f} MB")
    for alpha in levels.alphas:
        levels.set_alpha(alpha)
        print(f"  alpha {alpha:.3f}: val_acc {accuracy(network, data.val_dataloader()):.4f}")


if __name__ == "__main__":
    main()
