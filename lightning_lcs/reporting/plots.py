"""Pictures of the curve, by matplotlib (extra ``plots``)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_lcs.reporting.curve import Curve, level_axis


def require_matplotlib() -> Any:
    """matplotlib's ``Figure``, which draws into files without a display.

    Raises:
        ModuleNotFoundError: matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("plots need matplotlib: pip install 'lightning-lcs[plots]'") from error
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
    figure = curve_figure(curves, metric, title)
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=150)
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
