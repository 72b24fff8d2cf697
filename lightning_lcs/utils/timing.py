"""Measured time of one forward."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch


def median_latencies_ms(calls: Mapping[Any, Callable[[], Any]], repeats: int = 20, warmup: int = 3) -> dict[Any, float]:
    """Median milliseconds of each call, all of them interleaved so that drift of the machine hits all alike.

    Args:
        calls: what to time, by name.
        repeats: measurements of each.
        warmup: calls of each before the first measurement.
    """
    times: dict[Any, list[float]] = {name: [] for name in calls}
    with torch.inference_mode():
        for call in calls.values():
            for _ in range(warmup):
                call()
        for _ in range(repeats):
            for name, call in calls.items():
                _synchronize()
                start = time.perf_counter()
                call()
                _synchronize()
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def ratio_of_medians(first: Sequence[float], second: Sequence[float]) -> float:
    """Median of the first divided by the median of the second."""
    return statistics.median(first) / statistics.median(second)


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
