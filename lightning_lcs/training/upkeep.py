"""When a trainer's LCSCallback collects statistics and measures curves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from lightning_lcs.io.checkpoint import CHECKPOINT_KEY
from lightning_lcs.model import SubspaceModel
from lightning_lcs.training.adoption import Adoption
from lightning_lcs.training.evaluation import evaluate_level
from lightning_lcs.training.measurement import Measurement
from lightning_lcs.training.recalibration import Recalibrator


class Upkeep:
    """Keeps the statistics and the curve of an adopted network up to date with its weights.

    Attributes:
        recalibrator: Collects the statistics.
        measurement: Measures the curve.
    """

    def __init__(self, adoption: Adoption, recalibrator: Recalibrator, measurement: Measurement) -> None:
        self.adoption = adoption
        self.recalibrator = recalibrator
        self.measurement = measurement
        self._measured_at = -1
        self._failed = False
        self._resumed = False

    def begin(self, module: LightningModule) -> None:
        """A call of the trainer begins."""
        self.recalibrator.flags.see(module)
        self._failed = False

    def fail(self) -> None:
        """A step failed: a checkpoint that is saved now gets no new statistics."""
        self._failed = True

    def before_validation(self, trainer: Trainer, module: LightningModule) -> None:
        """Collect the statistics of alpha = 1 where training steps do not."""
        model = self.adoption.adopted(module)
        self._resumed = trainer.fit_loop.epoch_loop.val_loop.restarted_mid_evaluation
        if trainer.state.fn != "fit" or self.adoption.options.visits_full:
            return
        # Before training, the network's own statistics stay as they came, unless alpha = 1 can't run without new ones.
        if not trainer.sanity_checking or not model.mode.is_full(1.0):
            self.recalibrator.run_running(trainer, module, model)

    def after_validation(self, trainer: Trainer, module: LightningModule) -> None:
        """Measure the curve where it is due."""
        if trainer.sanity_checking:
            self._rehearse(trainer, module)
        elif trainer.state.fn != "fit" or self.measurement.is_due(trainer):
            self.measure(trainer, module, dict(trainer.callback_metrics))
        elif not self.adoption.adopted(module).mode.is_full(1.0):
            # The statistics of this validation are those of one level, and not a grid to choose the nearest from.
            self.adoption.adopted(module).statistics = {}

    def after_training(self, trainer: Trainer, module: LightningModule) -> None:
        """Measure the curve of the final weights, unless a validation did."""
        if self._measured_at != trainer.global_step:
            self.measure(trainer, module, None)

    def measure(self, trainer: Trainer, module: LightningModule, full_metrics: Mapping[str, Any] | None) -> None:
        """Recalibrate, and measure the curve.

        Args:
            trainer: Gives the data.
            module: Its validation hooks run.
            full_metrics: The metrics that the validation of alpha = 1 has just given, if there was one.
        """
        model = self.adoption.adopted(module)
        if trainer.state.fn == "fit" or not model.statistics:
            self.recalibrator.run(trainer, module, model, also=self.measurement.alphas)
        if model.alpha != 1.0 or trainer.world_size > 1 or self._resumed:
            # They were measured at another level, or on one rank's share or the rest of the data after a resume.
            full_metrics = None
        self.measurement.run(trainer, module, model, full_metrics)
        self._measured_at = trainer.global_step

    def add_subspace(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the subspace to a checkpoint, with the batch-norm statistics of the weights that it holds."""
        model = self.adoption.model
        if model is None:
            return
        if trainer.state.fn == "fit" and not self._failed and not model.statistics:
            if not self.adoption.options.visits_full:
                self.recalibrator.run_running(trainer, module, model)
            self.recalibrator.run(trainer, module, model, also=self.measurement.alphas)
        checkpoint[CHECKPOINT_KEY] = {**model.subspace_state(), "targets": list(self.adoption.targets)}

    def _rehearse(self, trainer: Trainer, module: LightningModule) -> None:
        """One batch of a curve: a step that can't run compressed fails now instead of after the training."""
        model: SubspaceModel = self.adoption.adopted(module)
        # The level has no batch-norm statistics yet, and nobody sees the result.
        warns, model.runner.evaluation.warns = model.runner.evaluation.warns, False
        try:
            evaluate_level(trainer, module, model, 0.0, max_batches=1)
        finally:
            model.runner.evaluation.warns = warns
