"""The sweep over levels inside a training step (arXiv 2110.04252, Algorithm 1)."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from lightning_lcs.model import SubspaceModel
from lightning_lcs.subspace.running.gradients import GradientSum, gradients_set_back, hooks_muted
from lightning_lcs.subspace.running.level_runner import Call
from lightning_lcs.subspace.running.own_backward import OwnBackwardError, own_backward_refused
from lightning_lcs.subspace.running.training_level import TrainingLevel
from lightning_lcs.subspace.weights.endpoints import is_norm
from lightning_lcs.training.endpoint_groups import all_parameters
from lightning_lcs.training.options import Distillation
from lightning_lcs.training.step.distillation import detached, distillation_loss, taught_by
from lightning_lcs.training.step.draws import Draws
from lightning_lcs.training.step.runs import Run, Runs
from lightning_lcs.training.step.sweep_options import SweepOptions
from lightning_lcs.training.target import guarded
from lightning_lcs.training.user_code.isolation import apart
from lightning_lcs.training.user_code.patches import is_overridden
from lightning_lcs.training.user_code.snapshot import Snapshot

OWN_ON_A_LINE = (
    "training_step asks torch.autograd.grad for gradients of the network's parameters, and on a line each level is "
    "computed from two sets of parameters, of which parameters() gives one; use subspace='point'"
)

Lessons = dict[int, list[Call]]
"""What the teacher gives, by the identity of the arguments of the step."""


class Sweep:
    """Runs a module's ``training_step`` at one or several levels; Lightning sees the step of the last level.

    With several levels the last one is alpha = 1. :meth:`step` and :meth:`backward` replace the module's methods.

    The backward pass of every level but the last runs here, so that the activations of only one level are alive at a
    time. Lightning clears gradients between the step and its own backward pass, so that the gradients of the other
    levels are kept apart until then. All levels but the last run as if they had not: see :func:`apart`.

    A level runs on tensors of its own, whose gradients are collected at the size of the level. Once a step has asked
    for gradients of parameters itself, all levels back-propagate into the parameters, which costs more.
    """

    def __init__(
        self,
        model: SubspaceModel,
        trainer: Trainer,
        module: LightningModule,
        *,
        options: SweepOptions,
        seed: int,
    ) -> None:
        self.model = model
        self.trainer = trainer
        self.module = module
        self.options = options
        self.draws = Draws(trainer, module, seed)
        self._runs = Runs(trainer)
        self._gradients = GradientSum()
        self._snapshot: Snapshot | None = None
        self._level: TrainingLevel | None = None  # of the forward whose backward comes next
        self._direct = False
        self._lessons_with_gradients = False
        self._distillation: Distillation | None = None  # of the present step
        self._rehearses = self._tried = False
        self._objective: list[Tensor] | None = None  # the terms of the present step's loss, where they are asked for

    def step(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run one micro-batch at every level that was drawn for it."""
        loop = self.trainer.fit_loop
        visited: Sequence[float]
        if loop._skip_backward:  # the last epoch of StochasticWeightAveraging, for batch norm
            visited, runs = (1.0,), [(args, 1.0)]
        else:
            visited = self.draws.visited(self.options)
            runs = self._runs(self.options, visited, args)
        last = visited[-1]
        strength, drawn = self.draws.strength(self.options), self.draws.of_layers(self.options, self.model.parts)
        self._gradients = GradientSum()
        self._distillation, self._rehearses = self._distillation_now()
        lessons, losses = self._others(original, kwargs, visited, runs, strength, drawn)
        with (
            guarded(self.model, last, "training_step") as guard,
            self.model.runner.training_level(last, strength=strength, direct=True, drawn=drawn(last)) as self._level,
            self._recording() as calls,
        ):
            output = self._last(last, original, *runs[-1][0], **kwargs)
            loss = loss_of(output)
            guard.skipped = loss is None
        self._log(losses, self.options.drawn(visited))
        given, weight = runs[-1]
        return self._with_terms(output, self._taught(last, loss, calls, lessons.get(id(given))), weight)

    def _others(
        self,
        original: Callable[..., Any],
        kwargs: dict[str, Any],
        visited: Sequence[float],
        runs: Sequence[Run],
        strength: float,
        drawn: Callable[[float], Mapping[str, float]],
    ) -> tuple[Lessons, dict[float, Tensor]]:
        """Run the step at all levels but the last; before that at alpha = 1, where this is their teacher.

        Returns:
            The outputs of the teacher, and the losses by level.
        """
        lessons: Lessons = {}
        losses: dict[float, Tensor] = {}
        pupils = self._pupils(visited, runs)
        if len(visited) == 1 and not pupils:
            return lessons, losses
        arguments = ([given for given, _ in (runs if pupils else runs[:-1])], kwargs)
        # A teacher and its pupils, and so all levels, draw the same random numbers: they see the same augmentation.
        alike: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext
        if pupils and not self._rehearses:
            alike = isolate_rng
        with apart(
            self.trainer, self.module, self.model, arguments=arguments, earlier=self._snapshot
        ) as self._snapshot:
            for given in pupils:
                teach = functools.partial(self._lesson, functools.partial(original, *given, **kwargs), strength)
                try:
                    with isolate_rng():
                        lessons[id(given)] = teach()
                except RuntimeError as error:
                    # A step that makes gradients of its own fails without, and for others they are a cost.
                    if self._lessons_with_gradients or " grad" not in str(error):
                        raise
                    self._snapshot.restore()
                    self._lessons_with_gradients = True
                    with isolate_rng():
                        lessons[id(given)] = teach()
                self._snapshot.restore()
            for alpha, (given, weight) in zip(visited[:-1], runs, strict=False):
                step = functools.partial(original, *given, **kwargs)
                lesson = lessons.get(id(given))
                extra = functools.partial(self._extra, alpha, strength, drawn(alpha), weight, step, lesson)
                try:
                    with alike():
                        loss = extra()
                except OwnBackwardError as error:
                    self._check_own(error)
                    self._snapshot.restore()
                    self._direct = True
                    with alike():
                        loss = extra()
                if loss is not None:
                    losses[alpha] = loss
                self._snapshot.restore()
        return lessons, losses

    def _distillation_now(self) -> tuple[Distillation | None, bool]:
        """The options of distillation once it has begun, and whether it is only tried.

        The first step with a compressed level tries it, so that outputs that can't be compared are refused before hours
        of training.
        """
        options = self.options.distillation
        if options is None or options.start == 0.0:
            return options, False
        off = "loss=Loss(distillation=Distillation(start=0))"
        begun = self.draws.progress(f"start={options.start:g}", off) >= options.start
        return (options, not begun) if begun or not self._tried else (None, False)

    def _pupils(self, visited: Sequence[float], runs: Sequence[Run]) -> list[tuple[Any, ...]]:
        """The different arguments of a step for which the full network is a teacher."""
        if self._distillation is None or self._distillation.teacher is not None:
            return []
        compressed = [given for alpha, (given, _) in zip(visited, runs, strict=True) if alpha < 1.0]
        return list({id(given): given for given in compressed}.values())

    def _lesson(self, step: Callable[[], Any], strength: float) -> list[Call]:
        """The calls of the networks at alpha = 1 in a step."""
        parameters = all_parameters(self.module, self.model.endpoint_pairs(), self.trainer.optimizers)
        grads = torch.enable_grad() if self._lessons_with_gradients else torch.no_grad()
        with (
            gradients_set_back(parameters, Tensor.clone),
            guarded(self.model, 1.0, "training_step") as guard,
            self.model.runner.training_level(1.0, strength=strength, direct=True),
            self._recording() as calls,
            grads,
        ):
            guard.skipped = loss_of(step()) is None
            return [detached(call) for call in calls]

    def _recording(self) -> contextlib.AbstractContextManager[list[Call]]:
        """Record the calls of the networks, where distillation compares their outputs."""
        options = self._distillation
        return (
            contextlib.nullcontext([]) if options is None else self.model.runner.recording(list(options.module_pairs))
        )

    def _taught(
        self, alpha: float, loss: Tensor | None, calls: Sequence[Call], lesson: Sequence[Call] | None
    ) -> Tensor | None:
        """The loss of a level together with the distance from its teacher, where it has one."""
        options = self._distillation
        if loss is None or options is None:
            return loss
        if options.teacher is not None:
            lesson = taught_by(options, calls)
        elif lesson is None or alpha == 1.0:
            return loss
        distance = distillation_loss(options, calls, lesson)
        self._tried = True
        return loss if self._rehearses else (1.0 - options.weight) * loss + options.weight * distance

    def backward(self, original: Callable[..., None], loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Run the module's ``backward`` of the last level, and add the gradients of the others."""
        level = self._level
        if self.module.automatic_optimization:
            self._level = None
        if is_overridden(self.module, "backward"):
            # A method of the user's own may do anything with the loss and with the gradients.
            loss = self._gradients.carried(loss)
        again = contextlib.nullcontext() if level is None else self.model.runner.in_backward(level, loss)
        # With several devices, gradients must be added before they are synchronised.
        with self._gradients.added(vectors_on_exit=self.trainer.world_size == 1), again:
            original(loss, *args, **kwargs)

    def _extra(
        self,
        alpha: float,
        strength: float,
        drawn: Mapping[str, float],
        weight: float,
        step: Callable[[], Any],
        lesson: Sequence[Call] | None,
    ) -> Tensor | None:
        """Run the step and its backward pass at a level that Lightning does not see; the loss, or ``None``.

        Raises:
            OwnBackwardError: The step asks for gradients of parameters, and the level runs on tensors of its own.
        """
        parameters = all_parameters(self.module, self.model.endpoint_pairs(), self.trainer.optimizers)
        gradients = None if self._direct else self._gradients
        own = contextlib.nullcontext() if self._direct else own_backward_refused(self.model.parts)
        with (
            # The step may look at the gradients of the step before, and a backward of its own adds to them.
            gradients_set_back(parameters, Tensor.clone if self._direct else None),
            guarded(self.model, alpha, "training_step") as guard,
            self.model.runner.training_level(
                alpha, gradients, strength=strength, direct=self._direct, drawn=drawn
            ) as level,
        ):
            with own, self._recording() as calls:
                loss = loss_of(step())
            guard.skipped = loss is None
            trained = self._taught(alpha, loss, calls, lesson)
            if loss is None or trained is None:
                return None
            self._note(weight * trained)
            scaled = self._scaled(weight * trained)
            # What the step left is of a backward of its own, which Lightning clears before that of the loss. Hooks see
            # the whole gradient once, in the backward that Lightning runs.
            with gradients_set_back(parameters, lambda _: None), hooks_muted(parameters), level.in_backward(scaled):
                scaled.backward()  # type: ignore[no-untyped-call]
                self._gradients.take(parameters)
            return loss.detach()

    def _last(self, alpha: float, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run the step at the level that Lightning sees, which back-propagates into the parameters themselves."""
        if self.model.mode.is_full(alpha) or not self.model.endpoint_pairs():
            return original(*args, **kwargs)
        try:
            with own_backward_refused(self.model.parts, unnamed=False):
                return original(*args, **kwargs)
        except OwnBackwardError as error:
            self._check_own(error)

    def _check_own(self, error: OwnBackwardError) -> None:
        """Refuse gradients of named parameters on a line, where a level is computed from two of each."""
        if error.named and self.model.endpoint_pairs():
            raise RuntimeError(OWN_ON_A_LINE) from error

    @contextlib.contextmanager
    def again(self, level: TrainingLevel) -> Iterator[None]:
        """Inside the block, what runs again in a backward that :meth:`backward` runs does so at a level."""
        self._level = level
        try:
            yield
        finally:
            self._level = None

    def _scaled(self, loss: Tensor) -> Tensor:
        """A loss as Lightning hands it to a backward."""
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        with torch.autocast(loss.device.type, enabled=False):
            scaled = loss / self.trainer.accumulate_grad_batches
            return scaled if scaler is None else cast(Tensor, scaler.scale(scaled))

    def _with_terms(self, output: Any, trained: Tensor | None, weight: float) -> Any:
        """The step's output, whose gradients are those of its part of the whole loss and whose value is unchanged."""
        loss = loss_of(output)
        terms = [] if loss is None else [*self._diversity(), *self._penalty()]
        if loss is None or trained is None or (trained is loss and weight == 1.0 and not terms):
            self._note(trained)
            return output
        part = weight * trained + (torch.stack(terms).sum() if terms else 0.0)
        self._note(part)
        nothing = part - part.detach()
        # An infinite loss minus itself is not a number; the shown loss stays infinite.
        loss = loss.detach() + torch.where(nothing.isnan(), part, nothing)
        return {**output, "loss": loss} if isinstance(output, Mapping) else loss

    def _note(self, term: Tensor | None) -> None:
        if self._objective is not None and term is not None:
            self._objective.append(term.detach())

    def optimize(
        self,
        original: Callable[..., None],
        epoch: int,
        batch_idx: int,
        optimizer: Any,
        closure: Callable[[], Any] | None = None,
    ) -> None:
        """Run the module's ``optimizer_step``; an optimizer that searches along a line compares the whole losses."""

        def whole() -> Any:
            self._objective = []
            try:
                shown = None if closure is None else closure()
                terms = self._objective
            finally:
                self._objective = None
            return torch.stack(terms).sum() / self.trainer.accumulate_grad_batches if terms else shown

        # Those of torch but one do not look at the value; others may.
        kind = type(optimizer.optimizer if isinstance(optimizer, LightningOptimizer) else optimizer)
        searches = optimizer.defaults.get("line_search_fn") is not None or not kind.__module__.startswith("torch.optim")
        original(epoch, batch_idx, optimizer, whole if searches else closure)

    def _diversity(self) -> list[Tensor]:
        pairs = self.model.endpoint_pairs()
        if not pairs:
            return []
        terms = [self.options.diversity_weight * self.model.endpoint_cosine().square()]
        # At an end of the line a step reads only one endpoint. DDP waits for the gradients of both endpoints, and
        # optimizers skip a parameter without gradients, so that scales and shifts, which the cosine may leave out, get
        # gradients of zero.
        vectors = [w.flatten() for pair in pairs for w in pair if w.ndim < 2 and w.requires_grad]
        return [*terms, 0.0 * torch.cat(vectors).sum()] if vectors else terms

    def _penalty(self) -> list[Tensor]:
        if self.options.scale_penalty == 0.0:
            return []
        norms = [child for part in self.model.parts for child in part.network.module.modules() if is_norm(child)]
        scales = [norm._parameters.get("weight") for norm in norms]
        return [self.options.scale_penalty * scale.abs().sum() for scale in scales if scale is not None]

    def _log(self, losses: dict[float, Tensor], drawn: Sequence[float]) -> None:
        values = {"lcs/train_loss/alpha_000": [losses[a] for a in losses if a == 0.0]}
        values["lcs/train_loss/sampled"] = [losses[a] for a in losses if a > 0.0]
        for name, group in values.items():
            if group:
                # One number per step, whatever the batch size: the mean over the epoch is the mean over its steps.
                value = torch.stack(group).mean()
                self.module.log(name, value, on_step=False, on_epoch=True, batch_size=1, sync_dist=True)
        for number, alpha in enumerate(drawn, 1):
            # The drawn levels are the same on all ranks.
            self.module.log(f"lcs/sampled_alpha/{number}", alpha, on_step=True, on_epoch=False, batch_size=1)


def loss_of(output: Any) -> Tensor | None:
    """The loss in the result of a ``training_step``; ``None`` where there is none."""
    if isinstance(output, Mapping):
        output = output.get("loss")
    return output if isinstance(output, Tensor) else None
