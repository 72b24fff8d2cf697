"""``lightning-lcs levels``: the level table of a file."""

from __future__ import annotations

from pathlib import Path

from lightning_lcs.io.inspect import inspect_file
from lightning_lcs.reporting.terminal import print_levels


def show_levels(file: Path) -> None:
    """Print the level table of a model.lcs: names, costs, and what was measured when it was saved.

    Args:
        file: The file.
    """
    found = inspect_file(file).levels
    if not found:
        raise ValueError(f"{file} holds no level table")
    print_levels(found)
