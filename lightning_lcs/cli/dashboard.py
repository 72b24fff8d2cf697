"""``lightning-lcs dashboard``: a W&B workspace over the runs of a project."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from lightning_lcs.loggers.wandb_workspace import save, specification, workspace
from lightning_lcs.subspace.calibration import level_grid


def dashboard(args: Sequence[str]) -> None:
    """Make the workspace and print its address; or its specification.

    Args:
        args: the command's name, and what follows it.

    Raises:
        ValueError: levels outside [0, 1].
    """
    parser = argparse.ArgumentParser(
        prog="lightning-lcs dashboard",
        description="Make a W&B workspace over the runs of a project: their curves overlaid, the Pareto front over "
        "them, and every level over training.",
    )
    parser.add_argument("--entity", required=True, help="user or team")
    parser.add_argument("--project", required=True, help="that the runs were logged to")
    parser.add_argument("--metric", default="val_acc", help="of the curves (default: %(default)s)")
    parser.add_argument(
        "--alphas", nargs="+", type=float, default=[7.0], help="levels of the curves, or their number (default: 7)"
    )
    parser.add_argument("--name", default="Trade-off curves", help="of the workspace (default: %(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="print the workspace as JSON, and use no network")
    given = parser.parse_args(args[1:])
    counted = len(given.alphas) == 1 and given.alphas[0] >= 2 and given.alphas[0].is_integer()
    levels = level_grid(int(given.alphas[0]) if counted else given.alphas)
    made = workspace(given.entity, given.project, given.metric, levels, given.name)
    if given.dry_run:
        print(json.dumps(specification(made), indent=1))
    else:
        print(save(made))
