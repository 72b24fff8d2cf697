"""Pictures of the curve, by matplotlib (extra ``plots``)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_lcs.reporting.level_axis import level_axis
from lightning_lcs.subspace.curves.curve import Curve
from lightning_lcs.utils.extras import needed_for


def require_matplotlib() -> Any:
    """The ``Figure`` of matplotlib, which draws into files without a display.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    with needed_for("plots"):
        from matplotlib.figure import Figure
    return Figure


def plot_curves(curves: Mapping[str, Curve], metric: str, path: str | os.PathLike[str], title: str = "") -> Path:
    """Draw one metric of one or more curves against the axis of the levels and against MACs, into a PNG file.

    Args:
        curves: The curves by name, as the legend shows it.
        metric: The name of the metric.
        path: The path of the file; its folder is made if it does not exist.
        title: The title of the picture. The default is none.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        ValueError: No curve has the metric.

    Example:
        >>> from lightning_lcs.reporting import CurvePoint, plot_curves
        >>> cost = {"sparsity": 0.0, "bit_width": 32, "params": 10, "macs": 20, "size_bytes": 40, "latency_ms": 1.0}
        >>> small = CurvePoint(alpha=0.0, width=0.25, **cost, metrics={"val_acc": 0.8})
        >>> full = CurvePoint(alpha=1.0, width=1.0, **{**cost, "macs": 90}, metrics={"val_acc": 0.9})
        >>> plot_curves({"ours": [small, full]}, "val_acc", "curve.png").name
        'curve.png'
    """
    return save_figure(curve_figure(curves, metric, title), path, dpi=150)


def save_figure(figure: Any, path: str | os.PathLike[str], dpi: int) -> Path:
    """Write a figure into a PNG file; its folder is made if it does not exist."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=dpi)
    return target


def curve_figure(curves: Mapping[str, Curve], metric: str, title: str = "") -> Any:
    """The figure that :func:`plot_curves` writes."""
    figure = require_matplotlib()(figsize=(9.0, 3.8), layout="constrained")
    drawn = {name: [p for p in curve if metric in p.metrics] for name, curve in curves.items()}
    if not any(drawn.values()):
        raise ValueError(f"metric={metric!r} is on none of the curves")
    if title:
        figure.suptitle(title)
    axis = level_axis(curves.values())
    label = f"{axis.label} ({axis.unit})" if axis.unit else axis.label
    below = ((axis.name, label, 1.0), ("macs", "MACs per sample (millions)", 1e-6))
    for axes, (cost, label, scale) in zip(figure.subplots(1, len(below), sharey=True), below, strict=True):
        for index, (name, curve) in enumerate(drawn.items()):
            x = [scale * point.value(cost) for point in curve]
            y = [point.metrics[metric] for point in curve]
            axes.plot(x, y, marker="os^Dv"[index % 5], linestyle=("-", "--", ":", "-.")[index % 4], label=name)
        axes.set_xlabel(label)
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel(metric)
    figure.axes[0].legend()
    return figure
