"""The accuracy-efficiency curve as data: points, keys, table rows, CSV."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_lcs.subspace.curve import CurvePoint as CurvePoint

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
    return write_rows(*rows(curves), path)


def write_rows(header: Sequence[str], table: Iterable[Sequence[Any]], path: str | os.PathLike[str]) -> Path:
    """Write a table to a CSV file, whole or not at all."""
    content = io.StringIO()
    writer = csv.writer(content, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(table)
    return write_text(content.getvalue(), path)


def write_text(text: str, path: str | os.PathLike[str]) -> Path:
    """Write a text file, whole or not at all; folders are made."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        scratch.write_text(text, encoding="utf-8", newline="")
        scratch.replace(target)
    finally:
        scratch.unlink(missing_ok=True)
    return target


# The last curve of a run on validation data, and on test data.
CURVE, TEST_CURVE = "curve.csv", "test_curve.csv"


def read_csv(path: str | os.PathLike[str]) -> list[CurvePoint]:
    """One curve as :func:`write_csv` wrote it.

    Raises:
        ValueError: the file holds no single curve.
    """
    found = read_rows(path)
    if "curve" in found[0]:
        raise ValueError(f"{path} holds several curves: its first column should be alpha, and it is curve")
    return [point_of(row) for row in found]


def read_curves(path: str | os.PathLike[str]) -> dict[str, list[CurvePoint]]:
    """All curves of a file that :func:`write_csv` wrote, by name; the name of an only one is empty.

    Raises:
        ValueError: the file holds no curve.
    """
    curves: dict[str, list[CurvePoint]] = {}
    for row in read_rows(path):
        curves.setdefault(row.pop("curve", ""), []).append(point_of(row))
    return curves


def read_rows(path: str | os.PathLike[str]) -> list[dict[str, str]]:
    """Rows of a CSV file that holds points of curves.

    Raises:
        ValueError: there are none, or costs are missing.
    """
    with Path(path).open(newline="", encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    if not found or not set(COSTS) <= set(found[0]):
        raise ValueError(f"{path} holds no curve: among its columns should be {', '.join(COSTS)}")
    return found


def point_of(row: Mapping[str, str]) -> CurvePoint:
    """A point of a curve from a row of :func:`read_rows`: costs, and metrics in all other columns.

    Raises:
        ValueError: a value is no number.
    """
    whole = ("bit_width", "params", "macs", "size_bytes")
    costs: dict[str, Any] = {name: (int if name in whole else float)(row[name]) for name in COSTS}
    return CurvePoint(
        **costs, metrics={name: float(value) for name, value in row.items() if name not in costs and value}
    )
