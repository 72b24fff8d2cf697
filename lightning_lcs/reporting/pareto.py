"""The levels that are worth their cost: the Pareto front, and the best level under a budget."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from lightning_lcs.subspace.curves.curve import CurvePoint

_LOWER = re.compile(r"(^|[^a-z])(loss|err|error|nll|mae|mse|rmse|ece|fid|perplexity|distance|wer|cer)($|[^a-z])")


def lower_is_better(metric: str) -> bool:
    """Whether smaller values of a metric are better, judged by its name: those of losses and errors are.

    Args:
        metric: The name of the metric.

    Example:
        >>> from lightning_lcs.reporting.pareto import lower_is_better
        >>> lower_is_better("val_loss"), lower_is_better("val_acc")
        (True, False)
    """
    return _LOWER.search(metric.lower()) is not None


def pareto_front(points: Sequence[CurvePoint], cost: str, metric: str) -> list[int]:
    """The positions of the points that no other point beats, by ascending cost.

    A point is beaten by a point that costs no more and is at least as good, and better in one of the two. Of equal
    points, the first one is kept. Points without the metric, or whose cost was not measured (NaN), are left out.

    Args:
        points: The points of any number of curves.
        cost: The name of the cost, such as "macs"; lower is better.
        metric: The name of the metric; see :func:`lower_is_better`.

    Example:
        >>> from lightning_lcs.reporting import pareto_front
        >>> from lightning_lcs.reporting import CurvePoint
        >>> cost = {"sparsity": 0.0, "bit_width": 32, "params": 10, "macs": 20, "size_bytes": 40, "latency_ms": 1.0}
        >>> small = CurvePoint(alpha=0.0, width=0.25, **cost, metrics={"val_acc": 0.8})
        >>> full = CurvePoint(alpha=1.0, width=1.0, **{**cost, "macs": 90}, metrics={"val_acc": 0.9})
        >>> pareto_front([full, small], "macs", "val_acc")
        [1, 0]
    """
    sign = -1.0 if lower_is_better(metric) else 1.0
    order = sorted(
        (getattr(point, cost), -sign * point.metrics[metric], index)
        for index, point in enumerate(points)
        if measured(point, cost, metric)
    )
    front: list[int] = []
    best = float("inf")
    for _, negated, index in order:
        if negated < best:
            best = negated
            front.append(index)
    return front


def best_under(points: Iterable[CurvePoint], cost: str, budget: float, metric: str) -> CurvePoint | None:
    """The best point whose cost is at most a budget, the cheapest of equally good points; ``None`` if no point fits.

    Args:
        points: The points.
        cost: The name of the cost, such as "macs".
        budget: The largest cost that is allowed.
        metric: The name of the metric; see :func:`lower_is_better`.

    Example:
        >>> from lightning_lcs.reporting import best_under
        >>> from lightning_lcs.reporting import CurvePoint
        >>> cost = {"sparsity": 0.0, "bit_width": 32, "params": 10, "macs": 20, "size_bytes": 40, "latency_ms": 1.0}
        >>> small = CurvePoint(alpha=0.0, width=0.25, **cost, metrics={"val_acc": 0.8})
        >>> full = CurvePoint(alpha=1.0, width=1.0, **{**cost, "macs": 90}, metrics={"val_acc": 0.9})
        >>> best_under([small, full], "macs", 50, "val_acc").alpha
        0.0
    """
    fitting = [point for point in points if measured(point, cost, metric) and getattr(point, cost) <= budget]
    sign = -1.0 if lower_is_better(metric) else 1.0
    return max(fitting, key=lambda point: (sign * point.metrics[metric], -getattr(point, cost)), default=None)


def measured(point: CurvePoint, cost: str, metric: str) -> bool:
    """Whether the cost and the metric of a point were both measured."""
    value = point.metrics.get(metric)
    return value is not None and value == value and getattr(point, cost) == getattr(point, cost)
