"""What the levels of a loaded file take on this machine: a forward, a switch, memory."""

from __future__ import annotations

import dataclasses
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lightning_lcs.graph.tracing.example_inputs import with_noise
from lightning_lcs.model import SubspaceModel
from lightning_lcs.subspace.level_table import NamedLevel


@dataclasses.dataclass(frozen=True)
class LevelTiming:
    """What a level took here.

    Attributes:
        level: of the level table.
        latency_ms: median time of a forward.
        narrow_ms: median time of a forward of the network natively built at this level, ``materialize(alpha)``.
        switch_ms: median time of a switch to it, from the level before it in the table.
        copy_ms: median time of one copy of its parameters and buffers.
    """

    level: NamedLevel
    latency_ms: float
    narrow_ms: float
    switch_ms: float
    copy_ms: float


def time_levels(model: SubspaceModel, repeats: int = 30, batch: int = 1) -> list[LevelTiming]:
    """Time every level of the level table; levels, switches and copies take turns, so that drift hits all alike.

    The level that was set is set again at the end.

    Args:
        model: structured, from a file.
        repeats: measurements of each, at least 1.
        batch: samples of a forward.

    Raises:
        ValueError: the model has no level table, runs without a runtime, or a number is below 1.
    """
    if repeats < 1 or batch < 1:
        raise ValueError(f"repeats={repeats} and batch={batch} must both be at least 1")
    if model.runtime is None or not model.levels:
        raise ValueError("timing needs a structured model with a level table, from SubspaceModel.load")
    program = model.parts[0].network.in_mode(False)
    args, kwargs = with_noise(program.example_inputs(batch, torch.device("cpu")))
    copies = {level.name: torch.zeros(2, max(1, level.size_bytes), dtype=torch.uint8) for level in model.levels}
    narrow = {level.name: model.materialize(level.alpha) for level in model.levels}
    times: dict[tuple[str, str], list[float]] = {}
    with warnings.catch_warnings(), torch.inference_mode(), model.at_alpha(model.alpha):
        warnings.filterwarnings("ignore", "running at alpha")  # without statistics, but this is about time
        for number in range(repeats + 1):  # the first round warms up
            for level in model.levels:
                source, target = copies[level.name]
                taken = {
                    "switch": _seconds(model.set_alpha, level.alpha),
                    "first": _seconds(model, *args, **kwargs),
                    "latency": _seconds(model, *args, **kwargs),
                    "narrow": _seconds(narrow[level.name], *args, **kwargs),
                    "copy": _seconds(target.copy_, source),
                }
                for what, seconds in taken.items() if number else ():
                    times.setdefault((level.name, what), []).append(1e3 * seconds)
    return [
        LevelTiming(
            level,
            latency_ms=statistics.median(times[level.name, "latency"]),
            narrow_ms=statistics.median(times[level.name, "narrow"]),
            switch_ms=statistics.median(times[level.name, "switch"]),
            copy_ms=statistics.median(times[level.name, "copy"]),
        )
        for level in model.levels
    ]


def machine() -> str:
    """The machine and the software that timings are of, in one line."""
    return (
        f"{_processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, {platform.system()}, "
        f"Python {platform.python_version()}, torch {torch.__version__}"
    )


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _seconds(call: Callable[..., Any], *args: Any, **kwargs: Any) -> float:
    begin = time.perf_counter()
    call(*args, **kwargs)
    return time.perf_counter() - begin
