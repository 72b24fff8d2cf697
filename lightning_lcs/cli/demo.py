"""``lightning-lcs demo``: one training run on real images for every width, compared with a plainly trained network."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console

from lightning_lcs.callbacks.lcs import LCSCallback
from lightning_lcs.cli.digits import train_on_digits
from lightning_lcs.reporting.plots import plot_curves, require_matplotlib
from lightning_lcs.reporting.run_summary import name_method
from lightning_lcs.reporting.terminal import print_curves
from lightning_lcs.subspace.curves.curve import Curve
from lightning_lcs.subspace.curves.curve_file import write_csv


def demo(epochs: int = 8, output: Path = Path("runs/demo")) -> None:
    """Train on scikit-learn's digits as a compressible subspace and plainly, and show both at the same seven widths.

    Takes about two minutes on two cores, and needs no download. Writes curve.csv, curve.png and model.lcs.

    Args:
        epochs: The number of epochs of each of the two training runs. The default is 8.
        output: The folder for the written files. The default is runs/demo.
    """
    if epochs <= 0:
        raise ValueError(f"epochs={epochs!r} should be above 0")
    require_matplotlib()  # fails now instead of after minutes
    console, start = Console(), time.monotonic()
    console.print("Training resnet10t as a compressible subspace ...")
    subspace = LCSCallback(mode="structured")
    model = train_on_digits(subspace, epochs, output / "subspace", console.is_terminal)
    console.print("Training the same network plainly, then cutting it to the same widths ...")
    plain = LCSCallback.method("plain")
    train_on_digits(plain, epochs, output / "plain", console.is_terminal)
    name_method(output / "plain", "plain")

    curves: dict[str, Curve] = {"subspace": subspace.curve, "plain, cut": plain.curve}
    print_curves(curves, console, "val_acc")
    table = write_csv(curves, output / "curve.csv")
    picture = plot_curves(curves, "val_acc", output / "curve.png", "resnet10t on scikit-learn's digits")
    model.save(output / "model.lcs", levels=subspace.curve[::3])
    console.print(
        f"Done in {time.monotonic() - start:.0f} s. One file, every width: {output / 'model.lcs'}\n"
        f"Table: {table}    Picture: {picture}\n\n"
        "What to do next:\n"
        "  * your project: add LCSCallback(mode='structured') to Trainer(callbacks=...)\n"
        f"  * any width, in a new process: SubspaceModel.load('{output / 'model.lcs'}').set_alpha(0.35)\n"
        f"  * its levels: lightning-lcs levels {output / 'model.lcs'}\n"
        f"  * a page about both runs: lightning-lcs report {output / 'subspace'} {output / 'plain'}\n"
        "  * read docs/getting-started.md",
        soft_wrap=True,
        markup=False,
        highlight=False,
    )
