"""The accuracy-efficiency curve, measured with the module's own validation metrics."""

from __future__ import annotations

import contextlib
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
from lightning_lcs.subspace.curves.curve import CurvePoint
from lightning_lcs.subspace.curves.curve_file import read_csv
from lightning_lcs.subspace.fingerprint import differ
from lightning_lcs.subspace.running.calibration import level_grid
from lightning_lcs.training.curves.evaluation import ended, evaluate_level, evaluation_batches
from lightning_lcs.training.curves.progress import progress
from lightning_lcs.training.curves.publish import publish
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
        # Hooks at the end of its epoch may have exchanged them back already.
        present = bool(weights) and weights == model.runner.fingerprint()
        passes = _Passes(trainer, module, model, present, recalibrate and partial(recalibrate, levels))
        validated = ended(trainer, module, model) if weights else contextlib.nullcontext()
        with progress(trainer, "Curve", len(measuring) * evaluation_batches(trainer)) as advance, validated:
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

    Args:
        trainer: The trainer.
        module: The user's LightningModule.
        model: The subspace model of its network.
        present: Whether the present weights are those to measure.
        recalibrate: Collects statistics; see :meth:`Measurement.run`.

    Attributes:
        weights: The fingerprint of the weights that were measured.
    """

    def __init__(
        self,
        trainer: Trainer,
        module: LightningModule,
        model: SubspaceModel,
        present: bool,
        recalibrate: Callable[[], None] | None,
    ) -> None:
        self.weights = ""
        self._trainer = trainer
        self._module = module
        self._model = model
        self._recalibrate = recalibrate
        self._collected_at: str | None = None
        self._validated = [(weight, weight.detach().clone()) for weight in model.runner.weights() if present]

    def run(self, alpha: float, after_batch: Callable[[], object]) -> dict[str, float]:
        return evaluate_level(
            self._trainer, self._module, self._model, alpha, before_first=self._check, after_batch=after_batch
        )

    def _check(self) -> None:
        """Before the first step of a validation, when all hooks have run: the weights are those to measure.

        Hooks that exchange weights may do so in another way than for the validation that has just been run: averages
        that change places with the weights differ from it by rounding.
        """
        if not all(torch.equal(weight, value) for weight, value in self._validated):
            with torch.no_grad():
                for weight, value in self._validated:
                    weight.copy_(value)
            self._model.runner.forget()
        self.weights = present = self._model.runner.fingerprint()
        held = bool(self._model.statistics) and self._model.runner.statistics_fit()
        if self._recalibrate is not None and not held and self._collected_at != present:
            self._collected_at = present  # once: networks without batch norm have none
            self._recalibrate()
