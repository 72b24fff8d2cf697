"""When a trainer's LCSCallback collects statistics and measures curves."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from lightning_lcs.io.checkpoint import CHECKPOINT_KEY
from lightning_lcs.model import SubspaceModel
from lightning_lcs.subspace.fingerprint import differ, of_endpoints
from lightning_lcs.training.adoption import Adoption
from lightning_lcs.training.averages import averages_at_the_end
from lightning_lcs.training.checkpoint_statistics import add_statistics, may_wait
from lightning_lcs.training.curves.evaluation import evaluate_level
from lightning_lcs.training.curves.measurement import Measurement
from lightning_lcs.training.curves.recalibration import Recalibrator
from lightning_lcs.training.data.loader_state import Start
from lightning_lcs.training.target import NeverRanError
from lightning_lcs.training.user_code.isolation import averages_weights
from lightning_lcs.training.user_code.patches import Patches, StandIn
from lightning_lcs.utils.warning import warn

ONE_END = (
    "the weights were exchanged for this validation, such as by averages, and only at one end of the line: the second "
    "endpoints are not in parameters(), so that the levels below alpha = 1 are measured between the exchanged weights "
    "and those of training; use subspace='point', or LCSCallback(ema_decay=...), which averages both ends"
)
LEFT_OUT = (
    "the checkpoint gets no batch-norm statistics of the levels, because the weights have changed since these were "
    "collected; trainer.validate(datamodule=...) with LCSCallback before it is saved collects them anew, and so does "
    "recalibrate() once it is opened"
)


class Upkeep:
    """Keeps the statistics and the curve of an adopted network up to date with its weights.

    Attributes:
        recalibrator: Collects the statistics.
        measurement: Measures the curve.
    """

    def __init__(
        self, adoption: Adoption, recalibrator: Recalibrator, measurement: Measurement, *, every_checkpoint: bool
    ) -> None:
        self.adoption = adoption
        self.recalibrator = recalibrator
        self.measurement = measurement
        self.every_checkpoint = every_checkpoint
        self._measured_at = -1
        self._failed = False
        self._running = False
        self._resumed = False
        self._validated_weights = ""
        self._ends: tuple[str, str] | None = None  # of a line, before a validation in fit
        self._is_first_step = False
        self._calls = 0
        self._runs_network = False
        self._patches = Patches()
        self._start = Start()

    def begin(self, trainer: Trainer, module: LightningModule) -> None:
        """A call of the trainer begins; :meth:`end` takes away what is put in front of the module's steps."""
        self._patches.undo()
        self.recalibrator.flags.see(module)
        self._failed = False
        self._running = True
        for name in ("validation_step", "test_step"):
            self._patches.set(module, name, StandIn(getattr(module, name), partial(self._step, trainer, module)))
        self._start.watch(trainer, self._patches)
        # Of all hooks of a validation in fit, this is the first.
        name = "on_validation_model_zero_grad"
        self._patches.set(module, name, StandIn(getattr(module, name), self._note_ends))
        # Of all hooks of a fit, this is the last with data at hand; the callbacks have written their files.
        stand_in = StandIn(module.on_train_end, partial(self._finish_files, trainer, module))
        self._patches.set(module, "on_train_end", stand_in)

    def end(self) -> None:
        """The call of the trainer ends: from here on its steps do not run the subspace model."""
        self._running = False
        self._patches.undo()
        self._start.forget()

    def fail(self) -> None:
        """A step failed: a checkpoint that is saved now gets no new statistics."""
        self._failed = True

    def before_validation(self, trainer: Trainer) -> None:
        """A validation or a test begins."""
        self._is_first_step = True
        self._validated_weights = ""
        self._calls = self._network_calls()
        self._resumed = trainer.fit_loop.epoch_loop.val_loop.restarted_mid_evaluation

    def _network_calls(self) -> int:
        model = self.adoption.model
        return 0 if model is None else sum(part.calls for part in model.parts)

    def _note_ends(self, original: Callable[..., Any]) -> Any:
        model = self.adoption.model
        self._ends = of_endpoints(model.parts) if model is not None and model.endpoint_pairs() else None
        return original()

    def _check_ends(self, model: SubspaceModel) -> None:
        """Warn where hooks have exchanged the weights at one end of a line since the validation began."""
        if self._ends is not None:
            second, own = of_endpoints(model.parts)
            if differ(own, self._ends[1]) and not differ(second, self._ends[0]):
                warn(ONE_END)
            self._ends = None

    def _step(
        self, trainer: Trainer, module: LightningModule, original: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Before the first step, when hooks have exchanged what they exchange, look at the weights."""
        if self._is_first_step:
            self._is_first_step = False
            self._before_first_step(trainer, module)
        return original(*args, **kwargs)

    def _before_first_step(self, trainer: Trainer, module: LightningModule) -> None:
        """Note the weights, and collect the statistics of alpha = 1 where training steps do not."""
        model = self.adoption.adopted(module)
        if not trainer.sanity_checking:
            self._validated_weights = model.runner.fingerprint()
            self._check_ends(model)
        if trainer.state.fn != "fit" or self.adoption.options.visits_full:
            return
        # Before training, the network's own statistics stay as they came, unless alpha = 1 can't run without new ones.
        if not trainer.sanity_checking or not model.mode.is_full(1.0):
            self.recalibrator.run_running(trainer, module, model)

    def after_validation(self, trainer: Trainer, module: LightningModule) -> None:
        """Measure the curve where it is due."""
        model = self.adoption.adopted(module)
        self._runs_network = self._network_calls() > self._calls
        if trainer.sanity_checking:
            self._rehearse(trainer, module)
        elif trainer.state.fn != "fit" and trainer.ckpt_path is not None and not model.trained:
            warn(
                f"no curve is measured: {trainer.ckpt_path} was saved without LCSCallback, so that its network was "
                "never trained as a subspace; give the checkpoint of a run with LCSCallback as ckpt_path"
            )
        elif trainer.state.fn != "fit" or self.measurement.is_due(trainer):
            self.measure(trainer, module, dict(trainer.callback_metrics))
        elif not model.mode.is_full(1.0):
            # The statistics of this validation are those of one level, and not a grid to choose the nearest from.
            model.statistics = {}

    def after_training(self, trainer: Trainer, module: LightningModule) -> None:
        """Measure the curve of the final weights, unless a validation did."""
        if self._measured_at != trainer.global_step:
            self._validated_weights = ""
            if not self.adoption.options.visits_full:  # which a validation would have collected
                self.recalibrator.run_running(trainer, module, self.adoption.adopted(module))
            self.measure(trainer, module, None)

    def measure(self, trainer: Trainer, module: LightningModule, full_metrics: Mapping[str, Any] | None) -> None:
        """Measure the curve, with statistics of the weights that are measured.

        Args:
            trainer: Gives the data.
            module: Its validation hooks run.
            full_metrics: The metrics that the validation of alpha = 1 has just given, if there was one.
        """
        model = self.adoption.adopted(module)
        stale = not model.mode.is_full(1.0) and not model.runner.statistics_fit()
        if model.alpha != 1.0 or stale or trainer.world_size > 1 or self._resumed:
            # They were measured at another level, with statistics of other weights, or on one rank's share or the rest
            # of the data after a resume.
            full_metrics = None
        if not model.mode.is_full(1.0) and trainer.state.fn == "fit":
            model.statistics = {}  # those of the validation, of one level
        with self._tolerant(), self._start.again():  # all levels see the batches of the last validation
            self.measurement.run(
                trainer,
                module,
                model,
                full_metrics,
                weights=self._validated_weights,
                recalibrate=lambda levels: self.recalibrator.run(trainer, module, model, also=levels),
            )
        self._measured_at = trainer.global_step

    def add_subspace(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the subspace to a checkpoint, with the batch-norm statistics of the weights that it holds.

        They are left out where they are of other weights and can't be collected, because the trainer does not run, and
        where the file gets them when training ends.
        """
        model = self.adoption.model
        if model is None:
            return
        fit = bool(model.statistics) and model.runner.statistics_fit()
        # Where alpha = 1 is compressed, a validation or an earlier file may have left its statistics alone.
        held, waits = fit and self.recalibrator.is_covered(model), False
        if self._running and trainer.state.fn == "fit" and not self._failed and not held:
            path = getattr(trainer.save_checkpoint, "path", None)
            # The weights that averages replace in the file are not the present ones.
            averaged = any(map(averages_weights, trainer.callbacks))  # type: ignore[attr-defined]
            waits = averaged or (may_wait(trainer, path) and not self.every_checkpoint)
            if not averaged and not fit and not self.adoption.options.visits_full:
                self.recalibrator.run_running(trainer, module, model)
            if not waits:
                self._collect(trainer, module, model)
        checkpoint[CHECKPOINT_KEY] = {**_state_of(model, waits), "targets": list(self.adoption.targets)}

    def _collect(self, trainer: Trainer, module: LightningModule, model: SubspaceModel) -> None:
        self.recalibrator.run(trainer, module, model, also=self.measurement.alphas)

    def _collect_all(self, trainer: Trainer, module: LightningModule, model: SubspaceModel) -> None:
        """Collect the statistics of alpha = 1, too, where training steps do not."""
        if not self.adoption.options.visits_full:
            self.recalibrator.run_running(trainer, module, model)
        self._collect(trainer, module, model)

    def _finish_files(self, trainer: Trainer, module: LightningModule, original: Callable[..., Any]) -> Any:
        """After the module's own hook at the end of training: add statistics to checkpoints that wait for them."""
        result, model = original(), self.adoption.adopted(module)
        curve = self.measurement.curve
        if curve and averages_at_the_end(trainer) and differ(curve[0].weights, model.runner.fingerprint()):
            self._validated_weights = ""
            self.measure(trainer, module, None)
        if self.recalibrator.needed(model):
            complete = model.runner.statistics_fit() and self.recalibrator.is_covered(model)
            add_statistics(trainer, module, model, partial(self._collect_all, trainer, module, model), complete)
        return result

    @contextlib.contextmanager
    def _tolerant(self) -> Iterator[None]:
        """Inside the block, a validation may leave the network out if that at alpha = 1 does as well."""
        try:
            yield
        except NeverRanError:
            if self._runs_network:
                raise
            warn("no curve is measured: the validation never calls the network")

    def _rehearse(self, trainer: Trainer, module: LightningModule) -> None:
        """One batch of a curve: a step that can't run compressed fails now instead of after the training."""
        model = self.adoption.adopted(module)
        with self._tolerant(), model.runner.evaluation.silent():  # the level has no batch-norm statistics yet
            evaluate_level(trainer, module, model, 0.0, max_batches=1)


def _state_of(model: SubspaceModel, waits: bool) -> dict[str, Any]:
    """What a checkpoint holds of a model, without statistics of other weights.

    Args:
        model: The model.
        waits: Whether the file gets statistics later; otherwise a warning says that it has none.
    """
    state = model.subspace_state()
    if not waits and model.runner.statistics_fit():
        return state
    if not waits:
        warn(LEFT_OUT)
    return {**state, "statistics": [], "statistics_weights": ""}
