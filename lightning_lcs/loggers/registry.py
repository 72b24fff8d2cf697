"""Which logger shows a curve how: one place where the package's own and the user's are registered."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from lightning_lcs.subspace.curves.curve import Curve


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measurement:
    """A measured curve, and what a logger may show with it.

    Attributes:
        curves: The curves to show by name: "latest", then "previous" and "baseline" where there are such curves.
        description: What was trained, as plain data; see :meth:`SubspaceModel.describe`.
        step: The number of optimizer steps taken.
        folder: The folder of the run.
        save: Writes the trained subspace into a file, such as "model.lcs", with the latest curve as its level table;
            ``None``, the default, unless the user asked for the file to be uploaded.

    Example:
        >>> from pathlib import Path
        >>> from lightning_lcs.loggers.registry import Measurement
        >>> Measurement(curves={"latest": []}, description={}, step=100, folder=Path("runs/version_0")).step
        100
    """

    curves: Mapping[str, Curve]
    description: Mapping[str, Any]
    step: int
    folder: Path
    save: Callable[[Path], None] | None = None


Draw: TypeAlias = Callable[[Any, Measurement], None]
# By the name of a logger's class, the function that draws, or the module of this package whose draw() it is.
DRAWS: dict[str, Draw | str] = {
    "TensorBoardLogger": "lightning_lcs.loggers.tensorboard",
    "WandbLogger": "lightning_lcs.loggers.wandb",
}


def register_logger(name: str) -> Callable[[Draw], Draw]:
    """Register the function below as what draws curves for a class of loggers and its subclasses.

    The function takes the logger and a :class:`Measurement`. Metrics reach every logger without it.

    Args:
        name: The name of the logger's class, such as "MLFlowLogger".

    Raises:
        ValueError: The class has such a function already.

    Example:
        >>> from lightning_lcs.loggers import register_logger
        >>> @register_logger("ReadmeLogger")
        ... def draw(logger, measurement):
        ...     logger.experiment.write(f"{len(measurement.curves['latest'])} levels")
    """

    def register(draw: Draw) -> Draw:
        if name in DRAWS:
            known = DRAWS[name]
            owner = known if isinstance(known, str) else known.__module__
            raise ValueError(f"{name!r} has a function that draws curves already, in {owner}")
        DRAWS[name] = draw
        return draw

    return register


def draw_curves(logger: Any, measurement: Measurement) -> None:
    """Show a measurement in a logger: as registered for its class, else as figures if the logger takes figures."""
    names = [kind.__name__ for kind in type(logger).__mro__ if kind.__name__ in DRAWS]
    draw = DRAWS[names[0] if names else "TensorBoardLogger"]
    function: Draw = importlib.import_module(draw).draw if isinstance(draw, str) else draw
    function(logger, measurement)
