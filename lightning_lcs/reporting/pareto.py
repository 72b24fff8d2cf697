"""Which levels are worth their cost: the Pareto front, and the best level under a budget."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from lightning_lcs.reporting.curve import CurvePoint

_LOWER = re.compile(r"(^|[^a-z])(loss|err|error|nll|mae|mse|rmse|ece|fid|perplexity|distance|wer|cer)($|[^a-z])")


def lower_is_better(metric: str) -> bool:
    """Whether a smaller value of a metric is the better one, as far as its name tells: losses and errors."""
    return _LOWER.search(metric.lower()) is not None


def pareto_front(points: Sequence[CurvePoint], cost: str, metric: str) -> list[int]:
    """Positions of the points that no other point beats, by ascending cost.

    A point is beaten by one that costs no more and is at least as good, and better in one of the two. Of equal points
    the first is kept. Points without the metric, or whose cost was not measured (NaN), are left out.

    Args:
        points: of any number of curves.
        cost: what is paid, such as "macs"; lower is better.
        metric: what is bought; see :func:`lower_is_better`.
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
    """The best point whose cost is at most the budget, the cheapest of equals; ``None`` where none fits."""
    fitting = [point for point in points if measured(point, cost, metric) and getattr(point, cost) <= budget]
    sign = -1.0 if lower_is_better(metric) else 1.0
    return max(fitting, key=lambda point: (sign * point.metrics[metric], -getattr(point, cost)), default=None)


def measured(point: CurvePoint, cost: str, metric: str) -> bool:
    """Whether both are numbers at a point."""
    value = point.metrics.get(metric)
    return value is not None and value == value and getattr(point, cost) == getattr(point, cost)
