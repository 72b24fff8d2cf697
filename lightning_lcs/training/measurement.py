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
from lightning_lcs.reporting.history import Evaluation
from lightning_lcs.subspace.calibration import level_grid
from lightning_lcs.subspace.curve import CurvePoint
from lightning_lcs.subspace.curve_file import read_csv
from lightning_lcs.subspace.fingerprint import differ
from lightning_lcs.training.evaluation import OtherWeightsError, evaluate_level, evaluation_batches
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
        *,
        weights: str = "",
        recalibrate: Callable[[Sequence[float]], None] | None = None,
    ) -> None:
        """Measure the curve now.

        Args:
            trainer: Gives loaders and loggers.
            module: Its validation (or test) hooks are called.
            model: Runs at each level.
            full_metrics: The metrics of alpha = 1 where they have just been measured; otherwise they are measured as
                well.
            weights: The fingerprint of the weights of the validation that has just been run, if there was one. Hooks
                that change weights at the start of a validation have run for it.
            recalibrate: Collects batch-norm statistics for the levels that it gets. It is called where the stored ones
                are not those of the weights that are measured, which hooks of the validation may have exchanged. The
                default is to leave them.
        """
        if evaluation_batches(trainer) == 0:
            warn("no validation data: the accuracy-efficiency curve is not measured")
            if recalibrate is not None and not model.statistics:
                recalibrate(self.alphas)
            return
        stale = recalibrate is not None and not model.runner.statistics_fit()
        levels = sorted({model.mode.snap(a) if stale else model.nearest_level(a) for a in self.alphas})
        measuring = [alpha for alpha in levels if alpha < 1.0 or full_metrics is None]
        measured: dict[float, dict[str, float]] = {}
        passes = _Passes(trainer, module, model, weights, recalibrate and partial(recalibrate, levels))
        with progress(trainer, "Curve", len(measuring) * evaluation_batches(trainer)) as advance:
            for number, alpha in enumerate(measuring, 1):
                doing = f"Curve, alpha {alpha:.2f} ({number} of {len(measuring)})"
                advance(0, doing)
                measured[alpha] = passes.run(alpha, partial(advance, 1, doing))
        if 1.0 in levels and full_metrics is not None:
            names = {name for metrics in measured.values() for name in metrics}
            measured[1.0] = {k: float(v) for k, v in full_metrics.items() if k in names or not measured}
        with isolate_rng():
            # One rank measures: several on one machine would slow each other and get different figures.
            latencies = self._latencies(model, levels) if trainer.is_global_zero else {}
            latencies = trainer.strategy.broadcast(latencies)
        curve = []
        for alpha in levels:
            cost = vars(model.efficiency(alpha))
            values: dict[str, Any] = {"latency_ms": latencies[alpha], "metrics": measured[alpha]}
            curve.append(CurvePoint(**cost, **values, weights=passes.weights))
        self.curve = curve
        artifact = self.artifact and not differ(passes.weights, model.runner.fingerprint())
        if self.artifact and not artifact:
            warn(
                "model.lcs is not uploaded: hooks of the validation exchange the weights, so that the curve is of "
                "other weights than those that are trained"
            )
        self.evaluations = publish(trainer, module, model, curve, self.evaluations, self.baseline, artifact)

    def _latencies(self, model: SubspaceModel, levels: Sequence[float]) -> dict[float, float]:
        if not self.latency or len(model.parts) > 1:
            return dict.fromkeys(levels, math.nan)
        network = model.parts[0].network
        args, kwargs = network.example_inputs(samples=1)

        def call(small: torch.nn.Module) -> Callable[[], Any]:
            return lambda: small(*args, **kwargs)

        with model.runner.evaluation.silent():  # the time does not depend on the statistics
            return median_latencies_ms({alpha: call(model.materialize(alpha)) for alpha in levels})


class _Passes:
    """The validations of one curve, all at the same weights.

    A curve is measured at the end of a validation. Hooks that exchange weights at its start and its end (those of
    averages) have exchanged them once by then, and would exchange them back: they are left out where they do.
    """

    def __init__(
        self,
        trainer: Trainer,
        module: LightningModule,
        model: SubspaceModel,
        weights: str,
        recalibrate: Callable[[], None] | None,
    ) -> None:
        self.weights = weights
        self._trainer = trainer
        self._module = module
        self._model = model
        self._recalibrate = recalibrate
        self._hooks_around = True
        self._collected_at: str | None = None

    def run(self, alpha: float, after_batch: Callable[[], object]) -> dict[str, float]:
        run = partial(
            evaluate_level,
            self._trainer,
            self._module,
            self._model,
            alpha,
            before_first=self._check,
            after_batch=after_batch,
        )
        if self._hooks_around:
            try:
                return run()
            except OtherWeightsError:
                self._hooks_around = False
        return run(hooks_around=False)

    def _check(self) -> None:
        """Before the first step of a validation, when all hooks have run: the weights are those to measure."""
        present = self._model.runner.fingerprint()
        if differ(self.weights, present) and self._hooks_around:
            raise OtherWeightsError
        self.weights = present
        held = bool(self._model.statistics) and self._model.runner.statistics_fit()
        if self._recalibrate is not None and not held and self._collected_at != present:
            self._collected_at = present  # once: networks without batch norm have none
            self._recalibrate()
