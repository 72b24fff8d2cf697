"""The comparison table: every mode, subspace and norm on the same work as the authors' code was run on.

    python examples/results.py                      # what is missing of the 4-epoch table, then the table
    python examples/results.py --epochs 20 --seeds 0 1 2
    python examples/results.py --only unstructured-line-group

The first 10,000 training images of Fashion-MNIST, all 10,000 test images, 32 x 32 pixels, 3 channels, random crop and
flip, batch 128, SGD with one epoch of warm-up and a cosine; the network is cPreResNet with one block per stage. One
file per run, ``runs/results/EPOCHS/NAME-SEED.csv``: a run whose file is there is not run again, and an interrupted
call goes on with the next.
"""

import argparse
import csv
import shutil
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import lightning as L
from preresnet import PreResNet
from rich.console import Console
from rich.table import Table

from lightning_lcs import CompressibleSubspaceWrapper, LCSCallback
from lightning_lcs.data import FashionMNISTDataModule

LEARNING_RATES = {"structured": 0.1, "unstructured": 0.1, "quantized": 0.025}
AXES = {"structured": "width", "unstructured": "sparsity", "quantized": "bit_width"}
NORMS = {"batch": "keep", "instance": "instance", "group": "group"}
RUNS = [
    f"{mode}-{subspace}-{norm}"
    for mode, norms in (("structured", ("instance", "batch")), ("unstructured", ("group", "batch")),
                        ("quantized", ("group", "batch")))
    for norm in norms
    for subspace in ("point", "line")
]  # fmt: skip


def run(name: str, seed: int, epochs: int, path: Path) -> None:
    mode, subspace, norm = name.split("-")
    L.seed_everything(seed)
    lcs = LCSCallback.paper(mode, subspace, norm=NORMS[norm], seed=seed)
    module = CompressibleSubspaceWrapper(
        PreResNet(blocks=1),
        mode=lcs.mode,
        subspace=subspace,
        line_parameters=lcs.line_parameters,
        endpoint_start=lcs.endpoint_start,
        norm=lcs.norm,
        learning_rate=LEARNING_RATES[mode],
        warmup_epochs=1,
    )
    data = FashionMNISTDataModule(channels=3, train_images=10_000, augment=True)
    with TemporaryDirectory() as folder:
        quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
        # One validation, at the end: nothing is chosen by it.
        L.Trainer(
            callbacks=[lcs], max_epochs=epochs, check_val_every_n_epoch=epochs, num_sanity_val_steps=0,
            default_root_dir=folder, **quiet,
        ).fit(module, data)  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path(folder) / "curve.csv", path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)


def show(folder: Path, seeds: list[int]) -> None:
    console = Console(width=150)
    for mode, axis in AXES.items():
        found: dict[str, dict[str, list[float]]] = {}
        for name in (name for name in RUNS if name.startswith(f"{mode}-")):
            for path in (folder / f"{name}-{seed}.csv" for seed in seeds):
                for row in csv.DictReader(path.open()) if path.exists() else ():
                    found.setdefault(name, {}).setdefault(row[axis], []).append(100 * float(row["val_acc"]))
        if not found:
            continue
        levels = sorted({level for row in found.values() for level in row}, key=float)
        table = Table(title=f"{mode}: test accuracy in percent by {axis}, mean of seeds (lowest to highest)")
        table.add_column("run")
        for level in levels:
            table.add_column(f"{float(level):.4g}", justify="right")
        for name, row in found.items():
            table.add_row(name, *(_cell(row.get(level, [])) for level in levels))
        console.print(table)


def _cell(values: list[float]) -> str:
    if not values:
        return "not run"
    spread = f"\n({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", nargs="+", choices=RUNS, default=RUNS)
    parser.add_argument("--folder", type=Path, default=Path("runs/results"))
    arguments = parser.parse_args()
    where = arguments.folder / str(arguments.epochs)
    begin = time.monotonic()
    for seed in arguments.seeds:
        for name in arguments.only:
            if not (where / f"{name}-{seed}.csv").exists():
                run(name, seed, arguments.epochs, where / f"{name}-{seed}.csv")
                print(f"{name}, seed {seed}: {(time.monotonic() - begin) / 3600:.2f} hours so far", flush=True)
    show(where, arguments.seeds)
