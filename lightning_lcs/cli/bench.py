"""``lightning-lcs bench``: what the levels of a file take on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from lightning_lcs.cli.level_times import LevelTiming, machine, time_levels
from lightning_lcs.cli.parsing import call
from lightning_lcs.model import SubspaceModel
from lightning_lcs.runtime.memory_format import layout_of


def bench(args: Sequence[str]) -> None:
    """Time the levels of a file.

    Args:
        args: the command's name, and what follows it.
    """
    call(_bench, args)


def _bench(file: Path, repeats: int = 30, batch: int = 1, threads: int | None = None) -> None:
    """Time a forward and a switch of every level of a model.lcs on this machine; medians of interleaved measurements.

    "of full" compares a forward with that of the largest level, "of narrow" with the network that materialize gives.

    Args:
        file: the file; structured.
        repeats: measurements of each level.
        batch: samples of a forward.
        threads: of torch; its own number by default.
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
    for heading in (
        "level",
        "alpha",
        "size MB",
        "forward ms",
        "of full",
        "of narrow",
        "switch ms",
        "in copies",
        "in forwards",
    ):
        table.add_column(heading, justify="left" if heading == "level" else "right", overflow="fold")
    full = timings[-1].latency_ms
    for timing in timings:
        # The only level is never switched to.
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
    runtime = model.runtime
    if runtime is not None:
        memory = runtime.statistics().arena_bytes / 1e6
        console.print(
            f"prepared tensors: {memory:.2f} MB in two arenas; weights {layout_of(model.parts[0])}", markup=False
        )
    console.print(
        "of full: of the largest level. of narrow: of the plain network of that size. in copies, in forwards:"
    )
    console.print("the switch, in copies of the level's tensors, and in forwards of the level.")
    console.print(machine(), markup=False)


def _switch(timing: LevelTiming) -> tuple[str, str, str]:
    copies, forwards = timing.switch_ms / timing.copy_ms, timing.switch_ms / timing.latency_ms
    return f"{timing.switch_ms:.2f}", f"{copies:.1f}", f"{forwards:.3f}"
