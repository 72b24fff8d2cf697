"""Progress of long work between epochs, within the bars that Lightning draws."""

from __future__ import annotations

import contextlib
import io
import math
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from lightning.pytorch import Trainer
from rich.console import Console

from lightning_lcs.reporting.terminal import print_curves
from lightning_lcs.subspace.curves.curve import Curve

Item = TypeVar("Item")
Advance = Callable[[int, str], None]
"""Reports how much more is done, and what is being done now."""


def shown_bar(trainer: Trainer) -> Any:
    """The trainer's progress bar where it is drawn: on rank 0, and not disabled; otherwise ``None``."""
    bar = trainer.progress_bar_callback
    return bar if trainer.is_global_zero and bar is not None and not getattr(bar, "is_disabled", False) else None


@contextlib.contextmanager
def progress(trainer: Trainer, description: str, total: float | None) -> Iterator[Advance]:
    """Show a bar below Lightning's own while the block runs; show nothing where Lightning draws none.

    Args:
        trainer: The bar joins its ``TQDMProgressBar`` or ``RichProgressBar``; another kind of bar is left alone.
        description: The text in front of the bar.
        total: How much there is to do; ``None`` or infinite if that is not known.
    """
    bar = shown_bar(trainer)
    known = int(total) if total is not None and math.isfinite(total) else None
    rich_progress = getattr(bar, "progress", None)
    if rich_progress is not None and hasattr(rich_progress, "add_task"):
        task = rich_progress.add_task(description, total=math.inf if known is None else known)

        def advance(done: int, doing: str) -> None:
            rich_progress.update(task, advance=done, description=doing)
            bar.refresh()

        try:
            yield advance
        finally:
            rich_progress.remove_task(task)
            bar.refresh()
    elif _is_tqdm(bar):
        from tqdm import tqdm

        # Below the two bars of the trainer, those of training and validation.
        position = 2 * bar.process_position + 2
        with tqdm(
            desc=description,
            total=known,
            position=position,
            leave=False,
            dynamic_ncols=True,
            file=sys.stdout,
            bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}]",
        ) as own:

            def advance(done: int, doing: str) -> None:
                own.update(done)
                own.set_description_str(doing, refresh=doing != own.desc)

            yield advance
    else:
        yield lambda done, doing: None


def counted(items: Iterable[Item], advance: Advance, description: str, size: Callable[[Item], int]) -> Iterator[Item]:
    """Pass items on; each counts as done, by its size, when the next one is requested."""
    for item in items:
        yield item
        advance(size(item), description)


def show_curves(trainer: Trainer, curves: Mapping[str, Curve]) -> None:
    """Print curves above the trainer's bars; print nothing where Lightning draws none."""
    bar = shown_bar(trainer)
    if bar is None:
        return
    colours = sys.stdout.isatty()
    console = Console(file=io.StringIO(), force_terminal=colours, width=shutil.get_terminal_size((100, 24)).columns)
    print_curves(curves, console)
    text = console.file.getvalue().rstrip("\n")  # type: ignore[attr-defined]
    if _is_tqdm(bar):
        from tqdm import tqdm

        # The bar's own print shows nothing once its bars are closed.
        tqdm.write(text, file=sys.stdout)
    elif getattr(getattr(bar, "progress", None), "console", None) is not None:
        from rich.text import Text

        bar.progress.console.print(Text.from_ansi(text), soft_wrap=True)
    else:
        bar.print(text)


def _is_tqdm(bar: Any) -> bool:
    # Its class may come from either of Lightning's namespaces.
    return any(kind.__name__ == "TQDMProgressBar" for kind in type(bar).__mro__)
