"""``lightning-lcs levels``: the level table of a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightning_lcs.cli.parsing import call
from lightning_lcs.io.inspect import summary
from lightning_lcs.reporting.terminal import print_levels


def levels(args: Sequence[str]) -> None:
    """Print the level table of a file.

    Args:
        args: the command's name, and what follows it.
    """
    call(_levels, args)


def _levels(file: Path) -> None:
    """Print the level table of a model.lcs: names, costs, and what was measured when it was saved.

    Args:
        file: the file.
    """
    found = summary(file).levels
    if not found:
        raise ValueError(f"{file} holds no level table")
    print_levels(found)
