"""Curves of several methods and seeds side by side."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lightning_lcs.reporting.level_axis import level_axis
from lightning_lcs.reporting.plots import plot_curves
from lightning_lcs.subspace.curves.curve import Curve, CurvePoint

Runs = Mapping[str, list[list[CurvePoint]]]
"""By method, the curve of each seed."""


def print_comparisons(runs: Runs, metric: str, console: Console | None = None) -> None:
    """Print one table for each axis of levels, such as width: a row per level, a column per method.

    With several seeds, a cell holds their mean, and the lowest and the highest value below it.
    """
    for axis, methods in by_axis(runs).items():
        table = Table(title=f"{metric} by {axis}", title_justify="left")
        for heading in (axis, *methods):
            table.add_column(heading, justify="right")
        for level in sorted({_level(p, axis) for curves in methods.values() for curve in curves for p in curve}):
            at_level = [
                [p for curve in curves for p in curve if _level(p, axis) == level] for curves in methods.values()
            ]
            found = [[p.metrics[metric] for p in points] for points in at_level]
            table.add_row(f"{level:.4g}", *map(cell, found))
        (console or Console()).print(table)


def plot_comparisons(runs: Runs, metric: str, folder: Path) -> list[Path]:
    """Draw one picture for each axis, ``comparison_AXIS.png``: the means over seeds."""
    return [
        plot_curves({name: mean_curve(c) for name, c in methods.items()}, metric, folder / f"comparison_{axis}.png")
        for axis, methods in by_axis(runs).items()
    ]


def by_axis(runs: Runs) -> dict[str, dict[str, list[list[CurvePoint]]]]:
    """The methods by the name of the axis along which their levels lie; methods without a run are left out."""
    groups: dict[str, dict[str, list[list[CurvePoint]]]] = {}
    for method, curves in runs.items():
        if curves:
            groups.setdefault(level_axis([curves[0]]).name, {})[method] = curves
    return groups


def _level(point: CurvePoint, axis: str) -> float:
    """The value of a point on an axis, rounded: the same level of two methods may differ in the last digit."""
    return round(float(point.value(axis)), 6)


def mean_curve(curves: Sequence[Curve]) -> list[CurvePoint]:
    """The mean of curves of the same levels: metrics are averaged, and costs are those of the first curve.

    It belongs to no weights.
    """
    return [
        dataclasses.replace(
            points[0],
            metrics={name: statistics.mean(p.metrics[name] for p in points) for name in points[0].metrics},
            weights="",
        )
        for points in zip(*curves, strict=True)
    ]


def cell(values: Sequence[float]) -> str:
    """The mean of values, with the range of several values; empty if there are none."""
    if not values:
        return ""
    spread = f"\n{min(values):.4f} to {max(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4f}{spread}"
