"""What the present training step draws, and how far the training has come."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence

from lightning.pytorch import LightningModule, Trainer

from lightning_lcs.subspace.part import Part
from lightning_lcs.subspace.weights.layers import layer_of
from lightning_lcs.training.step.sweep_options import SweepOptions


class Draws:
    """Draws of the present step of a trainer; they depend on the seed and the number of the batch alone.

    Args:
        trainer: The trainer, which fits the module.
        module: The module.
        seed: The seed.
    """

    def __init__(self, trainer: Trainer, module: LightningModule, seed: int) -> None:
        self._trainer = trainer
        self._module = module
        self._seed = seed

    @property
    def done(self) -> int:
        """The number of completed batches: one that failed and is repeated after a resume draws the same levels."""
        return int(self._trainer.fit_loop.epoch_loop.batch_progress.total.completed)

    def visited(self, options: SweepOptions) -> tuple[float, ...]:
        """The levels that the step visits, ascending."""
        return tuple(options.alphas(self._seed, self.done, self._batches()))

    def of_layers(self, options: SweepOptions, parts: Sequence[Part]) -> Callable[[float], Mapping[str, float]]:
        """What single layers of networks draw in the step, by level."""
        layers = [part.prefix + layer_of(name) for part in parts for name in part.compressed]
        return functools.partial(options.layer_values, self._seed, self.done, layers=layers)

    def strength(self, options: SweepOptions) -> float:
        """The share of a level's compression that applies at the step, in [0, 1]."""
        if options.warmup == 0.0:
            return 1.0
        return options.strength(self.progress(f"warmup={options.warmup:g}", "sampling=Sampling(warmup=0)"))

    def progress(self, given: str, off: str) -> float:
        """The share of all training steps that is done.

        Args:
            given: The option that is such a share, with its value.
            off: The argument that turns it off.

        Raises:
            ValueError: The training has no end in sight.
        """
        steps, total = self._trainer.global_step, float(self._trainer.estimated_stepping_batches)
        if not self._module.automatic_optimization:  # a step may step several optimizers, or none
            steps, total = self.done, self._batches()
        if not 0 < total < math.inf:
            raise ValueError(
                f"{given} is a share of all training steps, and the training data has no length: set "
                f"Trainer(max_steps=...), or LCSCallback({off})"
            )
        return steps / total

    def _batches(self) -> float:
        """The number of batches of the whole training; infinite if it has no end in sight."""
        trainer = self._trainer
        epochs = math.inf if trainer.max_epochs in (None, -1) else trainer.max_epochs
        batches = math.inf if trainer.max_steps == -1 else trainer.max_steps * trainer.accumulate_grad_batches
        return float(min(batches, epochs * trainer.num_training_batches if epochs else 0.0))
