"""The curve in the terminal."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lightning_lcs.reporting.level_axis import level_axis
from lightning_lcs.subspace.axis import Axis
from lightning_lcs.subspace.curves.curve import Curve, CurvePoint, metric_names
from lightning_lcs.subspace.curves.level_table import NamedLevel

_Column: TypeAlias = tuple[str, list[str]]  # a heading, and a cell for each level


def print_curves(curves: Mapping[str, Curve], console: Console | None = None, metric: str | None = None) -> None:
    """Print curves side by side: one row per level, the costs of the first curve, and the metrics of all curves.

    Args:
        curves: The curves by name, all of them measured at the same levels.
        console: Where to print. The default is the terminal.
        metric: The only metric to print. The default is all metrics.

    Example:
        >>> from rich.console import Console
        >>> from lightning_lcs.reporting import CurvePoint, print_curves
        >>> cost = {"sparsity": 0.0, "bit_width": 32, "params": 10, "macs": 20, "size_bytes": 40, "latency_ms": 1.0}
        >>> small = CurvePoint(alpha=0.0, width=0.25, **cost, metrics={"val_acc": 0.8})
        >>> full = CurvePoint(alpha=1.0, width=1.0, **{**cost, "macs": 90}, metrics={"val_acc": 0.9})
        >>> print_curves({"": [small, full]}, Console(width=80))
        Accuracy-efficiency curve
        ┏━━━━━━━┳━━━━━━━┳━━━━━━━━┳━━━━━━┳━━━━━━━━━━━┳━━━━━━━━━┳━━━━━━━━━┓
        ┃ alpha ┃ width ┃ params ┃ MACs ┃      size ┃ latency ┃ val_acc ┃
        ┡━━━━━━━╇━━━━━━━╇━━━━━━━━╇━━━━━━╇━━━━━━━━━━━╇━━━━━━━━━╇━━━━━━━━━┩
        │ 0.000 │ 0.250 │     10 │   20 │ 0.0400 kB │ 1.00 ms │  0.8000 │
        │ 1.000 │ 1.000 │     10 │   90 │ 0.0400 kB │ 1.00 ms │  0.9000 │
        └───────┴───────┴────────┴──────┴───────────┴─────────┴─────────┘
    """
    level, *costs = _costs(next(iter(curves.values())), level_axis(curves.values()))
    metrics = [
        (f"{title}\n{name}" if len(curves) > 1 else name, _values(curve, name))
        for title, curve in curves.items()
        for name in metric_names(curve)
        if metric in (None, name)
    ]
    _print("Accuracy-efficiency curve", level, [*costs, *metrics], console)


def print_levels(levels: Sequence[NamedLevel], console: Console | None = None) -> None:
    """Print a level table: one row per level.

    Args:
        levels: The table.
        console: Where to print. The default is the terminal.
    """
    names = ("name", [level.name for level in levels])
    metrics = [(name, _values(levels, name)) for name in metric_names(levels)]
    style = {"box": SIMPLE_HEAD, "padding": (0, 1, 0, 0), "pad_edge": False}
    _print("Levels", names, [*_costs(levels, level_axis([levels])), *metrics], console, **style)


def _print(title: str, first: _Column, columns: Sequence[_Column], console: Console | None, **style: Any) -> None:
    """Print a table; if the terminal is too narrow for it, the other columns follow in tables below."""
    console = console or Console()
    unbounded = console.options.update(max_width=sys.maxsize)
    shown: list[_Column] = []
    for column in columns:
        wide = console.measure(_table(title, [first, *shown, column], style), options=unbounded).maximum > console.width
        if shown and wide:
            console.print(_table(title, [first, *shown], style))
            title, shown = "", []
        shown.append(column)
    console.print(_table(title, [first, *shown], style))


def _table(title: str, columns: Sequence[_Column], style: dict[str, Any]) -> Table:
    table = Table(title=title, title_justify="left", **style)
    for heading, _ in columns:
        table.add_column(Text(heading), justify="left" if heading == "name" else "right", overflow="fold")
    for row in zip(*[cells for _, cells in columns], strict=True):
        table.add_row(*map(Text, row))
    return table


def _values(points: Sequence[CurvePoint], name: str) -> list[str]:
    values = [point.metrics.get(name) for point in points]
    return ["" if value is None else f"{value:.4f}" for value in values]


def _costs(points: Sequence[CurvePoint], axis: Axis) -> list[_Column]:
    return [
        ("alpha", [f"{point.alpha:.3f}" for point in points]),
        (axis.name, [axis.formatted(value) if (value := p.value(axis.name)) == value else "" for p in points]),
        ("params", [scaled(point.params) for point in points]),
        ("MACs", [scaled(point.macs) for point in points]),
        ("size", [sized(point.size_bytes) for point in points]),
        ("latency", [f"{p.latency_ms:.2f} ms" if p.latency_ms == p.latency_ms else "" for p in points]),
    ]


def sized(size_bytes: float) -> str:
    """A number of bytes with its unit: 1234567 becomes "1.23 MB"."""
    return f"{_digits(size_bytes / 1e6)} MB" if size_bytes >= 1e6 else f"{_digits(size_bytes / 1e3)} kB"


def scaled(number: float) -> str:
    """A count with its unit: 1234567 becomes "1.23 M"."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{_digits(number / size)} {unit}"
    return f"{number:.3g}"


def _digits(number: float) -> str:
    """A number with three significant digits, trailing zeros included, and with all digits before the point."""
    return f"{number:#.3g}".rstrip(".") if number < 1e3 else f"{number:.0f}"
