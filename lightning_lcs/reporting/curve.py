"""The accuracy-efficiency curve as data: points, keys, table rows, CSV."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_lcs.efficiency import CurvePoint as CurvePoint

Curve = Sequence[CurvePoint]

COSTS = ("alpha", "width", "sparsity", "bit_width", "params", "macs", "size_bytes", "latency_ms")


def level_axis(curves: Iterable[Curve]) -> str:
    """What the curves' levels change: "width", "sparsity" or "bit_width", as named in :class:`Efficiency`."""
    points = [point for curve in curves for point in curve]
    return next((axis for axis in ("sparsity", "bit_width") if len({getattr(p, axis) for p in points}) > 1), "width")


def alpha_key(alpha: float) -> str:
    """The level in a log key: "alpha_050" for 0.5."""
    return f"alpha_{round(100 * alpha):03d}"


def log_key(metric: str, suffix: str) -> str:
    """A stable key of a curve's value: "lcs/val_acc/alpha_050"; only ``[a-z0-9_/]``."""
    return "lcs/" + re.sub(r"[^a-z0-9_/]", "_", metric.lower()) + f"/{suffix}"


def metric_names(curve: Curve) -> list[str]:
    """Names of the metrics on a curve, in the order in which they were logged."""
    return list(dict.fromkeys(name for point in curve for name in point.metrics))


def log_values(curve: Curve) -> dict[str, float]:
    """Every metric at every level and its mean over the curve, and the latencies, by log key."""
    values: dict[str, float] = {}
    for name in metric_names(curve):
        measured = [(point.alpha, point.metrics[name]) for point in curve if name in point.metrics]
        values |= {log_key(name, alpha_key(alpha)): value for alpha, value in measured}
        values[log_key(name, "mean")] = sum(value for _, value in measured) / len(measured)
    values |= {
        log_key("latency_ms", alpha_key(point.alpha)): point.latency_ms
        for point in curve
        if point.latency_ms == point.latency_ms
    }
    return values


def rows(curves: Mapping[str, Curve]) -> tuple[list[str], list[list[Any]]]:
    """Header and rows of one or more named curves; the name has a column where there are several."""
    names = list(dict.fromkeys(name for curve in curves.values() for name in metric_names(curve)))
    several = len(curves) > 1
    header = [*(["curve"] if several else []), *COSTS, *names]
    table = [
        [
            *([title] if several else []),
            *(getattr(point, cost) for cost in COSTS),
            *(point.metrics.get(n) for n in names),
        ]
        for title, curve in curves.items()
        for point in curve
    ]
    return header, table


def write_csv(curves: Mapping[str, Curve], path: str | os.PathLike[str]) -> Path:
    """Write curves to a CSV file, whole or not at all."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.with_name(f".{target.name}.{os.getpid()}")
    header, table = rows(curves)
    try:
        with scratch.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(header)
            writer.writerows(table)
        scratch.replace(target)
    finally:
        scratch.unlink(missing_ok=True)
    return target


def read_csv(path: str | os.PathLike[str]) -> list[CurvePoint]:
    """One curve as :func:`write_csv` wrote it.

    Raises:
        ValueError: the file holds no single curve.
    """
    with Path(path).open(newline="") as file:
        found = list(csv.DictReader(file))
    if not found or not set(COSTS) <= set(found[0]) or "curve" in found[0]:
        raise ValueError(f"{path} is not the file of one curve: its columns should begin with {', '.join(COSTS)}")
    points = []
    for row in found:
        whole = ("bit_width", "params", "macs", "size_bytes")
        costs: dict[str, Any] = {name: (int if name in whole else float)(row.pop(name)) for name in COSTS}
        points.append(CurvePoint(**costs, metrics={name: float(value) for name, value in row.items() if value}))
    return points
