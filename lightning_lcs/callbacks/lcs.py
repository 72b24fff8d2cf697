"""LCSCallback: learn a compressible subspace in an existing Lightning project."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch import LightningModule, Trainer

from lightning_lcs.callbacks.recalibration import BatchNormRecalibration
from lightning_lcs.callbacks.tradeoff import TradeoffMonitor
from lightning_lcs.io.checkpoint import CHECKPOINT_KEY
from lightning_lcs.model import SubspaceModel
from lightning_lcs.subspace.curves.curve import CurvePoint
from lightning_lcs.subspace.mode import Mode
from lightning_lcs.subspace.modes.registry import check_subspace, name_of, parse_mode
from lightning_lcs.subspace.weights.line import Line
from lightning_lcs.subspace.weights.norms import check_norm
from lightning_lcs.training.adoption import Adoption
from lightning_lcs.training.averages import copy_again, made_average
from lightning_lcs.training.checks import (
    agreed,
    check_features,
    check_manual,
    check_monitors,
    check_setup,
    check_teacher,
    only_callback,
    warn_of_old_namespace,
)
from lightning_lcs.training.curves.measurement import Measurement
from lightning_lcs.training.curves.recalibration import Recalibrator
from lightning_lcs.training.endpoint_groups import check_groups
from lightning_lcs.training.methods import method_settings, paper_settings
from lightning_lcs.training.options import Loss, Recalibration, Sampling, places
from lightning_lcs.training.recipes import filled, recipe_for
from lightning_lcs.training.saving import Saving
from lightning_lcs.training.step.bare_step import sort_untrained
from lightning_lcs.training.step.manual import TrainedLevel
from lightning_lcs.training.step.sweep_options import SweepOptions
from lightning_lcs.training.target import Target
from lightning_lcs.training.upkeep import Upkeep
from lightning_lcs.utils.options import checked_keywords, misfit, parse_options


class LCSCallback(pl.Callback):
    """Trains a module's network as a compressible subspace (arXiv 2110.04252).

    The module stays as it is: its ``training_step`` runs at several levels of compression per batch, its gradients are
    those of the mean of their losses, and what it logs is what alpha = 1 gives. The ``state_dict`` of a checkpoint
    remains the module's own and is the alpha = 1 model; the second endpoint and the batch-norm statistics are stored
    beside it.

    Each group of options (``line``, ``sampling``, ``loss``, ``recalibration``) is given as its object, as a mapping of
    its options, or in YAML and on the command line of LightningCLI
    (``--trainer.callbacks.sampling.alphas_per_step=3``).

    Args:
        mode: The compression mode: "structured", "unstructured", "quantized", or a mode object such as
            ``Structured(min_width=0.25)``. The default is "structured".
        subspace: "line" (two endpoints) or "point" (one set of weights for all levels). The default is that of the
            mode: a point for those of this package.
        target: The network: a path in the module, a list of paths (networks that the step calls separately), or "self"
            for the module's own forward. The default is the only child with trainable parameters that is not a metric
            and not a loss.
        alphas: The levels of the curve: their number (evenly spaced over [0, 1], at least 2), or a list of levels in
            [0, 1]. The default is 7.
        line: Which parameters lie on the line, and how its endpoints start and stay apart. The default is ``Line()``.
        norm: "keep" keeps batch norms, with statistics for each level. "instance" and "group" replace them by norms
            that need no statistics; the module's ``state_dict`` then has no running statistics, so that its own class
            does not load it, and :meth:`SubspaceModel.from_checkpoint` does. The default is "keep".
        sampling: Which levels each training step visits, and the warm-up. The default is ``Sampling()``.
        loss: How the losses of a step are combined. The default is ``Loss()``.
        recalibration: How the batch-norm statistics of each level are collected. The default is ``Recalibration()``.
        every_n_epochs: Measure the curve after every n-th epoch as well, at least 1. The default is to measure it at
            the last validation only.
        recipe: "fast" (a step costs about as much as a plain step) or "best" (quality first, at the price of two to
            three plain steps). Options of ``sampling`` and ``loss`` that differ from their defaults hold; the others
            are those of the recipe. The default is ``None``: the defaults of the mode.
        ema_decay: The decay of an exponential moving average of the weights, in (0, 1), such as 0.999: the curve, the
            files, and the network after the training are those of the average, on a line of both of its ends. It is
            kept by Lightning's ``EMAWeightAveraging`` (Lightning 2.6 or later), which you may also give to the trainer
            yourself, with further options. The default is ``None``: no average.
        seed: The seed of the sampled levels and of the choice of recalibration images. The default is 0.

    Attributes:
        subspace_model: The subspace model; ``None`` until the network is known.

    Raises:
        TypeError: A keyword is not an option, or a number is of another type. The message names the place of an option
            that lies elsewhere.
        ValueError: An option is outside its range.

    Example:
        >>> import lightning as L
        >>> from lightning_lcs import LCSCallback, Sampling
        >>> lcs = LCSCallback(mode="structured", sampling=Sampling(alphas_per_step=3))
        >>> trainer = L.Trainer(callbacks=[lcs], accelerator="cpu", logger=False)
        >>> lcs.mode, lcs.options.sampler
        (Structured(min_width=0.25), 'sandwich')
    """

    @checked_keywords(places)
    def __init__(
        self,
        mode: str | Mode | Mapping[str, Any] = "structured",
        subspace: str | None = None,
        target: Target = None,
        alphas: int | Sequence[float] = 7,
        *,
        norm: str = "keep",
        line: Line | Mapping[str, Any] = Line(),  # noqa: B008
        sampling: Sampling | Mapping[str, Any] = Sampling(),  # noqa: B008
        loss: Loss | Mapping[str, Any] = Loss(),  # noqa: B008
        recalibration: Recalibration | Mapping[str, Any] = Recalibration(),  # noqa: B008
        every_n_epochs: int | None = None,
        recipe: str | None = None,
        ema_decay: float | None = None,
        seed: int = 0,
    ) -> None:
        numbers = {"every_n_epochs": (every_n_epochs, "int | None"), "ema_decay": (ema_decay, "float | None")}
        for name, (value, kind) in {**numbers, "seed": (seed, "int")}.items():
            allowed = misfit(value, kind)
            if allowed:
                raise TypeError(f"LCSCallback({name}={value!r}) is not {allowed}")
        self.mode = parse_mode(mode)
        self.subspace = None if subspace is None else check_subspace(subspace)
        self.target = target
        self.norm = check_norm(norm)
        self.line = parse_options(Line, line, "line")
        chosen = {} if recipe is None else recipe_for(recipe, name_of(self.mode))
        self.sampling = filled(parse_options(Sampling, sampling, "sampling"), chosen.get("sampling", {}))
        self.loss = filled(parse_options(Loss, loss, "loss"), chosen.get("loss", {}))
        self.recalibration = parse_options(Recalibration, recalibration, "recalibration")
        if ema_decay is not None and not 0.0 < ema_decay < 1.0:
            raise ValueError(f"ema_decay={ema_decay!r} is not in (0, 1); use, for example, 0.999")
        self.ema_decay = ema_decay
        self._average: Any = None
        self.seed = seed
        self._adoption = Adoption(
            mode=self.mode,
            subspace=self.subspace,
            target=target,
            line=self.line,
            norm=norm,
            sampling=self.sampling,
            loss=self.loss,
            seed=seed,
        )
        if self.recalibration.images == 0 and not self.options.visits_full:
            needs = (
                "needs a sampler that visits alpha = 1 at every step"
                if self.mode.is_full(1.0)
                else f"does not go with {name_of(self.mode)} mode, which compresses alpha = 1, too"
            )
            raise ValueError(f"Recalibration(images=0) {needs}; use, for example, 512 images")
        warn_of_old_namespace()
        recalibrator = Recalibrator(self.recalibration.levels, self.recalibration.images, seed)
        measurement, every = Measurement(alphas, every_n_epochs), self.recalibration.every_checkpoint
        self._upkeep = Upkeep(self._adoption, recalibrator, measurement, every_checkpoint=every)

    @classmethod
    def paper(cls, mode: str, subspace: str = "line", **options: Any) -> LCSCallback:
        """The settings of arXiv 2110.04252 for one of its modes.

        Structured: the sum of the losses, instance norm, and scale and shift of the norms on the line. Unstructured and
        quantized: group norm with 32 groups, all parameters but those of the head on the line, and the first
        convolution and the head dense and in full precision. The weights of both endpoints start independently.
        Everything else is the default of the mode.

        Args:
            mode: "structured", "unstructured" or "quantized".
            subspace: "line" or "point". The default is "line".
            options: Options of the callback that replace those of the paper. A group of options, such as ``sampling=``,
                replaces the whole group.
        """
        return cls(**{**paper_settings(mode, subspace), **options})

    @classmethod
    def method(cls, name: str, **options: Any) -> LCSCallback:
        """A subspace, or a method that arXiv 2110.04252 compares subspaces with.

        Args:
            name: The name of the method, such as "structured-line", "us" or "bits-4"; see ``method_settings``.
            options: Options of the callback that replace those of the method. A group of options, such as
                ``sampling=``, replaces the whole group.

        Raises:
            ValueError: The name is not known.
        """
        return cls(**{**method_settings(name), **options})

    @property
    def subspace_model(self) -> SubspaceModel | None:
        """The subspace model; ``None`` until the network is known."""
        return self._adoption.model

    @property
    def options(self) -> SweepOptions:
        """What a training step visits, with the defaults of the mode and the subspace."""
        return self._adoption.options

    @property
    def curve(self) -> list[CurvePoint]:
        """The last accuracy-efficiency curve, by ascending alpha; empty before the first."""
        return self._upkeep.measurement.curve

    def levels(self) -> Iterator[TrainedLevel]:
        """The levels of a training step with manual optimization; see :func:`lightning_lcs.levels`."""
        manual = self._adoption.manual
        return iter([TrainedLevel(1.0, 1.0)]) if manual is None else manual.levels()

    def adopted(self, module: LightningModule) -> SubspaceModel:
        """The subspace model of a module whose network is built by now.

        Raises:
            ValueError: The module has no network.
        """
        return self._adoption.adopted(module)

    # -- setting up and taking away -----------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the network, put the subspace model in front of it, and hook into checkpoints."""
        if sum(isinstance(callback, LCSCallback) for callback in trainer.callbacks) > 1:  # type: ignore[attr-defined]
            raise ValueError("the trainer has two LCSCallbacks: give it one")
        added = []
        if stage == "fit":
            check_setup(trainer, pl_module)
            check_manual(pl_module, self.sampling, self.loss, self.line)
            if self.ema_decay is not None:
                average = made_average(trainer, self.ema_decay, self._average)
                added = [] if average is None else [average]
            # First in the list, so that every monitor that looks after a validation sees the curve of that validation.
            others = [callback for callback in trainer.callbacks if callback is not self]  # type: ignore[attr-defined]
            trainer.callbacks = [self, *added, *others]  # type: ignore[attr-defined]
        self._take_work_of_others(trainer)
        self._upkeep.begin(trainer, pl_module)
        Saving.put_into(trainer, self._add_where_present)
        self._adoption.begin(trainer, pl_module, stage)
        for self._average in added:
            self._average.setup(trainer, pl_module, stage)
        if stage == "fit" and self.norm != "keep":
            copy_again(trainer, pl_module)

    def _take_work_of_others(self, trainer: Trainer) -> None:
        """Where the trainer has callbacks of its own for statistics or curves, their options hold."""
        recalibration, monitor = only_callback(trainer, BatchNormRecalibration), only_callback(trainer, TradeoffMonitor)
        self._upkeep.recalibrator = agreed(
            self._upkeep.recalibrator,
            None if recalibration is None else recalibration.recalibrator,
            "BatchNormRecalibration",
            {"images": "recalibration.images", "alphas": "recalibration.levels"},
        )
        self._upkeep.measurement = agreed(
            self._upkeep.measurement,
            None if monitor is None else monitor.measurement,
            "TradeoffMonitor",
            {"alphas": "alphas", "every_n_epochs": "every_n_epochs"},
        )

    def _add_where_present(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add what callbacks can't: after all of their hooks, and to checkpoints of weights alone."""
        if self in trainer.callbacks:  # type: ignore[attr-defined]
            if CHECKPOINT_KEY not in checkpoint:
                self.on_save_checkpoint(trainer, module, checkpoint)
            self._adoption.add_averages(checkpoint)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take every replacement away, the last one first."""
        self._adoption.end()
        self._upkeep.end()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Take every replacement away; a checkpoint saved now gets no statistics from the step that failed."""
        self._upkeep.fail()
        self._adoption.end()
        self._upkeep.end()

    # -- training -----------------------------------------------------------------------------------------------------

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the optimizer, and start endpoint 0 from the weights that training starts from."""
        model = self.adopted(pl_module)
        check_groups(model.endpoint_pairs(), trainer.optimizers)
        if self.options.distillation is not None:
            check_teacher(self.options.distillation.teacher, model)
            check_features(self.options.distillation, model)
        # Weights may have been loaded since the endpoints were made.
        sort_untrained(trainer, pl_module, model, self.seed)
        self._adoption.start_endpoints(pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse monitors of the curve that would look for it before it is measured."""
        check_monitors(trainer, self._upkeep.measurement.every_n_epochs)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """From here on, stored batch-norm statistics belong to other weights."""
        model = self.adopted(pl_module)
        model.statistics = {}
        if batch_idx == 0:
            # By now, threads of the loader that read ahead have begun.
            self._upkeep.recalibrator.check(trainer, model)
            self._upkeep.recalibrator.flags.see(pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Merge the ranges of quantized inputs over all ranks."""
        if trainer.world_size > 1:
            self.adopted(pl_module).runner.reduce_ranges()

    # -- evaluation and checkpoints -----------------------------------------------------------------------------------

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Adopt a network that was built late."""
        self.adopted(pl_module)
        self._upkeep.before_validation(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the curve where it is due; ``ModelCheckpoint`` runs after this."""
        self._upkeep.after_validation(trainer, pl_module)

    on_test_start = on_validation_start

    on_test_end = on_validation_end

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Adopt a network that was built late."""
        self.adopted(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the curve of the final weights if no validation did."""
        self._upkeep.after_training(trainer, pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the subspace to a checkpoint, with the batch-norm statistics of the weights that it holds."""
        self._upkeep.add_subspace(trainer, pl_module, checkpoint)
