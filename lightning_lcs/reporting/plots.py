"""Pictures of the curve, by matplotlib (extra ``plots``)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_lcs.reporting.curve import Curve, level_axis
from lightning_lcs.utils.extras import needed_for


def require_matplotlib() -> Any:
    """matplotlib's ``Figure``, which draws into files without a display.

    Raises:
        ModuleNotFoundError: matplotlib is missing.
    """
    with needed_for("plots"):
        from matplotlib.figure import Figure
    return Figure


def plot_curves(curves: Mapping[str, Curve], metric: str, path: str | os.PathLike[str], title: str = "") -> Path:
    """Draw one metric of one or more curves against the axis of the levels and against MACs, into a PNG file.

    Args:
        curves: by name, as the legend shows it.
        metric: name of the metric.
        path: of the file.
        title: above the picture.

    Raises:
        ModuleNotFoundError: matplotlib is missing.
        ValueError: no curve has the metric.
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
