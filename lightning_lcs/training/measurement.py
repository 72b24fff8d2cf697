"""The accuracy-efficiency curve, measured with the module's own validation metrics."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from os import PathLike
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng

from lightning_lcs.model import SubspaceModel
from lightning_lcs.reporting.curve import CurvePoint, read_csv
from lightning_lcs.reporting.history import Evaluation
from lightning_lcs.subspace.calibration import level_grid
from lightning_lcs.training.evaluation import evaluate_level, evaluation_batches, evaluation_loaders
from lightning_lcs.training.progress import progress
from lightning_lcs.training.publish import publish
from lightning_lcs.utils.timing import median_latencies_ms
from lightning_lcs.utils.warning import warn


class Measurement:
    """Measures curves and publishes them; the arguments are those of ``TradeoffMonitor``."""

    def __init__(
        self,
        alphas: int | Sequence[float] = 7,
        every_n_epochs: int | None = None,
        latency: bool = True,
        baseline: str | PathLike[str] | None = None,
        artifact: bool = False,
    ) -> None:
        if every_n_epochs is not None and every_n_epochs < 1:
            raise ValueError(f"every_n_epochs={every_n_epochs} is below 1; leave it out to measure once, at the end")
        self.alphas = level_grid(alphas)
        self.every_n_epochs = every_n_epochs
        self.latency = latency
        self.baseline = [] if baseline is None else read_csv(baseline)
        self.artifact = artifact
        self.curve: list[CurvePoint] = []
        self.evaluations: list[Evaluation] = []

    def is_due(self, trainer: Trainer) -> bool:
        """Whether the validation that has just ended in ``fit`` is one after which a curve is due."""
        every, epoch = self.every_n_epochs, trainer.current_epoch + 1
        epoch_ended = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        if every is not None and epoch % every == 0 and epoch_ended:
            return True
        steps, epochs = trainer.max_steps, trainer.max_epochs
        last = epochs not in (None, -1) and epoch >= (epochs or 0) and epoch_ended
        return bool(last or (steps != -1 and trainer.global_step >= steps) or trainer.should_stop)

    def run(
        self,
        trainer: Trainer,
        module: LightningModule,
        model: SubspaceModel,
        full_metrics: Mapping[str, Any] | None = None,
    ) -> None:
        """Measure the curve now.

        Args:
            trainer: Gives loaders and loggers.
            module: Its validation (or test) hooks are called.
            model: Runs at each level.
            full_metrics: The metrics of alpha = 1 where they have just been measured; otherwise they are measured as
                well.
        """
        if evaluation_loaders(trainer, bool(trainer.testing)) is None:
            warn("no validation data: the accuracy-efficiency curve is not measured")
            return
        levels = sorted({model.nearest_level(alpha) for alpha in self.alphas})
        measured: dict[float, dict[str, float]] = {}
        measuring = [alpha for alpha in levels if alpha < 1.0 or full_metrics is None]
        batches = evaluation_batches(trainer, bool(trainer.testing))
        with progress(trainer, "Curve", len(measuring) * batches) as advance:
            for number, alpha in enumerate(measuring, 1):
                doing = f"Curve, alpha {alpha:.2f} ({number} of {len(measuring)})"
                advance(0, doing)
                measured[alpha] = evaluate_level(trainer, module, model, alpha, after_batch=partial(advance, 1, doing))
        if 1.0 in levels and full_metrics is not None:
            names = {name for metrics in measured.values() for name in metrics}
            measured[1.0] = {k: float(v) for k, v in full_metrics.items() if k in names or not names}
        with isolate_rng():
            # One rank measures: several on one machine would slow each other and get different figures.
            latencies = self._latencies(model, levels) if trainer.is_global_zero else {}
            latencies = trainer.strategy.broadcast(latencies)
        curve = []
        for alpha in levels:
            efficiency = model.efficiency(alpha)
            curve.append(CurvePoint(**vars(efficiency), latency_ms=latencies[alpha], metrics=measured[alpha]))
        self.curve = curve
        self.evaluations = publish(trainer, module, model, curve, self.evaluations, self.baseline, self.artifact)

    def _latencies(self, model: SubspaceModel, levels: Sequence[float]) -> dict[float, float]:
        if not self.latency or len(model.parts) > 1:
            return dict.fromkeys(levels, math.nan)
        network = model.parts[0].network
        args, kwargs = network.example_inputs(samples=1)

        def call(small: torch.nn.Module) -> Callable[[], Any]:
            return lambda: small(*args, **kwargs)

        return median_latencies_ms({alpha: call(model.materialize(alpha)) for alpha in levels})
