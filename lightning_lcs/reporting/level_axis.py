"""The axis along which the levels of measured curves lie."""

from __future__ import annotations

from collections.abc import Iterable

from lightning_lcs.subspace.axis import Axis
from lightning_lcs.subspace.curves.curve import Curve, CurvePoint
from lightning_lcs.subspace.modes.registry import axes


def axis_of(name: str) -> Axis:
    """The axis of a registered mode by its name; a plain axis for a name that this process has not registered."""
    return axes().get(name) or Axis(name, name.replace("_", " "))


def level_axis(curves: Iterable[Curve]) -> Axis:
    """The axis along which the levels of curves lie: its values differ, or are not those of the full network.

    The axes of users' own modes come first, then ``sparsity`` and ``bit_width``. It is ``width`` if no level differs
    from the full network.

    Args:
        curves: The curves.

    Example:
        >>> from lightning_lcs.reporting.level_axis import level_axis
        >>> from lightning_lcs.reporting import CurvePoint
        >>> cost = {"sparsity": 0.0, "bit_width": 32, "params": 10, "macs": 20, "size_bytes": 40, "latency_ms": 1.0}
        >>> small = CurvePoint(alpha=0.0, width=0.25, **cost, metrics={"val_acc": 0.8})
        >>> full = CurvePoint(alpha=1.0, width=1.0, **{**cost, "macs": 90}, metrics={"val_acc": 0.9})
        >>> level_axis([[small, full]]).label
        'Channel width'
    """
    points = [point for curve in curves for point in curve]
    names = dict.fromkeys([*(name for point in points for name in point.settings), "sparsity", "bit_width"])
    return next((axis for axis in map(axis_of, names) if _is_compressed(points, axis)), axis_of("width"))


def _is_compressed(points: Iterable[CurvePoint], axis: Axis) -> bool:
    values = {value for point in points if (value := point.value(axis.name)) == value}
    return len(values) > 1 or not values <= {axis.full}
