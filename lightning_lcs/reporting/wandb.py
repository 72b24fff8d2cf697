"""The curve in Weights & Biases: the only module that imports wandb."""

from __future__ import annotations

from typing import Any

from lightning_lcs.reporting.curve import Curve, level_axis, log_key, metric_names, rows


def log_curve(run: Any, curve: Curve) -> None:
    """Log a curve to a W&B run, which may be offline: panels per metric against width or sparsity and
    against MACs, and a table.

    Args:
        run: ``WandbLogger.experiment``.
        curve: the curve.
    """
    import wandb

    header, table = rows({"": curve})
    content: dict[str, Any] = {"lcs/curve": wandb.Table(columns=[*header], data=table)}
    for metric in metric_names(curve):
        points = [point for point in curve if metric in point.metrics]
        for cost in (level_axis([curve]), "macs"):
            content[log_key(metric, f"against_{cost}")] = wandb.plot.line_series(
                xs=[getattr(point, cost) for point in points],
                ys=[[point.metrics[metric] for point in points]],
                keys=["alpha 0 to 1"],
                title=f"{metric} against {cost}",
                xname=cost,
            )
    run.log(content)
