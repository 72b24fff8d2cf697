"""Networks at the level that is set: their tensors are kept from one forward to the next."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_lcs.subspace.forward import Execution, Inputs
from lightning_lcs.subspace.mode import Level
from lightning_lcs.subspace.part import Part
from lightning_lcs.subspace.running.level_weights import LevelWeights, level_tensors
from lightning_lcs.subspace.running.weight_state import WeightState
from lightning_lcs.utils.warning import warn

NO_STATISTICS = (
    "running at alpha={alpha:g} on the batch-norm statistics of alpha=1: accuracy will be poor; recalibrate() collects "
    "statistics for every level (LCSCallback does so by itself)"
)
OTHER_WEIGHTS = (
    "running at alpha={alpha:g} on batch-norm statistics of other weights: they were collected before the weights "
    "changed, and accuracy may be poor; recalibrate() collects statistics of the present weights"
)
MOST_LEVELS = (
    256  # The number of levels whose thresholds are kept; it is limited because a controller may set ever new alphas.
)
Ready = tuple[list[Tensor | None], Inputs | None]


class Evaluation:
    """Runs networks at a level, and rebuilds its tensors only if a weight, the level or the need for gradients changes.

    The results of a mode for the levels that were set last (for a sparse level, a threshold per weight tensor) are kept
    until a weight changes. Setting such a level again costs little more than copying the weights.

    Attributes:
        level: The level that is set.
        fits: Tells whether the stored statistics are those of the present weights; ``None`` if they surely are.
        warns: Whether to warn of the first level that runs without batch-norm statistics of its own.
    """

    def __init__(self, level: Level, fits: Callable[[], bool] | None = None) -> None:
        self.level = level
        self.fits = fits
        self.warns = True
        self._told = False
        self._checked: dict[int, Any] = {}  # by network, the state of its weights when statistics were checked last
        self._ready: dict[Any, tuple[Any, Ready]] = {}
        self._known: dict[Any, tuple[Any, dict[str, Any]]] = {}

    def forget_tensors(self) -> None:
        """Free the tensors of the level."""
        self._ready.clear()

    def forget(self) -> None:
        """Free everything, because weights are about to change."""
        self._ready.clear()
        self._known.clear()

    def forget_check(self) -> None:
        """Check anew whether the stored statistics fit, because they are about to change."""
        self._checked.clear()
        self._told = False

    @contextlib.contextmanager
    def silent(self) -> Iterator[None]:
        """Inside the block, no level warns of its statistics, because nobody sees its results."""
        before = self.warns, self._told
        self.warns, self._told = False, True
        try:
            yield
        finally:
            self.warns, self._told = before

    def run(self, part: Part, full: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a network at the level; at the full level, call ``full``."""
        part.network.remember(args, kwargs)
        level = self.level
        if level.is_full:
            return full(*args, **kwargs)
        execution = level.mode.execution(part, level, args, kwargs)
        tensors, inputs = self._tensors(part, execution, level)
        return execution.run(tensors, full, args, kwargs, inputs)

    def statistics_of(self, part: Part, execution: Execution, level: Level) -> Mapping[str, Tensor]:
        """The stored statistics of a level by the network's own names; warns if there are none, or those of others."""
        if level.statistics is not None:
            self.check(part, level, WeightState(part, execution))
        return self._statistics_of(part, execution, level)

    def check(self, part: Part, level: Level, state: Any) -> None:
        """Warn once if a level runs on statistics that were collected at other weights.

        Args:
            part: The network.
            level: The level.
            state: The state of its weights: they are compared only if it has changed since they were compared last.
        """
        if level.statistics is None or self._checked.get(id(part)) == state:
            return
        self._checked[id(part)] = state
        if self.fits is not None and not self._told and not self.fits():
            self._told = True
            warn(OTHER_WEIGHTS.format(alpha=level.alpha))

    def _statistics_of(self, part: Part, execution: Execution, level: Level) -> Mapping[str, Tensor]:
        if level.statistics is not None:
            return part.own(level.statistics)
        untouched = execution.batch_statistics
        if any(name not in untouched for name in execution.statistics):
            self.warn_of_statistics(level)
        return {}

    def warn_of_statistics(self, level: Level) -> None:
        """Warn once that a level runs on the batch-norm statistics of alpha = 1."""
        if self.warns:
            self.warns = False
            warn(NO_STATISTICS.format(alpha=level.alpha))

    def _tensors(self, part: Part, execution: Execution, level: Level) -> Ready:
        state = WeightState(part, execution)
        gradients = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in state.tensors)
        stored = id(level.statistics)
        whole = part.frozen(part.network.plan.multiplied)
        key = (level.alpha, stored, torch.is_inference_mode_enabled(), execution.batch_statistics, whole, state)
        held = self._ready.get((id(part), execution.names))
        if held is not None and held[0] == key:
            return held[1]
        if not part.network.module.training:
            self.check(part, level, state)
        statistics = self._statistics_of(part, execution, level)
        before = self._known.get((id(part), level.alpha))
        known = {} if before is None or before[0] != state else before[1]
        weights = LevelWeights(part, level, known)
        ready = (level_tensors(weights, execution, statistics), level.mode.evaluation_inputs(part, level))
        if known:
            self._known[id(part), level.alpha] = (state, known)
            if len(self._known) > MOST_LEVELS:
                del self._known[next(iter(self._known))]
        # A backward pass frees the graph in which tensors were cut, and buffers that a forward writes are new copies.
        if not gradients and not execution.updated:
            self._ready[id(part), execution.names] = (key, ready)
        return ready

    def __getstate__(self) -> dict[str, Any]:
        # The tensors are views of the weights of this object, and the keys hold their addresses: a copy starts empty.
        return {**self.__dict__, "_ready": {}, "_known": {}, "_checked": {}}
