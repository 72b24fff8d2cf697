"""LCSCallback: learn a compressible subspace in an existing Lightning project."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch import LightningModule, Trainer

from lightning_lcs.callbacks.recalibration import BatchNormRecalibration
from lightning_lcs.callbacks.tradeoff import TradeoffMonitor
from lightning_lcs.io.checkpoint import CHECKPOINT_KEY
from lightning_lcs.model import SubspaceModel
from lightning_lcs.reporting.curve import CurvePoint
from lightning_lcs.subspace import endpoints
from lightning_lcs.subspace.calibration import DEFAULT_LEVELS
from lightning_lcs.subspace.mode import Mode
from lightning_lcs.subspace.modes.registry import check_subspace, parse_mode
from lightning_lcs.subspace.norms import check_norm
from lightning_lcs.training.checks import check_optimizers, check_setup
from lightning_lcs.training.evaluation import evaluate_level
from lightning_lcs.training.isolation import Patches
from lightning_lcs.training.methods import method_settings, paper_settings
from lightning_lcs.training.options import agreed, check_model, only_callback, sweep_options
from lightning_lcs.training.saving import Saving
from lightning_lcs.training.stand_in import StandIn
from lightning_lcs.training.steps import sort_untrained
from lightning_lcs.training.sweep import Sweep, train_endpoints_alike
from lightning_lcs.training.target import Redirect, Target, find_targets


class LCSCallback(pl.Callback):
    """Trains a module's network as a compressible subspace (arXiv 2110.04252).

    The module stays as it is: its ``training_step`` is run at several levels of compression per batch, its gradients
    are those of the mean of their losses, and what it logs is what alpha = 1 gives. The checkpoint's ``state_dict``
    stays the module's own and is the alpha = 1 model; the second endpoint and the batch-norm statistics travel beside
    it.

    Args:
        mode: "structured", "unstructured", "quantized", or a mode object such as ``Structured(min_width=0.25)``.
        subspace: "line" (two endpoints) or "point" (one set of weights for all levels).
        target: the network: a path in the module, a list of paths (networks that the step calls separately), "self"
            for the module's own forward. By default the only child with trainable parameters that is no metric and no
            loss.
        alphas: levels of the curve: their number, or the levels.
        sampler: "sandwich" (both ends and uniform draws between), "uniform" (uniform draws, and alpha = 1),
            "biased_endpoints" (each draw an end with probability 1/2, else uniform), "uniform_draws" or
            "uniform_draws_per_layer" (each layer draws its own bits); or levels, all of which every step visits. By
            default "sandwich" in structured mode, "biased_endpoints" on an unstructured line, else "uniform_draws".
        alphas_per_step: levels that each training step draws; by default 4 with the first two samplers, else 1.
        training_levels: evenly spaced levels to which drawn widths and sparsities are rounded, at least 3; 0 for any,
            as in the paper, where a GPU looks for new kernels at almost every structured step; see docs (Results).
        loss_reduction: "mean" of the losses of a step's levels, so that a project keeps its learning rate; or their
            "sum", as in the paper, with gradients ``alphas_per_step`` times as large.
        warmup: share of all steps in which sparsity grows to its level, or in which inputs of layers are not quantized
            yet; by default 0.8 in these two modes.
        warmup_schedule: "linear" (growing steadily) or "delayed" (none until the warm-up is over); by default "linear"
            on a line and "delayed" on a point.
        diversity_weight: of the squared cosine between the endpoints of a line; 1 in the paper, see docs (Results).
        scale_penalty: of the L1 norm of the norms' scales in the loss; 1e-5 in network slimming.
        line_parameters: what lies on the line: "norm" (scale and shift of the normalisation layers, as in the paper's
            structured mode), "backbone" (all but the last linear layer, the head, as in its other two) or "all".
        endpoint_start: how endpoint 0 starts: "copy" of the weights, or "independent" (redrawn with their mean and
            deviation).
        norm: "keep" batch norms, with statistics per level; or replace them by "instance" or "group" norms, which need
            none. The module's ``state_dict`` then has no running statistics, and its own class does not load it:
            :meth:`SubspaceModel.from_checkpoint` does.
        every_n_epochs: measure the curve every n-th epoch, too; by default at the last validation only.
        recalibration_images: training images from which each level's batch-norm statistics are taken; 0 for none: every
            level then runs on those of alpha = 1, at a loss.
        recalibration_levels: levels whose statistics are kept: their number, or the levels. Any alpha asked for later
            runs at the nearest of them.
        seed: of the sampled alphas and the recalibration images.

    Attributes:
        subspace_model: the subspace model, once the network is known.

    Raises:
        ValueError: an option outside its range.
    """

    def __init__(
        self,
        mode: str | Mode | Mapping[str, Any] = "structured",
        subspace: str = "line",
        target: Target = None,
        alphas: int | Sequence[float] = 7,
        *,
        sampler: str | Sequence[float] | None = None,
        alphas_per_step: int | None = None,
        training_levels: int = DEFAULT_LEVELS,
        loss_reduction: str = "mean",
        warmup: float | None = None,
        warmup_schedule: str | None = None,
        diversity_weight: float = 0.0,
        scale_penalty: float = 0.0,
        line_parameters: str = "norm",
        endpoint_start: str = "copy",
        norm: str = "keep",
        every_n_epochs: int | None = None,
        recalibration_images: int = 2048,
        recalibration_levels: int | Sequence[float] = DEFAULT_LEVELS,
        seed: int = 0,
    ) -> None:
        endpoints.check_options(line_parameters, endpoint_start)
        self.mode = parse_mode(mode)
        self.subspace = check_subspace(subspace)
        self.target = target
        options = sweep_options(self.mode, subspace, sampler, alphas_per_step, warmup, warmup_schedule)
        drawn: dict[str, Any] = {"training_levels": training_levels, "loss_reduction": loss_reduction}
        self.options = replace(options, **drawn, diversity_weight=diversity_weight, scale_penalty=scale_penalty)
        if recalibration_images < (0 if self.options.visits_full else 1):
            reason = "use, for example, 2048, or 0 for none with a sampler that visits alpha = 1 at every step"
            raise ValueError(f"recalibration_images={recalibration_images} is too small: {reason}")
        self.line_parameters = line_parameters
        self.endpoint_start = endpoint_start
        self.norm = check_norm(norm)
        self.seed = seed
        self.subspace_model: SubspaceModel | None = None
        self._recalibration = BatchNormRecalibration(recalibration_levels, recalibration_images, seed)
        self._monitor = TradeoffMonitor(alphas, every_n_epochs)
        self._targets: list[str] = []
        self._patches = Patches()
        self._sweep: Sweep | None = None
        self._loaded: Mapping[str, Any] | None = None
        self._measured_at = -1
        self._failed = False
        self._resumed = False

    @classmethod
    def paper(cls, mode: str, subspace: str = "line", **options: Any) -> LCSCallback:
        """The settings of arXiv 2110.04252 for one of its modes.

        Structured: the sum of the losses, instance norm, the norms' scale and shift on the line. Unstructured and
        quantized: group norm with 32 groups, all parameters but the head's on the line, the first convolution and the
        head dense and in full precision. Weights of both endpoints start independently. Everything else is the default
        of the mode.

        Args:
            mode: "structured", "unstructured" or "quantized".
            subspace: "line" or "point".
            options: of the callback, in place of the paper's.
        """
        return cls(**{**paper_settings(mode, subspace), **options})

    @classmethod
    def method(cls, name: str, **options: Any) -> LCSCallback:
        """A subspace, or what arXiv 2110.04252 compares subspaces with.

        Args:
            name: such as "structured-line", "us" or "bits-4"; the function ``method_settings`` names all.
            options: of the callback, in place of the method's.

        Raises:
            ValueError: the name is not known.
        """
        return cls(**{**method_settings(name), **options})

    @property
    def curve(self) -> list[CurvePoint]:
        """The last accuracy-efficiency curve, by ascending alpha; empty before the first."""
        return self._monitor.curve

    # -- setting up and taking away -----------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the network, put the subspace model in front of it, and hook into checkpoints."""
        if sum(isinstance(callback, LCSCallback) for callback in trainer.callbacks) > 1:  # type: ignore[attr-defined]
            raise ValueError("the trainer has two LCSCallbacks: give it one")
        if stage == "fit":
            check_setup(trainer, pl_module)
            # First in the list, so that every monitor that looks after a validation sees the curve of that validation.
            others = [callback for callback in trainer.callbacks if callback is not self]  # type: ignore[attr-defined]
            trainer.callbacks = [self, *others]  # type: ignore[attr-defined]
        self._recalibration = agreed(
            self._recalibration,
            only_callback(trainer, BatchNormRecalibration),
            {"images": "recalibration_images", "alphas": "recalibration_levels"},
        )
        self._monitor = agreed(
            self._monitor,
            only_callback(trainer, TradeoffMonitor),
            {"alphas": "alphas", "every_n_epochs": "every_n_epochs"},
        )
        self._recalibration.flags.see(pl_module)
        self._failed = False
        self._patches.undo()
        loading = functools.partial(self._load_first, trainer, pl_module)
        self._patches.set(pl_module, "on_load_checkpoint", StandIn(pl_module.on_load_checkpoint, loading))
        Saving.put_into(trainer, self)
        self._adopt(pl_module, final=False)
        if stage == "fit":
            adopting = functools.partial(self._adopt_first, pl_module)
            self._patches.set(pl_module, "configure_optimizers", StandIn(pl_module.configure_optimizers, adopting))
            model: Any = self.subspace_model  # None where the network is built later
            self._sweep = Sweep(model, trainer, pl_module, options=self.options, seed=self.seed)
            self._patches.set(pl_module, "training_step", StandIn(pl_module.training_step, self._sweep.step))
            self._patches.set(pl_module, "backward", StandIn(pl_module.backward, self._sweep.backward))

    def _adopt(self, module: LightningModule, final: bool = True) -> bool:
        """Put the subspace model in front of the network; False where the module has no network yet."""
        with torch.inference_mode(False):
            return self._adopt_network(module, final)

    def _adopt_network(self, module: LightningModule, final: bool) -> bool:
        owned = [child for child in module.modules() if isinstance(child, SubspaceModel)]
        if owned:
            self._adopt_owned(owned[0], module)
        else:
            targets = find_targets(module, self.target, final)
            if targets is None:
                return False
            networks = list(targets.values())
            if self.subspace_model is None or [p.network.module for p in self.subspace_model.parts] != networks:
                self._targets = list(targets)
                self.subspace_model = SubspaceModel(
                    networks[0] if len(networks) == 1 else targets,
                    mode=self.mode,
                    subspace=self.subspace,
                    line_parameters=self.line_parameters,
                    endpoint_start=self.endpoint_start,
                    norm=self.norm,
                    seed=self.seed,
                )
            for part in self.subspace_model.parts:
                self._patches.set(part.network.module, "forward", Redirect(self.subspace_model, part).forward)
        if self._sweep is not None and self.subspace_model is not None:
            self._sweep.model = self.subspace_model
        if self._loaded is not None:
            self._take_loaded()
        return True

    def _adopt_owned(self, model: SubspaceModel, module: LightningModule) -> None:
        defaults = inspect.signature(LCSCallback).parameters
        check_model(model, self, {name: parameter.default for name, parameter in defaults.items()})
        path = next(name for name, child in module.named_modules() if child is model)
        if self.target not in (None, f"{path}.module" if path else "module"):
            raise ValueError(
                f"target={self.target!r}, and the module holds a SubspaceModel of its own at {path!r}: leave target out"
            )
        self._targets = [f"{path}.module" if path else "module"]
        self.subspace_model = model

    def _adopt_first(self, module: LightningModule, configure_optimizers: Callable[[], Any]) -> Any:
        """Optimizers, after all that was built or frozen in ``setup()``, ``configure_model()`` or other callbacks."""
        for w0, w1 in self.adopted(module).endpoint_pairs():
            w0.requires_grad_(w1.requires_grad)
        return configure_optimizers()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take every patch away."""
        self._patches.undo()
        self._sweep = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Take every patch away; a checkpoint that is saved now gets no new statistics from the step that failed."""
        self._failed = True
        self.teardown(trainer, pl_module, "fit")

    # -- training -----------------------------------------------------------------------------------------------------

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the optimizer, and start endpoint 0 from the weights that training starts from."""
        model = self.adopted(pl_module)
        check_optimizers(trainer.optimizers)
        train_endpoints_alike(model, trainer.optimizers)
        # Weights may have been loaded since the endpoints were made.
        sort_untrained(trainer, pl_module, model, self.seed)
        model.settle_endpoints()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Stored batch-norm statistics are those of other weights from here on."""
        model = self.adopted(pl_module)
        model.statistics = {}
        if batch_idx == 0:
            # Finetuning callbacks have added their groups, and frozen what they freeze, by now.
            train_endpoints_alike(model, trainer.optimizers)
            self._recalibration.flags.see(pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Ranges of quantized inputs are those of all ranks."""
        if trainer.world_size > 1:
            self.adopted(pl_module).runner.reduce_ranges()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A network that was built late is in place by now; alpha = 1 gets statistics where no step collects them."""
        model = self.adopted(pl_module)
        self._resumed = trainer.fit_loop.epoch_loop.val_loop.restarted_mid_evaluation
        if trainer.state.fn != "fit" or self.options.visits_full:
            return
        # Before training the network's own statistics stay as they came; what alpha = 1 can't run without is needed.
        if not trainer.sanity_checking or not model.mode.is_full(1.0):
            self._recalibration.run_running(trainer, pl_module, model)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A network that was built late is in place by now."""
        self.adopted(pl_module)

    on_predict_start = on_test_start

    # -- curves -------------------------------------------------------------------------------------------------------

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the curve where it is due; ``ModelCheckpoint`` runs after this."""
        if trainer.sanity_checking:
            self._rehearse(trainer, pl_module)
        elif trainer.state.fn != "fit" or self._monitor.is_due(trainer):
            self._measure(trainer, pl_module, dict(trainer.callback_metrics))
        elif not self.adopted(pl_module).mode.is_full(1.0):
            # What was collected for this validation is one level, and no grid to choose the nearest from.
            self.adopted(pl_module).statistics = {}

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the curve on the test data."""
        self._measure(trainer, pl_module, dict(trainer.callback_metrics))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the curve of the final weights if no validation did."""
        if self._measured_at != trainer.global_step:
            self._measure(trainer, pl_module, None)

    def _rehearse(self, trainer: Trainer, module: LightningModule) -> None:
        """One batch of a curve: a step that can't run compressed fails now, and not after the training."""
        model = self.adopted(module)
        # There are no batch-norm statistics for the level yet, and nobody sees the result.
        warns, model.runner.evaluation.warns = model.runner.evaluation.warns, False
        try:
            evaluate_level(trainer, module, model, 0.0, max_batches=1)
        finally:
            model.runner.evaluation.warns = warns

    def _measure(self, trainer: Trainer, module: LightningModule, full_metrics: Mapping[str, Any] | None) -> None:
        model = self.adopted(module)
        if trainer.state.fn == "fit" or not model.statistics:
            self._recalibration.run(trainer, module, model, also=self._monitor.alphas)
        if model.alpha != 1.0 or trainer.world_size > 1 or self._resumed:
            # Measured at another level, or on a part of the data: one rank's share, or the rest after a resume.
            full_metrics = None
        self._monitor.run(trainer, module, model, full_metrics)
        self._measured_at = trainer.global_step

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the subspace to a checkpoint, with batch-norm statistics of the weights that it holds."""
        if self.subspace_model is not None:
            if trainer.state.fn == "fit" and not self._failed and not self.subspace_model.statistics:
                if not self.options.visits_full:
                    self._recalibration.run_running(trainer, pl_module, self.subspace_model)
                self._recalibration.run(trainer, pl_module, self.subspace_model, also=self._monitor.alphas)
            state = self.subspace_model.subspace_state()
            checkpoint[CHECKPOINT_KEY] = {**state, "targets": list(self._targets)}

    def _load_first(
        self,
        trainer: Trainer,
        module: LightningModule,
        on_load_checkpoint: Callable[[Any], None],
        checkpoint: dict[str, Any],
    ) -> None:
        """Take the subspace out of a checkpoint, if it holds one."""
        self._loaded = checkpoint.get(CHECKPOINT_KEY)
        if self._loaded is None:
            if trainer.state.fn == "fit" and self.subspace == "line" and checkpoint.get("optimizer_states"):
                raise ValueError(
                    "the checkpoint was saved without LCSCallback: its optimizer knows no second endpoints, so that a "
                    "line can't resume from it; load its weights (load_from_checkpoint) and fit without ckpt_path"
                )
        elif self.subspace_model is None:
            self._adopt(module)
        else:
            self._take_loaded()
        on_load_checkpoint(checkpoint)

    def _take_loaded(self) -> None:
        if self.subspace_model is not None and self._loaded is not None:
            self.subspace_model.load_subspace_state(self._loaded)
            self._loaded = None

    def adopted(self, module: LightningModule) -> SubspaceModel:
        """The subspace model of a module whose network is built by now.

        Raises:
            ValueError: the module has no network.
        """
        if self.subspace_model is None and not self._adopt(module):
            raise ValueError(
                f"{type(module).__name__} has no child with trainable parameters: name the network with target=, or "
                "target='self' for the module's own forward"
            )
        assert self.subspace_model is not None
        return self.subspace_model
