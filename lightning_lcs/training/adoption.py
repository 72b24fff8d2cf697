"""What LCSCallback does to a module: it finds the network, puts a subspace model in front of it, and takes it away."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

from lightning_lcs.io.checkpoint import CHECKPOINT_KEY
from lightning_lcs.model import SubspaceModel
from lightning_lcs.subspace.mode import Mode
from lightning_lcs.subspace.part import Part
from lightning_lcs.subspace.weights import endpoints
from lightning_lcs.subspace.weights.line import Line
from lightning_lcs.training.averages import AveragedEndpoints
from lightning_lcs.training.checks import check_model
from lightning_lcs.training.endpoint_groups import HiddenEndpoints, Pairs, train_alike
from lightning_lcs.training.options import Loss, Sampling
from lightning_lcs.training.step.manual import ManualSteps
from lightning_lcs.training.step.sweep import Sweep
from lightning_lcs.training.step.sweep_options import SweepOptions, sweep_options
from lightning_lcs.training.target import Target, find_targets
from lightning_lcs.training.user_code.patches import Patches, StandIn


class Adoption:
    """The subspace model of a module, and what stands in for the module's methods while a trainer runs it.

    The arguments are the options of ``LCSCallback``.

    Attributes:
        model: The subspace model; ``None`` until the network is known.
        targets: The paths of its networks in the module.
        options: The options of the sweep: until the network is known, those of the mode's default subspace.
        manual: Runs the steps of a module with manual optimization while it is fitted; else ``None``.
    """

    def __init__(
        self,
        *,
        mode: Mode,
        subspace: str | None,
        target: Target,
        line: Line,
        norm: str,
        sampling: Sampling,
        loss: Loss,
        seed: int,
    ) -> None:
        self.mode = mode
        self.subspace = subspace
        self.target = target
        self.line = line
        self.norm = norm
        self.sampling = sampling
        self.loss = loss
        self.seed = seed
        self.model: SubspaceModel | None = None
        self.targets: list[str] = []
        self.options: SweepOptions = sweep_options(mode, subspace or mode.default_subspace, sampling, loss, line)
        self._patches = Patches()
        self._hidden: HiddenEndpoints | None = None
        self._averages: AveragedEndpoints | None = None
        self._sweep: Sweep | None = None
        self.manual: ManualSteps | None = None
        self._loaded: Mapping[str, Any] | None = None

    def begin(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        """Take the module over for one call of the trainer; :meth:`end` gives it back."""
        self.end()
        self._hidden = HiddenEndpoints(module)
        self._hidden.show_in(self._patches, trainer.callbacks, self._pairs)  # type: ignore[attr-defined]
        self._averages = AveragedEndpoints(trainer, self._hidden)
        self._averages.show_in(self._patches)
        loading = functools.partial(self._load_first, trainer, module)
        self._patches.set(module, "on_load_checkpoint", StandIn(module.on_load_checkpoint, loading))
        self._adopt(module, final=False)
        strategy = trainer.strategy
        self._patches.set(strategy, "setup", StandIn(strategy.setup, functools.partial(self._set_up_first, module)))
        if stage == "fit":
            model: Any = self.model  # None where the network is built later
            self._sweep = Sweep(model, trainer, module, options=self.options, seed=self.seed)
            joining = functools.partial(self._join_after, trainer)
            self._patches.set(module, "on_fit_start", StandIn(module.on_fit_start, joining))
            self.manual = ManualSteps(self._sweep)
            run = self._sweep.step if module.automatic_optimization else self.manual.step
            stepping = functools.partial(self._step, trainer, run)
            self._patches.set(module, "training_step", StandIn(module.training_step, stepping))
            self._patches.set(module, "backward", StandIn(module.backward, self._sweep.backward))
            self._patches.set(module, "optimizer_step", StandIn(module.optimizer_step, self._sweep.optimize))

    def end(self) -> None:
        """Take every replacement away."""
        self._patches.undo()
        self._sweep = self.manual = None
        if self._hidden is not None:
            self._hidden.show()
            self._hidden = self._averages = None
            # Lightning has moved the module to the CPU.
            endpoints.follow(self._pairs())

    def adopted(self, module: LightningModule) -> SubspaceModel:
        """The subspace model of a module whose network is built by now.

        Raises:
            ValueError: The module has no network.
        """
        if self.model is None and not self._adopt(module):
            raise ValueError(
                f"{type(module).__name__} has no child with trainable parameters: name the network with target=, or "
                "target='self' for the module's own forward"
            )
        assert self.model is not None
        return self.model

    def start_endpoints(self, module: LightningModule) -> None:
        """Start the second endpoints from the weights that training starts from, and those of averages from them."""
        model = self.adopted(module)
        model.start_endpoints()
        if self._averages is not None:
            self._averages.start(model)

    def add_averages(self, checkpoint: dict[str, Any]) -> None:
        """Add the averages of second endpoints to the subspace in a checkpoint."""
        if self.model is not None and self._averages is not None and CHECKPOINT_KEY in checkpoint:
            replaced = "current_model_state" in checkpoint  # by Lightning's WeightAveraging
            checkpoint[CHECKPOINT_KEY] = self._averages.added(self.model, checkpoint[CHECKPOINT_KEY], replaced)

    def _adopt(self, module: LightningModule, final: bool = True) -> bool:
        """Put the subspace model in front of the network; false where the module has no network yet."""
        with torch.inference_mode(False):
            owned = [child for child in module.modules() if isinstance(child, SubspaceModel)]
            model = self._owned(owned[0], module) if owned else self._made(module, final)
        if model is None:
            return False
        self.model = model
        weight = self.line.diversity_weight or model.line.diversity_weight
        line = Line(parameters=model.line.parameters, start=model.line.start, diversity_weight=weight)
        self.options = sweep_options(self.mode, model.subspace, self.sampling, self.loss, line)
        if self._sweep is not None:
            self._sweep.model, self._sweep.options = model, self.options
        if self._hidden is not None and not owned:  # a user who made a subspace model knows of its endpoints
            self._hidden.hide()
        self._take_loaded()
        return True

    def _made(self, module: LightningModule, final: bool) -> SubspaceModel | None:
        """A subspace model in front of the module's networks: the one there is, as long as these are the same."""
        targets = find_targets(module, self.target, final)
        if targets is None:
            return None
        networks, model = list(targets.values()), self.model
        if model is None or [part.network.module for part in model.parts] != networks:
            self.targets = list(targets)
            model = SubspaceModel(
                networks[0] if len(networks) == 1 else targets,
                mode=self.mode,
                subspace=self.subspace,
                line=self.line,
                norm=self.norm,
                seed=self.seed,
            )
        for part in model.parts:
            network = part.network.module
            # A copy of the network, such as a teacher made while training, runs as the plain network.
            self._patches.set(network, "forward", StandIn(network.forward, functools.partial(_at_level, model, part)))
        return model

    def _owned(self, model: SubspaceModel, module: LightningModule) -> SubspaceModel:
        """The module's own subspace model, which has to fit the options."""
        check_model(model, self.mode, self.subspace, self.line, self.norm)
        path = next(name for name, child in module.named_modules() if child is model)
        inside = f"{path}.module" if path else "module"
        if self.target not in (None, inside):
            raise ValueError(
                f"target={self.target!r}, and the module holds a SubspaceModel of its own at {path!r}: leave target out"
            )
        self.targets = [inside]
        return model

    def _set_up_first(self, module: LightningModule, setup: Callable[[Trainer], None], trainer: Trainer) -> None:
        """Move and wrap the module, and build the optimizers, with the second endpoints of all that is built by now.

        ``setup()``, ``configure_model()`` and other callbacks have built or frozen what they do.
        """
        self.adopted(module)
        endpoints.follow(self._pairs())
        assert self._hidden is not None
        with self._hidden.shown():
            setup(trainer)
        self._hidden.hide_again()  # copies that configure_optimizers() made as well

    def _join_after(self, trainer: Trainer, on_fit_start: Callable[[], None]) -> None:
        """Add second endpoints to groups that hooks made, before the optimizer takes over its state."""
        on_fit_start()
        train_alike(self._pairs(), trainer.optimizers)

    def _step(
        self, trainer: Trainer, run: Callable[..., Any], original: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        """The step at several levels, on the parameters that hooks have frozen, released or added by now."""
        train_alike(self._pairs(), trainer.optimizers)
        return run(original, *args, **kwargs)

    def _pairs(self) -> Pairs:
        return [] if self.model is None else self.model.endpoint_pairs()

    def _load_first(
        self,
        trainer: Trainer,
        module: LightningModule,
        on_load_checkpoint: Callable[[Any], None],
        checkpoint: dict[str, Any],
    ) -> None:
        """Take the subspace out of a checkpoint that holds one, before the module's own hook sees the checkpoint."""
        self._loaded = checkpoint.get(CHECKPOINT_KEY)
        if self._loaded is not None and self._averages is not None and trainer.state.fn == "fit":
            # A module with a subspace model of its own reads the checkpoint, too.
            self._loaded = checkpoint[CHECKPOINT_KEY] = self._averages.taken(self._loaded)
        if self._loaded is None:
            subspace = self.subspace if self.model is None else self.model.subspace
            if trainer.state.fn == "fit" and subspace == "line" and checkpoint.get("optimizer_states"):
                raise ValueError(
                    "the checkpoint was saved without LCSCallback: its optimizer knows no second endpoints, so that a "
                    "line can't resume from it; load its weights (load_from_checkpoint) and fit without ckpt_path"
                )
        elif self.model is None:
            self._adopt(module)
        else:
            self._take_loaded()
        on_load_checkpoint(checkpoint)

    def _take_loaded(self) -> None:
        if self.model is not None and self._loaded is not None:
            self.model.load_subspace_state(self._loaded)
            self._loaded = None


def _at_level(model: SubspaceModel, part: Part, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Run a network at the level of the subspace model, in place of its own forward."""
    return model.runner.run(part, original, args, kwargs)
