"""The curve in Weights & Biases; this is the only module that imports wandb."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from lightning_lcs.loggers.registry import Measurement
from lightning_lcs.reporting.level_axis import level_axis
from lightning_lcs.reporting.log_keys import alpha_key, log_key
from lightning_lcs.subspace.curves.curve import Curve, metric_names
from lightning_lcs.subspace.curves.curve_file import rows
from lightning_lcs.subspace.curves.level_table import default_names
from lightning_lcs.utils.extras import needed_for
from lightning_lcs.utils.warning import warn

PANEL_COSTS = ("macs", "size_bytes", "latency_ms")


def draw(logger: Any, measurement: Measurement) -> None:
    """Log the curves to the logger's run, and upload ``model.lcs`` where the user asked for it."""
    log_curve(logger.experiment, measurement.curves, measurement.description)
    if measurement.save is None:
        return
    path = measurement.folder / "model.lcs"
    try:
        measurement.save(path)
    except (RuntimeError, ValueError) as error:  # an op that a file can't hold: not worth a lost training
        warn(f"model.lcs is not uploaded: {error}")
        return
    log_artifact(logger.experiment, path, measurement.curves["latest"])


def log_curve(run: Any, curves: Mapping[str, Curve], summary: Mapping[str, Any] | None = None) -> None:
    """Log a curve to a W&B run, which may be offline.

    The run gets a panel per metric against the axis of the levels (such as width), MACs, size and latency, with a
    series for each curve; a table of the latest curve, which replaces that of the evaluation before; costs by level in
    its summary, where plots over many runs find them; and what was trained in its configuration, under ``lcs``.

    Args:
        run: The run, such as ``WandbLogger.experiment``.
        curves: The curves by name, as legends show it; the first one is the latest. Empty curves are left out.
        summary: What was trained; see :meth:`SubspaceModel.describe`. The default is ``None``: it is not known.

    Raises:
        ModuleNotFoundError: wandb is not installed.

    Example:
        >>> import wandb
        >>> from lightning_lcs.loggers import log_curve
        >>> from lightning_lcs.reporting import CurvePoint
        >>> cost = {"sparsity": 0.0, "bit_width": 32, "params": 10, "macs": 20, "size_bytes": 40, "latency_ms": 1.0}
        >>> small = CurvePoint(alpha=0.0, width=0.25, **cost, metrics={"val_acc": 0.8})
        >>> full = CurvePoint(alpha=1.0, width=1.0, **{**cost, "macs": 90}, metrics={"val_acc": 0.9})
        >>> run = wandb.init(mode="disabled")
        >>> log_curve(run, {"latest": [small, full]})
        >>> run.summary["lcs/macs/alpha_100"]
        90
    """
    with needed_for("WandbLogger"):
        import wandb

    latest = next(iter(curves.values()))
    header, table = rows({"": latest})
    content: dict[str, Any] = {"lcs/curve": wandb.Table(columns=[*header], data=table, log_mode="MUTABLE")}
    for metric in metric_names(latest):
        for cost in (level_axis([latest]).name, *PANEL_COSTS):
            series = series_of(curves, cost, metric)
            if next(iter(curves)) in series:
                content[log_key(metric, f"against_{cost}")] = wandb.plot.line_series(
                    xs=[xs for xs, _ in series.values()],
                    ys=[ys for _, ys in series.values()],
                    keys=[*series],
                    title=f"{metric} against {cost}",
                    xname=cost,
                )
    run.log(content)
    costs = {
        f"lcs/{cost}/{alpha_key(point.alpha)}": getattr(point, cost)
        for cost in ("macs", "size_bytes")
        for point in latest
    }
    run.summary.update(costs)
    if summary:
        run.config.update({"lcs": config_of(summary)}, allow_val_change=True)


def series_of(curves: Mapping[str, Curve], cost: str, metric: str) -> dict[str, tuple[list[float], list[float]]]:
    """By name, the costs and the metric of levels at which both were measured; curves without any are left out."""
    found = {}
    for name, curve in curves.items():
        points = [p for p in curve if metric in p.metrics and p.value(cost) == p.value(cost)]
        if points:
            found[name] = ([p.value(cost) for p in points], [p.metrics[metric] for p in points])
    return found


def config_of(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a summary that a run's configuration holds: settings, and how much of the network is compressed."""
    plan = summary["plan"]
    counts = {"compressed_tensors": len(plan["compressed"]), "kept_whole": len(plan["whole"])}
    return {**summary["settings"], "plan": {**counts, "numbers": plan["numbers"], "kept_numbers": plan["kept_numbers"]}}


def log_artifact(run: Any, path: str | os.PathLike[str], curve: Curve) -> None:
    """Upload a deployment file as an artifact of type "model", with the table of levels as its metadata.

    Args:
        run: The run, such as ``WandbLogger.experiment``.
        path: The path of the file, such as "model.lcs".
        curve: The levels of the file.
    """
    with needed_for("WandbLogger"):
        import wandb

    header, table = rows({"": curve})
    names = default_names([point.alpha for point in curve])
    # JSON has no NaN, which stands for a latency that was not measured.
    levels = [
        {"name": name, **{k: v for k, v in zip(header, row, strict=True) if v == v}}
        for name, row in zip(names, table, strict=True)
    ]
    artifact = wandb.Artifact(f"lcs-{run.id}", type="model", metadata={"levels": levels})
    artifact.add_file(os.fspath(path))
    run.log_artifact(artifact)
