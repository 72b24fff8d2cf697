"""Runs a loaded network at a level that is prepared in advance; switches of the level don't disturb forwards."""

from __future__ import annotations

import dataclasses
import math
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_lcs.graph.fold_batchnorm import FoldedBatchNorm, fold_batch_norms
from lightning_lcs.graph.program import Program
from lightning_lcs.runtime.arena import Arena, Recipe
from lightning_lcs.subspace.forward import Traced
from lightning_lcs.subspace.mode import Level
from lightning_lcs.subspace.part import Part
from lightning_lcs.subspace.running.evaluation import Evaluation

MOST_RECIPES = 32  # levels whose views are kept; limited, because a controller may set ever new alphas


@dataclasses.dataclass(frozen=True)
class RuntimeStatistics:
    """What the runtime of a loaded structured model did so far; ``model.runtime.statistics()`` returns it.

    Attributes:
        forwards: The number of forwards. The default is 0, as for the other attributes.
        switches: The number of levels that were prepared.
        longest_reader_wait_ms: The longest time that a forward waited for its level, in milliseconds.
        mean_reader_wait_ms: The mean time that a forward waited for its level, in milliseconds.
        last_switch_ms: The time of the last switch in milliseconds, from the call until forwards see the new level.
        last_drain_ms: The part of the last switch that waited for running forwards to end, in milliseconds.
        arena_bytes: The memory of the prepared tensors in bytes, both arenas together.

    Example:
        >>> import torch
        >>> from lightning_lcs import SubspaceModel
        >>> network = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> SubspaceModel(network, torch.randn(2, 4)).eval().save("model.lcs")
        >>> model = SubspaceModel.load("model.lcs")
        >>> with torch.inference_mode():
        ...     outputs = model(torch.randn(3, 4))
        >>> model.runtime.statistics().forwards
        1
    """

    forwards: int = 0
    switches: int = 0
    longest_reader_wait_ms: float = 0.0
    mean_reader_wait_ms: float = 0.0
    last_switch_ms: float = 0.0
    last_drain_ms: float = 0.0
    arena_bytes: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class _Key:
    """The inputs from which a level was prepared. The statistics are compared by identity."""

    alpha: float
    statistics: Mapping[str, Tensor] | None
    state: tuple[int, list[int]]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Key) or self.statistics is not other.statistics:
            return False
        return (self.alpha, self.state) == (other.alpha, other.state)

    __hash__ = None  # type: ignore[assignment]


class _Prepared:
    """A prepared level, which does not change while forwards read it."""

    def __init__(self, key: _Key, arena: Arena, program: Program, recipe: Recipe) -> None:
        self.key = key
        self.arena = arena
        self.program = program
        self.tensors = arena.writer(recipe).write()
        self.sizes = recipe.sizes
        self.readers = 0


