"""Batch norm between stored levels: the accuracy that a level loses compared with statistics recalibrated at the level.

    python examples/stored_levels.py     # needs runs/fashion/point/model.ckpt, which examples/fashion_mnist.py makes

Sixteen random alphas are run from a grid of stored levels in three ways: at the nearest stored level (snap), at the
alpha itself with the statistics of the nearest level (nearest), or with statistics interpolated linearly between the
two levels around it (linear). Statistics are cut to the width of the alpha.
"""

import argparse
from pathlib import Path

import torch
from classifier import Classifier
from rich.console import Console
from rich.table import Table

from lightning_lcs import SubspaceModel
from lightning_lcs.data import FashionMNISTDataModule
from lightning_lcs.subspace.running.calibration import level_grid, statistics_size_bytes

GRIDS = (7, 13, 25, 49)
Statistics = dict[str, torch.Tensor]


@torch.inference_mode()
def accuracy(model: SubspaceModel, alpha: float, loader) -> float:
    with model.at_alpha(alpha):
        return sum((model(x).argmax(1) == y).sum().item() for x, y in loader) / len(loader.dataset) * 100


def served(model: SubspaceModel, stored: dict[float, Statistics], alpha: float, how: str) -> Statistics:
    """The statistics for a level, cut to its width, from those of a grid of levels."""
    levels = sorted(stored)
    lower = max((level for level in levels if level <= alpha), default=levels[0])
    upper = min((level for level in levels if level >= alpha), default=levels[-1])
    share = 0.0 if upper == lower else (alpha - lower) / (upper - lower)
    at = model.plan.selection(model.mode.width(alpha))
    if how == "nearest":
        share = float(round(share))
    found = {}
    for name, high in stored[upper].items():
        # A channel that the lower level lacks has statistics only in the upper level.
        wide, kept = high.clone(), stored[lower][name]
        wide[: len(kept)] = (1 - share) * kept + share * high[: len(kept)]
        size = at.shape(name)[0]
        found[name] = wide[:size] if size <= len(wide) else torch.cat([wide, wide.new_ones(size - len(wide))])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=Path("runs/fashion/point/model.ckpt"))
    parser.add_argument("--count", type=int, default=16)
    arguments = parser.parse_args()
    data = FashionMNISTDataModule()
    data.setup("fit")
    module = Classifier("resnet10t", in_chans=1)
    model = SubspaceModel.from_checkpoint(arguments.checkpoint, module)
    chosen = torch.randperm(60000, generator=torch.Generator().manual_seed(0))[:2048].split(128)
    batches = [data.train_dataloader().dataset[rows][0] for rows in chosen]
    loader = data.val_dataloader()
    alphas = torch.rand(arguments.count, generator=torch.Generator().manual_seed(1), dtype=torch.float64).tolist()
    model.recalibrate(batches, alphas)
    exact = {alpha: accuracy(model, alpha, loader) for alpha in alphas}
    table = Table(title=f"Points of accuracy lost at {arguments.count} random alphas")
    for heading in ("levels", "bytes", "share of model", "served by", "median", "worst", "width off by up to"):
        table.add_column(heading, justify="right")
    size = model.efficiency(1.0).size_bytes
    for count in GRIDS:
        model.recalibrate(batches, count)
        stored, held = dict(model.statistics), statistics_size_bytes(model)
        full = {n: module.net.get_buffer(n).clone() for n in next(iter(stored.values()))}
        for how in ("snap", "nearest", "linear"):
            losses = []
            for alpha in alphas:
                model.statistics = stored
                if how != "snap":
                    model.statistics = {alpha: served(model, {**stored, 1.0: full}, alpha, how)}
                losses.append(exact[alpha] - accuracy(model, alpha, loader))
            ordered = torch.tensor(losses)
            step = 0.75 / (count - 1) / 2 if how == "snap" else 0.0
            numbers = f"{ordered.median():.2f}", f"{ordered.max():.2f}", f"{step:.3f}"
            table.add_row(str(count), f"{held:,}", f"{held / size:.1%}", how, *numbers)
        assert level_grid(count)[-1] == 1.0
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
