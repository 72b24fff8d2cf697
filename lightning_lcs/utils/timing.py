"""Measured time of calls."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def elapsed(call: Callable[[], Any], clock: Callable[[], float] = time.perf_counter) -> float:
    """The time that a call takes, work on a CUDA device included.

    Args:
        call: What to time.
        clock: The clock. The default counts seconds.
    """
    synchronize()
    begin = clock()
    call()
    synchronize()
    return clock() - begin


def median_latencies_ms(calls: Mapping[Any, Callable[[], Any]], repeats: int = 20, warmup: int = 3) -> dict[Any, float]:
    """The median time of each call in milliseconds; the calls take turns, so that drift of the machine hits all alike.

    Args:
        calls: What to time, by name.
        repeats: The number of measurements of each call. The default is 20.
        warmup: The number of calls of each before the first measurement. The default is 3.

    Example:
        >>> from lightning_lcs.utils.timing import median_latencies_ms
        >>> times = median_latencies_ms({"short": lambda: sum(range(10)), "long": lambda: sum(range(100_000))})
        >>> times["short"] < times["long"]
        True
    """
    times: dict[Any, list[float]] = {name: [] for name in calls}
    import torch

    with torch.inference_mode():
        for call in calls.values():
            for _ in range(warmup):
                call()
        for _ in range(repeats):
            for name, call in calls.items():
                times[name].append(1e3 * elapsed(call))
    return {name: statistics.median(values) for name, values in times.items()}


def ratio_of_medians(first: Sequence[float], second: Sequence[float]) -> float:
    """The median of the first sequence divided by the median of the second."""
    return statistics.median(first) / statistics.median(second)


def synchronize() -> None:
    """Wait for the work on a CUDA device, if there is one."""
    import torch  # here, as the controller and the command line import this module without torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
