"""``lightning-lcs bench``: the time that the levels of a file take on this machine."""

from __future__ import annotations

from pathlib import Path

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from lightning_lcs.export.level_times import LevelTiming, machine, time_levels
from lightning_lcs.model import SubspaceModel
from lightning_lcs.runtime.memory_format import layout_of

_HEADINGS = (
    "level",
    "alpha",
    "size\nMB",
    "forward\nms",
    "forward\nof full",
    "forward\nof plain",
    "switch\nms",
    "switch in\ncopies",
    "switch in\nforwards",
)
_EXPLAINED = """\
forward of full: the time of a forward, as a share of that of the largest level.
forward of plain: the time of a forward, as a share of that of the plain network of this level, from materialize().
switch in copies: the time of a switch to the level, in copies of the level's tensors.
switch in forwards: the time of a switch to the level, in forwards at the level."""


def bench(file: Path, repeats: int = 30, batch: int = 1, threads: int | None = None) -> None:
    """Time a forward and a switch of every level of a structured model.lcs on this machine.

    Times are medians of measurements that take turns.

    Args:
        file: The file.
        repeats: The number of measurements of each level.
        batch: The number of samples of a forward.
        threads: The number of torch's threads. The default is that of torch.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    model = SubspaceModel.load(file)
    timings = time_levels(model, repeats, batch)
    table = Table(
        title=f"{file}, batch {batch}, median of {repeats}",
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    for heading in _HEADINGS:
        table.add_column(heading, justify="left" if heading == "level" else "right", overflow="fold")
    full = timings[-1].latency_ms
    for timing in timings:
        # A file with a single level has no switch.
        switch = ("", "", "") if len(timings) == 1 else _switch(timing)
        table.add_row(
            timing.level.name,
            f"{timing.level.alpha:.3f}",
            f"{timing.level.size_bytes / 1e6:.2f}",
            f"{timing.latency_ms:.2f}",
            f"{timing.latency_ms / full:.2f}",
            f"{timing.latency_ms / timing.narrow_ms:.2f}",
            *switch,
        )
    console = Console(highlight=False)
    console.print(table)
    console.print(_EXPLAINED, markup=False)
    if model.runtime is not None:
        memory = model.runtime.statistics().arena_bytes / 1e6
        console.print(
            f"Prepared tensors take {memory:.2f} MB in two arenas; weights are {layout_of(model.parts[0])}.",
            markup=False,
        )
    console.print(machine(), markup=False)


def _switch(timing: LevelTiming) -> tuple[str, str, str]:
    copies, forwards = timing.switch_ms / timing.copy_ms, timing.switch_ms / timing.latency_ms
    return f"{timing.switch_ms:.2f}", f"{copies:.1f}", f"{forwards:.3f}"
