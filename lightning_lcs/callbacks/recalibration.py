"""BatchNormRecalibration: batch-norm statistics for every level, from training images."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng

from lightning_lcs.model import SubspaceModel
from lightning_lcs.subspace.calibration import DEFAULT_LEVELS, level_grid
from lightning_lcs.training.checks import warn_of_old_namespace
from lightning_lcs.training.isolation import quiet
from lightning_lcs.training.loaders import batch_size, taken_from_training, training_batches
from lightning_lcs.training.progress import counted, progress
from lightning_lcs.training.steps import TrainingFlags, bare_training_step
from lightning_lcs.training.subspace import find_subspace_model

RECALIBRATION = "Recalibration of batch norm, images"


class BatchNormRecalibration(pl.Callback):
    """Collects batch-norm statistics per level and keeps them in the subspace model.

    ``LCSCallback`` runs it before each curve. Alone, in a trainer whose module holds a trained ``SubspaceModel``, it
    runs at the start of ``validate``, ``test`` and ``predict``.

    Weights, optimizer, random state, metrics and the training loader's position stay as they are; validation and test
    data are never read. The user's ``training_step`` is called on each batch without gradients, its logging muted. What
    is outside of the network is in training meanwhile, as in a training step.

    Args:
        alphas: levels to keep: their number (evenly spaced), or the levels.
        images: about how many training images each level sees; 0 for no statistics at all.
        seed: which images.

    Raises:
        ValueError: ``images`` is negative, or ``alphas`` is not a grid in [0, 1].
    """

    def __init__(self, alphas: int | Sequence[float] = DEFAULT_LEVELS, images: int = 2048, seed: int = 0) -> None:
        if images < 0:
            raise ValueError(f"images={images} is negative; use, for example, 2048")
        warn_of_old_namespace()  # here, because every LCSCallback makes one of these
        self.alphas = level_grid(alphas)
        self.images = images
        self.seed = seed
        self.flags = TrainingFlags()

    def run(self, trainer: Trainer, module: LightningModule, model: SubspaceModel, also: Sequence[float] = ()) -> None:
        """Recalibrate now.

        Args:
            trainer: gives the training data.
            module: whose ``training_step`` runs the network.
            model: receives the statistics; nothing happens without batch norm.
            also: further levels to keep, such as those of a curve.

        Raises:
            RuntimeError: there is no training data.
        """
        levels = sorted({*self.alphas, *also})
        self._run(trainer, module, model, levels, lambda batches, forward: model.recalibrate(batches, levels, forward))

    def run_running(self, trainer: Trainer, module: LightningModule, model: SubspaceModel) -> None:
        """Take the network's own running statistics anew, for training that does not visit alpha = 1 at every step.

        Arguments and errors as in :meth:`run`.
        """
        self._run(
            trainer, module, model, [1.0], lambda batches, forward: model.runner.recalibrate_full(batches, forward)
        )

    def _run(
        self,
        trainer: Trainer,
        module: LightningModule,
        model: SubspaceModel,
        levels: Sequence[float],
        collect: Callable[[Iterable[Any], Callable[[Any], Any]], None],
    ) -> None:
        if not model.runner.needs_data(levels):
            return
        if self.images == 0:
            model.runner.evaluation.warns = False  # levels run on the statistics of alpha = 1, as was asked for
            return
        if taken_from_training(trainer):
            warnings.warn(
                "no statistics of the levels are collected within an epoch: the training loader is its own iterator, "
                "and training would lose the images read; a checkpoint of the end of an epoch holds them",
                stacklevel=2,
            )
            return
        step = bare_training_step(module)
        with (
            isolate_rng(),
            quiet(module, model),
            self.flags.around(module, model),
            trainer.precision_plugin.forward_context(),
            progress(trainer, RECALIBRATION, self.images) as advance,
        ):
            batches = training_batches(trainer, module, self.images, self.seed)
            sizes = counted(batches, advance, RECALIBRATION, lambda item: trainer.world_size * batch_size(item[0]))
            collect(sizes, lambda item: step(*item))

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Look which modules train, before an evaluation begins."""
        self.flags.see(pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Alone, before ``validate``."""
        self._run_alone(trainer, pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Alone, before ``test``."""
        self._run_alone(trainer, pl_module)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Alone, before ``predict``."""
        self._run_alone(trainer, pl_module)

    def _run_alone(self, trainer: Trainer, module: LightningModule) -> None:
        model, owned = find_subspace_model(trainer, module)
        if not owned and trainer.state.fn != "fit" and not model.statistics:
            self.run(trainer, module, model)
