"""On what each level of a training step runs: the batch or a part of it, and with which weight."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Trainer
from torch.utils._pytree import TreeSpec, tree_structure

from lightning_lcs.training.data.loaders import batch_size
from lightning_lcs.training.step.split_batch import UndividedError, divide
from lightning_lcs.training.step.sweep_options import SweepOptions
from lightning_lcs.utils.warning import warn

UNDIVIDED = (
    "a batch is not divided over {levels} levels: {reason}. Each level ran on all of it, which takes as long as "
    "{levels} steps"
)
WHOLE = (
    "batches are divided over levels, but each level gets all of {names}, whose rows are other than the samples; where "
    "these belong to samples, leave split out"
)

Run = tuple[tuple[Any, ...], float]
"""The arguments of a step at one of its levels, and the weight of the loss."""


class Runs:
    """Gives the runs of a step; it warns once of batches that are not divided.

    Args:
        trainer: The trainer, whose loaders say how a batch is made.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._told = False
        self._divides = True

    def __call__(self, options: SweepOptions, visited: Sequence[float], args: tuple[Any, ...]) -> list[Run]:
        """The run of each level of a step, in the same order.

        Args:
            options: What steps visit.
            visited: The levels.
            args: The arguments of the step, of which the first is the batch.
        """
        shares = options.shares
        if shares is not None and self._divides:
            try:
                divided = divide(args[0], shares, self._loaders())
            except UndividedError as error:
                self._divides = not error.unknown
                self._tell(UNDIVIDED.format(reason=error, levels=len(visited)))
            else:
                if divided.whole:
                    self._tell(WHOLE.format(names=", ".join(divided.whole)))
                sizes = [batch_size(part) for part in divided.parts]
                weights = options.weights([size / sum(sizes) for size in sizes])
                return [((part, *args[1:]), weight) for part, weight in zip(divided.parts, weights, strict=True)]
        return [(args, weight) for weight in options.weights([1.0 / len(visited)] * len(visited))]

    def _loaders(self) -> TreeSpec | None:
        """The structure of a batch to which several loaders contribute."""
        combined = self._trainer.fit_loop._combined_loader
        if combined is None or len(combined.flattened) < 2 or combined._mode == "sequential":
            return None
        return tree_structure(combined.iterables)

    def _tell(self, message: str) -> None:
        if not self._told:
            self._told = True
            warn(message)
