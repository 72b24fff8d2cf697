"""``lightning-lcs materialize``: a file of one level out of a file of all levels."""

from __future__ import annotations

from pathlib import Path

from lightning_lcs.export.level_file import save_level
from lightning_lcs.model import SubspaceModel
from lightning_lcs.subspace.curves.level_table import named_level


def materialize(
    file: Path, alpha: float | None = None, level: str | None = None, output: Path = Path("level.lcs")
) -> None:
    """Cut one level out of a structured model.lcs, as a model.lcs that holds nothing else.

    Args:
        file: The file of all levels.
        alpha: The level, in [0, 1]; with stored batch-norm statistics, the nearest stored level.
        level: The level by its name, in place of alpha.
        output: The file to write.
    """
    model = SubspaceModel.load(file)
    if level is not None and alpha is None:
        alpha = named_level(model.levels, level).alpha
    elif alpha is None or level is not None:
        raise ValueError("give either --alpha or --level")
    made = save_level(model, alpha, output)
    present = model.nearest_level(alpha)
    names = [f"level {known.name!r}, " for known in model.levels if known.alpha == present]
    size = f"{made.params:,} parameters, {output.stat().st_size / 1e6:.2f} MB"
    print(f"{output}: {''.join(names)}alpha={present:g}, {size}")
