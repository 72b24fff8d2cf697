"""A level of a training step."""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Variable

from lightning_lcs.graph.channels.plan import Selection
from lightning_lcs.subspace.forward import Execution, TrainingInputs
from lightning_lcs.subspace.mode import Level
from lightning_lcs.subspace.part import Part
from lightning_lcs.subspace.running.gradients import GradientSum
from lightning_lcs.subspace.running.level_weights import LevelWeights
from lightning_lcs.subspace.running.weight_state import WeightState


class TrainingLevel:
    """Runs networks at one level of a training step.

    The tensors of the level are leaves, whose gradients go to ``gradients`` as soon as the backward pass has computed
    them. This is cheaper than back-propagating through every slice, which would build a full-sized gradient per tensor
    and level.

    Args:
        level: The level.
        gradients: Takes the gradients; ``None`` to back-propagate into the parameters themselves.
        ranges: The moving ranges of quantized inputs, by level; they are updated.
        warn: Is called with the level where a network runs in evaluation mode, on running statistics of alpha = 1.
    """

    def __init__(
        self,
        level: Level,
        gradients: GradientSum | None,
        ranges: dict[float, dict[str, Tensor]],
        warn: Callable[[Level], None],
    ) -> None:
        self._level = level
        self._gradients = gradients
        self._ranges = ranges
        self._warn = warn
        self._weights: dict[int, tuple[tuple[WeightState, bool], LevelWeights]] = {}
        self._tensors: dict[tuple[int, str], Tensor] = {}
        self._inputs: dict[int, TrainingInputs | None] = {}
        self._again: dict[int, tuple[Part, Callable[[], contextlib.AbstractContextManager[Any]]]] = {}
        self._in_place: dict[int, contextlib.ExitStack] = {}  # while a backward runs

    def run(self, part: Part, full: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a network at the level; calls within one step share their tensors while the weights stay the same."""
        level = self._level
        if level.is_full:
            return full(*args, **kwargs)
        held = self._in_place.get(id(part))
        if held is not None:
            held.close()  # The network as a whole runs again, and its own weights are needed in their places.
        execution = level.mode.execution(part, level, args, kwargs)
        weights = self._level_weights(part, execution)
        untouched = execution.batch_statistics
        if any(name not in untouched for name in execution.statistics):
            self._warn(level)
        tensors = [None if name in untouched else self._tensor(weights, execution, name) for name in execution.names]
        if id(part) not in self._inputs:
            self._inputs[id(part)] = level.mode.training_inputs(part, level, self._ranges)
        inputs = self._inputs[id(part)]
        repeated = None if inputs is None else inputs.repeated()
        self._again[id(part)] = (part, functools.partial(execution.in_place, tensors, repeated))
        if held is None:
            return execution.run(tensors, full, args, kwargs, inputs)
        result = execution.run(tensors, full, args, kwargs, repeated)
        held.enter_context(execution.in_place(tensors, repeated))
        return result

    def finish(self) -> None:
        """The forwards and backwards of the level are over."""
        for inputs in self._inputs.values():
            if inputs is not None:
                inputs.finish()

    @contextlib.contextmanager
    def in_backward(self, loss: Tensor) -> Iterator[None]:
        """In the backward of a loss, parts of the networks that run again, as with gradient checkpointing, do it here.

        Before and after the backward, code inside the block sees the networks' own parameters.

        Args:
            loss: The loss.
        """
        stack = contextlib.ExitStack()

        def end() -> None:
            self._in_place.clear()
            stack.close()

        def begin(gradients: Any) -> None:
            Variable._execution_engine.queue_callback(end)
            for key, (part, in_place) in self._again.items():
                stack.enter_context(part.runs())
                self._in_place[key] = stack.enter_context(contextlib.ExitStack())
                self._in_place[key].enter_context(in_place())

        handle = None if loss.grad_fn is None else loss.grad_fn.register_prehook(begin)
        try:
            yield
        finally:
            end()  # A backward that failed runs no callback.
            if handle is not None:
                handle.remove()

    def _level_weights(self, part: Part, execution: Execution) -> LevelWeights:
        """The tensors of the level, made anew where the step has changed or exchanged weights since the last call."""
        # A tensor that was cut without gradients is of no use with them.
        state = (WeightState(part, execution), torch.is_grad_enabled())
        before, weights = self._weights.get(id(part), (None, None))
        if before != state:
            self._tensors = {key: value for key, value in self._tensors.items() if key[0] != id(part)}
        if weights is None or before != state or part.computed:  # layers may compute other weights in each forward
            weights = LevelWeights(part, self._level, as_in_forward=True)
        self._weights[id(part)] = (state, weights)
        return weights

    def _tensor(self, weights: LevelWeights, execution: Execution, name: str) -> Tensor:
        part = weights.part
        if name in part.computed:
            return self._computed(weights, name)
        if part.network.is_parameter(name) and not isinstance(part.network.tensor(name), nn.Parameter):
            # torch.func.functional_call has put in a tensor of the user's, whose gradients are of interest.
            return weights.tensor(name, execution.cut(name)).contiguous()
        key = (id(part), name)
        if key not in self._tensors:
            selection = execution.cut(name)
            if self._gradients is None:
                value = weights.tensor(name, selection)
                # Convolutions on some devices read a slice with gaps wrongly (pytorch/pytorch#192212).
                value = value.detach().clone() if name in execution.updated else value.contiguous()
                if value.requires_grad:
                    # A backward frees the graph through which the tensor was cut: the next forward cuts it again.
                    forget = functools.partial(_forget, weakref.ref(self), key)
                    value.register_hook(forget)  # type: ignore[no-untyped-call]
                self._tensors[key] = value
            else:
                self._tensors[key] = self._leaf(weights, name, selection, name in execution.updated, self._gradients)
        return self._tensors[key]

    @torch.no_grad()
    def _leaf(
        self, weights: LevelWeights, name: str, selection: Selection, copied: bool, gradients: GradientSum
    ) -> Tensor:
        value = weights.tensor(name, selection).detach()
        value = value.clone() if copied else value.contiguous()
        sources = self._sources(weights.part, name)
        if sources:
            hook = _GradientHandover(gradients, sources, selection, weights, name)
            value.requires_grad_().register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]
        return value

    def _computed(self, weights: LevelWeights, name: str) -> Tensor:
        """A weight that its layer computes, anew in each forward, as the layer does."""
        value = weights.tensor(name)
        if self._gradients is None or not value.requires_grad:
            return value
        leaf = value.detach().requires_grad_()
        hook = _ComputedHandover(self._gradients, value, weights.part.trained_sources(name))
        leaf.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]
        return leaf

    def _sources(self, part: Part, name: str) -> list[tuple[nn.Parameter, float]]:
        """The trainable parameters from which a tensor is computed, each with its share."""
        current = part.network.tensor(name)
        if not isinstance(current, nn.Parameter):
            return []
        sources = [(current, 1.0)]
        if name in part.endpoints:
            alpha = self._level.alpha
            sources = [(part.endpoints[name], 1.0 - alpha), (current, alpha)]
        return [(parameter, share) for parameter, share in sources if parameter.requires_grad and share > 0.0]


def _forget(level: weakref.ref[TrainingLevel], key: tuple[int, str], gradient: Tensor) -> None:
    held = level()
    if held is not None:
        held._tensors.pop(key, None)


class _GradientHandover:
    """A hook of a leaf that passes its gradient on to the parameters from which the leaf was computed."""

    def __init__(
        self,
        gradients: GradientSum,
        sources: list[tuple[nn.Parameter, float]],
        selection: Selection,
        weights: LevelWeights,
        name: str,
    ) -> None:
        self._gradients = gradients
        self._sources = sources
        self._selection = selection
        self._weights = weights
        self._name = name

    def __call__(self, leaf: Tensor) -> None:
        gradient, leaf.grad = leaf.grad, None
        if gradient is not None:
            gradient = self._weights.gradient(self._name, leaf.detach(), gradient)
            for parameter, share in self._sources:
                self._gradients.add(parameter, self._selection, gradient, share)


class _ComputedHandover:
    """A hook of a leaf that passes its gradient on through the computation of its value."""

    def __init__(self, gradients: GradientSum, value: Tensor, parameters: Sequence[nn.Parameter]) -> None:
        self._gradients = gradients
        self._value = value
        self._parameters = parameters

    def __call__(self, leaf: Tensor) -> None:
        gradient, leaf.grad = leaf.grad, None
        if gradient is not None:
            # A leaf may get gradients several times.
            found = torch.autograd.grad(self._value, self._parameters, gradient, retain_graph=True, allow_unused=True)
            for parameter, one in zip(self._parameters, found, strict=True):
                if one is not None:
                    self._gradients.add(parameter, (), one)
