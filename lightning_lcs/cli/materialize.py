"""``lightning-lcs materialize``: a file of one level out of a file of all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightning_lcs.cli.parsing import call
from lightning_lcs.export.level_file import save_level
from lightning_lcs.model import SubspaceModel
from lightning_lcs.subspace.level_table import named_level


def materialize(args: Sequence[str]) -> None:
    """Write a file of one level.

    Args:
        args: the command's name, and what follows it.
    """
    call(_materialize, args)


def _materialize(
    file: Path, alpha: float | None = None, level: str | None = None, output: Path = Path("level.lcs")
) -> None:
    """Cut one level out of a model.lcs, as a model.lcs that holds nothing else.

    Args:
        file: the file of all levels; structured.
        alpha: the level, in [0, 1]; with stored batch-norm statistics, the nearest stored one.
        level: the level by its name, in place of alpha.
        output: the file to write.
    """
    if (alpha is None) == (level is None):
        raise ValueError("give either --alpha or --level")
    model = SubspaceModel.load(file)
    chosen = named_level(model.levels, level).alpha if level is not None else alpha
    made = save_level(model, chosen, output)  # type: ignore[arg-type]
    print(f"{output}: level {made.name!r}, {made.params:,} parameters, {output.stat().st_size / 1e6:.2f} MB")
