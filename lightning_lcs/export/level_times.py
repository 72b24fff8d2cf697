"""Measures the time of a forward and of a switch for each level of a loaded file on this machine."""

from __future__ import annotations

import dataclasses
import os
import platform
import statistics
import warnings
from functools import partial
from pathlib import Path

import torch

from lightning_lcs.graph.tracing.example_inputs import with_noise
from lightning_lcs.model import SubspaceModel
from lightning_lcs.subspace.curves.level_table import NamedLevel
from lightning_lcs.utils.timing import elapsed


@dataclasses.dataclass(frozen=True)
class LevelTiming:
    """The measured times of a level, all of them medians in milliseconds.

    Attributes:
        level: The level, as it stands in the level table.
        latency_ms: A forward at this level.
        narrow_ms: A forward of the plain network of this level, as ``materialize(alpha)`` gives it.
        switch_ms: A switch to this level, from the level before it in the table.
        copy_ms: One copy of the parameters and buffers of this level.
    """

    level: NamedLevel
    latency_ms: float
    narrow_ms: float
    switch_ms: float
    copy_ms: float


def time_levels(model: SubspaceModel, repeats: int = 30, batch: int = 1) -> list[LevelTiming]:
    """Time every level of the level table.

    Forwards, switches and copies take turns, so that drift of the machine hits all alike. The level that was set before
    is set again at the end.

    Args:
        model: A structured model from a file.
        repeats: The number of measurements of each level, at least 1. The default is 30.
        batch: The number of samples of a forward, at least 1. The default is 1.

    Returns:
        The medians of the measured times of each level, in the order of the level table.

    Raises:
        ValueError: The model has no level table or was not loaded from a structured file, or a number is below 1.

    Example:
        >>> import torch
        >>> from lightning_lcs import SubspaceModel
        >>> from lightning_lcs.export import time_levels
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
        >>> model = SubspaceModel(net, torch.randn(2, 8), subspace="point").eval()
        >>> model.save("model.lcs", levels=[0.0, 1.0])
        >>> timings = time_levels(SubspaceModel.load("model.lcs"), repeats=2)
        >>> [timing.level.name for timing in timings]
        ['small', 'full']
    """
    if repeats < 1 or batch < 1:
        raise ValueError(f"repeats={repeats} and batch={batch} must both be at least 1")
    if model.runtime is None or not model.levels:
        raise ValueError("time_levels() needs a structured model with a level table: load one with SubspaceModel.load")
    program = model.parts[0].network.in_mode(False)
    args, kwargs = with_noise(program.example_inputs(batch, torch.device("cpu")))
    copies = {level.name: torch.zeros(2, max(1, level.size_bytes), dtype=torch.uint8) for level in model.levels}
    narrow = {level.name: model.materialize(level.alpha) for level in model.levels}
    times: dict[tuple[str, str], list[float]] = {}
    with warnings.catch_warnings(), torch.inference_mode(), model.at_alpha(model.alpha):
        warnings.filterwarnings("ignore", "running at alpha")  # batch-norm statistics don't matter for times
        for number in range(repeats + 1):  # the first round is a warm-up
            for level in model.levels:
                source, target = copies[level.name]
                taken = {
                    "switch": elapsed(partial(model.set_alpha, level.alpha)),
                    "first": elapsed(partial(model, *args, **kwargs)),
                    "latency": elapsed(partial(model, *args, **kwargs)),
                    "narrow": elapsed(partial(narrow[level.name], *args, **kwargs)),
                    "copy": elapsed(partial(target.copy_, source)),
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
    """One line about the machine and the software on which times are measured."""
    return (
        f"{_processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, {platform.system()}, "
        f"Python {platform.python_version()}, torch {torch.__version__}"
    )


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
