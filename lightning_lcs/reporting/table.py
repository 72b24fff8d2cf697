"""The curve in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lightning_lcs.level_table import Level
from lightning_lcs.reporting.curve import Curve, CurvePoint, level_axis, metric_names


def print_curves(curves: Mapping[str, Curve], console: Console | None = None, metric: str | None = None) -> None:
    """Print curves side by side: one row per level, the costs of the first curve, the metrics of all.

    Args:
        curves: by name; all measured at the same levels.
        console: where to print; the terminal by default.
        metric: the only one that is printed; all by default.
    """
    first = next(iter(curves.values()))
    table = Table(title="Accuracy-efficiency curve", title_justify="left")
    axis = level_axis(curves.values())
    for heading in ("alpha", axis, "params", "MACs", "size", "latency"):
        table.add_column(heading, justify="right")
    columns = [(title, n) for title, curve in curves.items() for n in metric_names(curve) if metric in (None, n)]
    for title, name in columns:
        table.add_column(f"{title}\n{name}" if len(curves) > 1 else name, justify="right")
    for index, point in enumerate(first):
        metrics = [curves[title][index].metrics.get(name) for title, name in columns]
        table.add_row(*_costs(point, axis), *("" if value is None else f"{value:.4f}" for value in metrics))
    (console or Console()).print(table)


def print_levels(levels: Sequence[Level], console: Console | None = None) -> None:
    """Print a level table: one row per level.

    Args:
        levels: the table.
        console: where to print; the terminal by default.
    """
    table = Table(title="Levels", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    axis = level_axis([levels])
    names = metric_names(levels)
    for heading in ("name", "alpha", axis, "params", "MACs", "size", "latency", *names):
        table.add_column(Text(heading), justify="left" if heading == "name" else "right", overflow="fold")
    for level in levels:
        values = [level.metrics.get(name) for name in names]
        shown = ["" if value is None else f"{value:.4f}" for value in values]
        table.add_row(*[Text(cell) for cell in (level.name, *_costs(level, axis), *shown)])
    (console or Console()).print(table)


def _costs(point: CurvePoint, axis: str) -> list[str]:
    return [
        f"{point.alpha:.3f}",
        f"{getattr(point, axis):.3f}" if axis != "bit_width" else str(point.bit_width),
        scaled(point.params),
        scaled(point.macs),
        sized(point.size_bytes),
        f"{point.latency_ms:.2f} ms" if point.latency_ms == point.latency_ms else "",
    ]


def sized(size_bytes: float) -> str:
    """A number of bytes with a unit: 1234567 -> "1.23 MB"."""
    return f"{_digits(size_bytes / 1e6)} MB" if size_bytes >= 1e6 else f"{_digits(size_bytes / 1e3)} kB"


def scaled(number: float) -> str:
    """A count with a unit: 1234567 -> "1.23 M"."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{_digits(number / size)} {unit}"
    return f"{number:.3g}"


def _digits(number: float) -> str:
    """Three significant digits, trailing zeros included; all digits before the point."""
    return f"{number:#.3g}".rstrip(".") if number < 1e3 else f"{number:.0f}"
