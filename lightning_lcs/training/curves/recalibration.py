"""Batch-norm statistics for every level, from a trainer's training images."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import RunningStage

from lightning_lcs.model import SubspaceModel
from lightning_lcs.subspace.running.calibration import DEFAULT_IMAGES, DEFAULT_LEVELS, level_grid
from lightning_lcs.subspace.running.gradients import gradients_set_back
from lightning_lcs.subspace.state import LevelTensors
from lightning_lcs.training.curves.progress import counted, progress
from lightning_lcs.training.data.loaders import batch_size, check_loaders, training_batches
from lightning_lcs.training.endpoint_groups import all_parameters
from lightning_lcs.training.step.bare_step import TrainingFlags, bare_training_step
from lightning_lcs.training.user_code.isolation import apart
from lightning_lcs.training.user_code.snapshot import Snapshot

RECALIBRATION = "Recalibration of batch norm, images"


class Recalibrator:
    """Collects the statistics of levels and keeps them in the subspace model; see ``BatchNormRecalibration``.

    Args:
        alphas: The levels to keep: their number (evenly spaced), or the levels. The default is 25.
        images: The number of training images that each level sees; 0 for no statistics. The default is 512.
        seed: The seed of the choice of images.

    Raises:
        ValueError: ``images`` is negative, or ``alphas`` is not a grid in [0, 1].
    """

    def __init__(
        self, alphas: int | Sequence[float] = DEFAULT_LEVELS, images: int = DEFAULT_IMAGES, seed: int = 0
    ) -> None:
        if images < 0:
            raise ValueError(f"images={images} is negative; use, for example, {DEFAULT_IMAGES}")
        self.alphas = level_grid(alphas)
        self.images = images
        self.seed = seed
        self.flags = TrainingFlags()
        self._with_gradients = False

    def check(self, trainer: Trainer, model: SubspaceModel) -> None:
        """Refuse, before the first step, loaders that can't be read without moving the position of training.

        Args:
            trainer: Its training loaders have given the first batch.
            model: The subspace model; without batch norm nothing is read.

        Raises:
            RuntimeError: With what can't be copied, and what to do.
        """
        if self.needed(model, 1.0):
            check_loaders(trainer)

    def needed(self, model: SubspaceModel, *also: float) -> bool:
        """Whether levels of a model get statistics from training images.

        Args:
            model: The subspace model.
            also: Further levels that are asked for.
        """
        return self.images > 0 and model.runner.needs_data([*self.alphas, *also])

    def is_covered(self, model: SubspaceModel) -> bool:
        """Whether a model holds statistics of all levels that are kept."""
        return set(model.runner.grid(self.alphas)) <= model.statistics.keys()

    def run(self, trainer: Trainer, module: LightningModule, model: SubspaceModel, also: Sequence[float] = ()) -> None:
        """Collect the statistics of all levels now.

        Args:
            trainer: Gives the training data.
            module: Its ``training_step`` runs the network.
            model: Receives the statistics; without batch norm nothing happens.
            also: Further levels to keep, such as those of a curve.

        Raises:
            RuntimeError: There is no training data.
        """
        levels = model.runner.grid(sorted({*self.alphas, *also}))
        collected = self._collected(trainer, module, model, levels)
        if collected is not None:
            model.statistics = collected

    def run_running(self, trainer: Trainer, module: LightningModule, model: SubspaceModel) -> None:
        """Collect the network's own running statistics anew, for training that skips alpha = 1 in some steps.

        The arguments and errors are those of :meth:`run`.
        """
        collected = self._collected(trainer, module, model, [1.0])
        if collected is None:
            return
        if trainer.sanity_checking:
            model.statistics = collected  # before training, the network's own statistics stay as they came
        else:
            model.runner.store_full(collected)

    def _collected(
        self, trainer: Trainer, module: LightningModule, model: SubspaceModel, levels: Sequence[float]
    ) -> LevelTensors | None:
        """The statistics of levels; ``None`` if they are not needed or not wanted."""
        if not model.runner.needs_data(levels):
            return None
        if self.images == 0:
            model.runner.evaluation.warns = False  # all levels run on the statistics of alpha = 1, as the user asked
            return None
        try:
            return self._collect(trainer, module, model, levels, self._with_gradients)
        except RuntimeError as error:
            # A step that needs gradients of its own (an adversarial one) fails without, and for others they are a cost.
            if self._with_gradients or " grad" not in str(error):
                raise
            collected = self._collect(trainer, module, model, levels, with_gradients=True)
            self._with_gradients = True
            return collected

    def _collect(
        self,
        trainer: Trainer,
        module: LightningModule,
        model: SubspaceModel,
        levels: Sequence[float],
        with_gradients: bool,
    ) -> LevelTensors:
        with (
            apart(trainer, module, model, stage=RunningStage.TRAINING),
            self.flags.around(module, model),
            gradients_set_back(all_parameters(module, model.endpoint_pairs(), trainer.optimizers), lambda _: None),
            trainer.precision_plugin.forward_context(),
            progress(trainer, RECALIBRATION, self.images) as advance,
        ):
            batches = training_batches(trainer, module, self.images, self.seed)
            sizes = counted(batches, advance, RECALIBRATION, lambda item: trainer.world_size * batch_size(item[0]))
            return model.runner.collect(sizes, levels, _Forward(bare_training_step(module), with_gradients))


class _Forward:
    """Runs the user's step on a batch, and sets the batch back for the next level."""

    def __init__(self, step: Callable[..., Any], with_gradients: bool) -> None:
        self._step = step
        self._with_gradients = with_gradients
        self._item: Any = None
        self._batch = Snapshot([])

    def __call__(self, item: Any) -> None:
        if item is not self._item:
            self._item, self._batch = item, Snapshot([item], earlier=self._batch)
        try:
            with torch.enable_grad() if self._with_gradients else contextlib.nullcontext():
                self._step(*item)
        finally:
            self._batch.restore()
