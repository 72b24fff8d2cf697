"""``lightning-lcs dashboard``: a W&B workspace over the runs of a project."""

from __future__ import annotations

import json

from lightning_lcs.loggers.wandb_workspace import save, specification, workspace
from lightning_lcs.subspace.running.calibration import level_grid


def dashboard(
    *,
    entity: str,
    project: str,
    metric: str = "val_acc",
    alphas: list[float] = [7.0],  # noqa: B006
    name: str = "Trade-off curves",
    dry_run: bool = False,
) -> None:
    """Make a W&B workspace over the runs of a project.

    It shows the curves of all runs, the Pareto front over them, and every level over training.

    Args:
        entity: The user or the team.
        project: The project that the runs were logged to.
        metric: The metric of the curves.
        alphas: The levels of the curves, or their number.
        name: The name of the workspace.
        dry_run: Print the workspace as JSON, and connect to nothing.
    """
    counted = len(alphas) == 1 and alphas[0] >= 2 and alphas[0].is_integer()
    levels = level_grid(int(alphas[0]) if counted else alphas)
    made = workspace(entity, project, metric, levels, name)
    print(json.dumps(specification(made), indent=1) if dry_run else save(made))