class Runtime:
    """Runs one structured network at the level prepared last, in any number of threads.

    A switch waits until the last forward has left the spare arena, writes the new level there, and then makes it the
    present level in one step, so that each forward sees exactly one level. A forward waits for a switch only during
    that step. Switches wait for each other.

    Args:
        part: The network, from a file.
        evaluation: Holds the level that is set, and runs forwards for which gradients are recorded.
    """

    def __init__(self, part: Part, evaluation: Evaluation) -> None:
        self._part = part
        self._evaluation = evaluation
        self._start()

    def _start(self) -> None:
        self._lock = threading.Lock()
        self._left = threading.Condition(self._lock)
        self._switching = threading.Lock()
        self._current: _Prepared | None = None
        self._before: _Prepared | None = None
        self._arenas = (Arena(), Arena())
        self._recipes: dict[float, Recipe] = {}
        self._statistics: dict[float, Mapping[str, Tensor] | None] = {}  # from which the recipes were made
        self._recipes_of: Any = None
        self._watched: list[Tensor] = []
        self._watched_of: Any = None
        self._folded: dict[torch.device, tuple[Program, dict[str, FoldedBatchNorm]]] = {}
        self._forwards = self._switches = 0
        self._longest = self._waited = self._switch_seconds = self._drain_seconds = 0.0

    def switch(self, level: Level) -> None:
        """Prepare a level, and let forwards see it from now on.

        Args:
            level: The level. If any statistics are stored, it has some.
        """
        begin = time.perf_counter()
        if level.statistics is None and level.value != level.mode.axis.full and self.has_statistics:
            self._evaluation.warn_of_statistics(level)
        with self._switching, torch.inference_mode(False), torch.no_grad():
            key = _Key(level.alpha, level.statistics, self._state())
            if self._current is not None and self._current.key == key:
                return
            program, recipe = self._recipe(level, key.state)
            drain = time.perf_counter()
            with self._left:
                self._left.wait_for(lambda: self._before is None or self._before.readers == 0)
                self._before = None
            self._drain_seconds = time.perf_counter() - drain
            spare = self._arenas[1] if self._current and self._current.arena is self._arenas[0] else self._arenas[0]
            prepared = _Prepared(key, spare, program, recipe)
            with self._lock:
                self._before, self._current = self._current, prepared
            self._switches += 1
            self._switch_seconds = time.perf_counter() - begin

    @property
    def has_statistics(self) -> bool:
        """Whether the network has batch norms, whose statistics depend on the level."""
        network = self._part.network
        return bool(network.in_mode(False).statistics)

    @property
    def serves(self) -> bool:
        """Whether forwards run here; they don't if gradients of the network's own tensors are recorded."""
        first = next(self._part.network.module.parameters(), None)
        return first is None or not (torch.is_grad_enabled() and first.requires_grad)

    @property
    def is_ready(self) -> bool:
        """Whether a level is prepared from the present statistics and weights."""
        current = self._current
        return current is not None and current.key.alpha >= 0.0 and current.key.state[0] == self._generation()

    def run(self, part: Part, full: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one forward at the level that is set.

        Raises:
            ValueError: The arguments are not those that the network was saved with.
        """
        if not self.serves:
            return self._evaluation.run(part, full, args, kwargs)
        if not self.is_ready:
            self.switch(self._evaluation.level)
        self._part.network.program(args, kwargs)  # checks the arguments
        asked = time.perf_counter()
        with self._lock:
            waited = time.perf_counter() - asked
            self._forwards += 1
            self._waited += waited
            self._longest = max(self._longest, waited)
            current = self._current
            if current is None:
                raise RuntimeError("no level is prepared")
            current.readers += 1
        try:
            return current.program.run(current.tensors, current.sizes, args, kwargs)
        finally:
            with self._left:
                current.readers -= 1
                if current.readers == 0:
                    self._left.notify_all()

    def forget(self) -> None:
        """Prepare the level again before the next forward, because weights or statistics are about to change."""
        with self._switching, self._lock:
            if self._current is not None:
                self._current.key = dataclasses.replace(self._current.key, alpha=math.nan)

    def statistics(self) -> RuntimeStatistics:
        """The statistics of this runtime since it was created."""
        with self._lock:
            return RuntimeStatistics(
                forwards=self._forwards,
                switches=self._switches,
                longest_reader_wait_ms=1e3 * self._longest,
                mean_reader_wait_ms=1e3 * self._waited / max(1, self._forwards),
                last_switch_ms=1e3 * self._switch_seconds,
                last_drain_ms=1e3 * self._drain_seconds,
                arena_bytes=sum(arena.size_bytes for arena in self._arenas),
            )

    def _recipe(self, level: Level, state: Any) -> tuple[Program, Recipe]:
        network, alpha, stored = self._part.network, level.alpha, level.statistics
        if state != self._recipes_of:
            if self._recipes_of is not None:
                self._evaluation.check(self._part, level, state)
            self._drop(list(self._recipes))
            self._folded.clear()
            self._recipes_of = state
        program, folds = self._program(network.tensor(next(iter(network.plan.tensors))).device)
        if alpha in self._recipes and self._statistics[alpha] is not stored:
            self._drop([alpha])
        if alpha not in self._recipes:
            self._drop(list(self._recipes)[: max(0, len(self._recipes) - MOST_RECIPES + 1)])
            execution = level.mode.example_execution(self._part, level, training=False)
            assert isinstance(execution, Traced)
            at, endpoints = execution.at, self._part.endpoints
            self._recipes[alpha] = Recipe(program, folds, at, alpha, network.tensor, endpoints, stored or {})
            self._statistics[alpha] = stored
        return program, self._recipes[alpha]

    def _drop(self, alphas: list[float]) -> None:
        for alpha in alphas:
            recipe = self._recipes.pop(alpha)
            for arena in self._arenas:
                arena.forget(recipe)

    def _program(self, device: torch.device) -> tuple[Program, dict[str, FoldedBatchNorm]]:
        if device not in self._folded:
            network = self._part.network
            args, kwargs = network.example_inputs()
            dtypes = {name: network.tensor(name).dtype for name in network.plan.tensors}
            self._folded[device] = fold_batch_norms(network.program(args, kwargs), dtypes)
        return self._folded[device]

    def _generation(self) -> int:
        generation: int = getattr(self._part.network.module, "generation", 0)
        return generation

    def _state(self) -> tuple[int, list[int]]:
        """The state of the weights on which prepared levels depend; versions of tensors show changes in place."""
        generation = self._generation()
        if generation != self._watched_of:
            network = self._part.network
            self._watched = [network.tensor(name) for name in network.plan.tensors]
            self._watched += list(self._part.endpoints.values())
            self._watched_of = generation
        return generation, [tensor._version for tensor in self._watched]

    def __getstate__(self) -> dict[str, Any]:
        # Locks can't be copied. Levels are prepared again when they are needed.
        return {"_part": self._part, "_evaluation": self._evaluation}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()
