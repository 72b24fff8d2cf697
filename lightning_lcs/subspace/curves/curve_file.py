"""Curves as tables and CSV files."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_lcs.subspace.curves.curve import Curve, CurvePoint, metric_names
from lightning_lcs.utils.files import write_text

COSTS = ("alpha", "width", "sparsity", "bit_width", "params", "macs", "size_bytes", "latency_ms")
# In a table, the axes of users' own modes stand before this column.
_AFTER_AXES = "params"
# Column of the fingerprints of the weights, in files only. Numbers of metrics have a point, and never look like one.
_WEIGHTS = "weights"
_FINGERPRINT = re.compile("[0-9a-f]{16}")
# The files of a run's last curve on validation data, and on test data.
CURVE, TEST_CURVE = "curve.csv", "test_curve.csv"


def rows(curves: Mapping[str, Curve], weights: bool = False) -> tuple[list[str], list[list[Any]]]:
    """The header and the rows of named curves; several curves have a column with their names.

    Args:
        curves: The curves by name.
        weights: Whether there is a column with the fingerprints of the weights, if any is known. The default is
            ``False``: they tell a reader nothing.
    """
    names = list(dict.fromkeys(name for curve in curves.values() for name in metric_names(curve)))
    own = dict.fromkeys(name for curve in curves.values() for point in curve for name in point.settings)
    at = COSTS.index(_AFTER_AXES)
    several = len(curves) > 1
    known = weights and any(point.weights for curve in curves.values() for point in curve)
    of_weights = [_WEIGHTS] if known else []
    header = [*(["curve"] if several else []), *COSTS[:at], *own, *COSTS[at:], *of_weights, *names]
    table = [
        [
            *([title] if several else []),
            *(getattr(point, cost) for cost in COSTS[:at]),
            *(point.settings.get(name) for name in own),
            *(getattr(point, cost) for cost in COSTS[at:]),
            *(getattr(point, name) for name in of_weights),
            *(point.metrics.get(n) for n in names),
        ]
        for title, curve in curves.items()
        for point in curve
    ]
    return header, table


def write_csv(curves: Mapping[str, Curve], path: str | os.PathLike[str]) -> Path:
    """Write curves to a CSV file, whole or not at all.

    Args:
        curves: The curves by name; several curves have a column "curve" with their names.
        path: The path of the file, such as "curve.csv"; its folder is made if it does not exist.

    Returns:
        The path.

    Raises:
        OSError: The file could not be written; the old one is as it was.

    Example:
        >>> from lightning_lcs.reporting import CurvePoint, read_csv, write_csv
        >>> cost = {"sparsity": 0.0, "bit_width": 32, "params": 10, "macs": 20, "size_bytes": 40, "latency_ms": 1.0}
        >>> small = CurvePoint(alpha=0.0, width=0.25, **cost, metrics={"val_acc": 0.8})
        >>> full = CurvePoint(alpha=1.0, width=1.0, **{**cost, "macs": 90}, metrics={"val_acc": 0.9})
        >>> path = write_csv({"": [small, full]}, "curve.csv")
        >>> read_csv(path) == [small, full]
        True
    """
    return write_rows(*rows(curves, weights=True), path)


def write_rows(header: Sequence[str], table: Iterable[Sequence[Any]], path: str | os.PathLike[str]) -> Path:
    """Write a table to a CSV file, whole or not at all; its folder is made if it does not exist."""
    content = io.StringIO()
    writer = csv.writer(content, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(table)
    return write_text(content.getvalue(), path)


def read_csv(path: str | os.PathLike[str]) -> list[CurvePoint]:
    """Read the curve of a file that :func:`write_csv` wrote.

    Args:
        path: The path of the file.

    Returns:
        The points of the curve, in the order of the file.

    Raises:
        ValueError: The file does not hold exactly one curve.

    Example:
        >>> from lightning_lcs.reporting import CurvePoint, read_csv, write_csv
        >>> cost = {"sparsity": 0.0, "bit_width": 32, "params": 10, "macs": 20, "size_bytes": 40, "latency_ms": 1.0}
        >>> small = CurvePoint(alpha=0.0, width=0.25, **cost, metrics={"val_acc": 0.8})
        >>> full = CurvePoint(alpha=1.0, width=1.0, **{**cost, "macs": 90}, metrics={"val_acc": 0.9})
        >>> [point.metrics for point in read_csv(write_csv({"": [small, full]}, "curve.csv"))]
        [{'val_acc': 0.8}, {'val_acc': 0.9}]
    """
    found = read_rows(path)
    if "curve" in found[0]:
        raise ValueError(f"{path} holds several curves, and one is needed: its first column is curve instead of alpha")
    return [point_of(row) for row in found]


def read_curves(path: str | os.PathLike[str]) -> dict[str, list[CurvePoint]]:
    """Read all curves of a file that :func:`write_csv` wrote, by name; a single curve has an empty name.

    Args:
        path: The path of the file.

    Raises:
        ValueError: The file holds no curve.

    Example:
        >>> from lightning_lcs.reporting import CurvePoint, read_curves, write_csv
        >>> cost = {"sparsity": 0.0, "bit_width": 32, "params": 10, "macs": 20, "size_bytes": 40, "latency_ms": 1.0}
        >>> small = CurvePoint(alpha=0.0, width=0.25, **cost, metrics={"val_acc": 0.8})
        >>> full = CurvePoint(alpha=1.0, width=1.0, **{**cost, "macs": 90}, metrics={"val_acc": 0.9})
        >>> list(read_curves(write_csv({"ours": [small], "theirs": [full]}, "both.csv")))
        ['ours', 'theirs']
    """
    curves: dict[str, list[CurvePoint]] = {}
    for row in read_rows(path):
        curves.setdefault(row.pop("curve", ""), []).append(point_of(row))
    return curves


def is_curve_file(path: Path) -> bool:
    """Whether a CSV file has the columns of a curve."""
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        header = next(csv.reader(file), [])
    return set(COSTS) <= set(header)


def read_rows(path: str | os.PathLike[str]) -> list[dict[str, str]]:
    """Read the rows of a CSV file that holds points of curves.

    Raises:
        ValueError: There are no rows, or columns of costs are missing.
    """
    with Path(path).open(newline="", encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    if not found or not set(COSTS) <= set(found[0]):
        raise ValueError(f"{path} holds no curve: among its columns should be {', '.join(COSTS)}")
    return found


def point_of(row: Mapping[str, str]) -> CurvePoint:
    """A point of a curve from a row of :func:`read_rows`.

    Columns between "alpha" and "params" that are not costs are axes of users' own modes; all other columns that are not
    costs or fingerprints of weights are metrics.

    Raises:
        ValueError: A value is not a number.
    """
    whole = ("bit_width", "params", "macs", "size_bytes")
    costs: dict[str, Any] = {name: (int if name in whole else float)(row[name]) for name in COSTS}
    weights = row.get(_WEIGHTS) or ""
    weights = weights if _FINGERPRINT.fullmatch(weights) else ""
    columns = list(row)
    own = columns[columns.index(COSTS[0]) : columns.index(_AFTER_AXES)]
    known = {*costs, *([_WEIGHTS] if weights else [])}
    others = {name: float(value) for name, value in row.items() if name not in known and value}
    return CurvePoint(
        **costs,
        settings={name: value for name, value in others.items() if name in own},
        metrics={name: value for name, value in others.items() if name not in own},
        weights=weights,
    )
