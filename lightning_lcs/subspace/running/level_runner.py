"""Runs the networks of a subspace: at the level that is set, at a level of a training step, or for calibration."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from lightning_lcs.graph.tracing.example_inputs import samples_in
from lightning_lcs.subspace.axis import check_alpha
from lightning_lcs.subspace.features import Feature, Features
from lightning_lcs.subspace.fingerprint import differ, fingerprint
from lightning_lcs.subspace.mode import Level, Mode
from lightning_lcs.subspace.part import Part
from lightning_lcs.subspace.running import calibration
from lightning_lcs.subspace.running.calibration import Collector
from lightning_lcs.subspace.running.evaluation import Evaluation
from lightning_lcs.subspace.running.gradients import GradientSum
from lightning_lcs.subspace.running.training_level import TrainingLevel
from lightning_lcs.subspace.state import LevelTensors
from lightning_lcs.utils.warning import warn

OTHERS = (
    "the batch-norm statistics of the levels were collected at other weights than the present ones, and a file holds "
    "one set of weights: call recalibrate() with training images before it is saved"
)
DROPPED = (
    "the batch-norm statistics of the levels are dropped, because they were collected at other weights than those that "
    "were loaded; recalibrate() with training images collects them anew"
)


class Executor(Protocol):
    """Runs a network: in evaluation, at a level of a training step, to collect statistics, or from a file."""

    def run(self, part: Part, full: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one forward; ``full`` is the network's own forward."""


class Server(Executor, Protocol):
    """An executor that prepares the level in advance, when it is set."""

    def switch(self, level: Level) -> None:
        """Prepare a level, and run at it from now on."""

    def forget(self) -> None:
        """Prepare the level again before the next forward, because weights or statistics are about to change."""


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of a network: its arguments, what it returned, and what modules inside of it returned, by path."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any
    features: Mapping[str, Feature] = dataclasses.field(default_factory=dict)


class LevelRunner:
    """The networks of a subspace, the statistics and ranges of their levels, and the executor that runs them.

    Args:
        parts: The networks.
        mode: The mode.

    Attributes:
        alpha: The level asked for, in [0, 1].
        evaluation: Runs the networks at the level that is set.
        server: Runs them instead of ``evaluation``; ``None`` unless the network was loaded from a file.
    """

    def __init__(self, parts: Sequence[Part], mode: Mode) -> None:
        self.parts = parts
        self.mode = mode
        self.alpha = 1.0
        self.evaluation = Evaluation(Level(mode, 1.0), self.statistics_fit)
        self.server: Server | None = None
        self._executor: Executor | None = None  # inside a block
        self._rows: dict[str, int] | None = None  # inside a block
        self._recorded: tuple[list[Call], Sequence[str]] | None = None  # inside a block
        self._statistics: dict[float, dict[str, Tensor]] = {}
        self._statistics_weights = ""
        self._ranges: dict[float, dict[str, Tensor]] = {}
        self._resolve()

    # -- the level that is set --------------------------------------------------------------------------------------

    def nearest_level(self, alpha: float) -> float:
        """The level that runs when ``alpha`` is set; see :meth:`SubspaceModel.nearest_level`."""
        alpha = self.mode.snap(alpha)
        if not self._statistics:
            return alpha
        return min((*self._statistics, 1.0), key=lambda level: (abs(level - alpha), -level))

    def level(self, alpha: float) -> Level:
        """The level that runs when ``alpha`` is set, with its stored statistics and ranges."""
        nearest = self.nearest_level(alpha)
        statistics, ranges = self._statistics.get(nearest), self._ranges.get(nearest, {})
        return Level(self.mode, nearest, statistics=statistics, ranges=ranges)

    def set_alpha(self, alpha: float) -> None:
        """Choose the level at which the networks run from now on; see :meth:`SubspaceModel.set_alpha`."""
        level = self.level(alpha)
        if self.server is not None:
            self.server.switch(level)
        self.alpha = check_alpha(alpha)
        self.evaluation.level = level
        self.evaluation.forget_tensors()

    def _resolve(self) -> None:
        """Resolve the present level again, because the stored statistics or ranges have changed."""
        self.evaluation.level = self.level(self.alpha)
        if self.server is not None:
            self.server.forget()

    @property
    def statistics(self) -> Mapping[float, Mapping[str, Tensor]]:
        """The stored batch-norm statistics, by level and qualified name; a copy of the mapping.

        Statistics that are assigned count as those of the present weights.
        """
        return dict(self._statistics)

    @statistics.setter
    def statistics(self, levels: Mapping[float, Mapping[str, Tensor]]) -> None:
        self.set_statistics(levels, self.fingerprint() if levels else "")

    def set_statistics(self, levels: Mapping[float, Mapping[str, Tensor]], weights: str) -> None:
        """Replace the stored batch-norm statistics.

        Args:
            levels: The statistics, by level and qualified name.
            weights: The fingerprint of the weights that they were collected at; empty if these are not known.
        """
        self._statistics = {alpha: dict(tensors) for alpha, tensors in levels.items()}
        self._statistics_weights = weights if levels else ""
        self.evaluation.forget_check()
        self._resolve()

    @property
    def statistics_weights(self) -> str:
        """The fingerprint of the weights that the stored statistics were collected at; empty if it is not known."""
        return self._statistics_weights

    def weights(self) -> list[Tensor]:
        """All parameters of the networks and all second endpoints, each once: those that the fingerprint is of."""
        found = [w for part in self.parts for w in (*part.network.module.parameters(), *part.endpoints.values())]
        return list({id(weight): weight for weight in found}.values())

    def fingerprint(self) -> str:
        """The fingerprint of the present weights, computed anew; see :func:`lightning_lcs.subspace.fingerprint`."""
        return fingerprint(self.parts)

    def statistics_fit(self) -> bool:
        """Whether the stored statistics are those of the present weights.

        It is true without statistics, and for statistics of unknown origin.
        """
        return not self._statistics_weights or not differ(self._statistics_weights, self.fingerprint())

    def check_statistics(self, weights: str) -> None:
        """Check that the stored statistics may be saved with weights.

        Args:
            weights: The fingerprint of the weights.

        Raises:
            ValueError: The statistics were collected at other weights.
        """
        if differ(self._statistics_weights, weights):
            raise ValueError(OTHERS)

    def settle_statistics(self) -> bool:
        """Compare the statistics with the weights, now that both were loaded, and drop them if they do not fit.

        A warning says so. Statistics of unknown origin count as those of the present weights from now on.

        Returns:
            Whether the statistics were kept.
        """
        if not self._statistics:
            return True
        present = self.fingerprint()
        fit = not differ(self._statistics_weights, present)
        if not fit:
            warn(DROPPED)
        self.set_statistics(self._statistics if fit else {}, present)
        return fit

    @property
    def ranges(self) -> Mapping[float, Mapping[str, Tensor]]:
        """The ranges of quantized inputs that training moved, by level and qualified name."""
        return dict(self._ranges)

    @ranges.setter
    def ranges(self, levels: Mapping[float, Mapping[str, Tensor]]) -> None:
        self._ranges = {alpha: dict(tensors) for alpha, tensors in levels.items()}
        self._resolve()

    # -- running ----------------------------------------------------------------------------------------------------

    def run(self, part: Part, full: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one network at the level; at the full level, call ``full``, its own forward."""
        executor: Executor = self._executor or self.server or self.evaluation
        if torch.is_grad_enabled() and (self._executor is not None or part.network.module.training):
            part.see_training()
        part.calls += 1
        if self._rows is not None and self._executor is None:  # and not while statistics are collected
            self._rows[part.prefix] = self._rows.get(part.prefix, 0) + (samples_in(args, kwargs) or 0)
        if self._recorded is None:
            with part.runs():
                return executor.run(part, full, args, kwargs)
        calls, paths = self._recorded
        modules = {path for path, _ in part.network.module.named_modules()} if paths else set()
        features = Features([path for path in paths if path in modules])
        part.features = features if features.paths else None
        try:
            with part.runs():
                output = executor.run(part, features.watch(part.network.module, full), args, kwargs)
        finally:
            part.features = None
        calls.append(Call(args, kwargs, output, features.found))
        return output

    @contextlib.contextmanager
    def recording(self, modules: Sequence[str] = ()) -> Iterator[list[Call]]:
        """Inside the block, keep every call of the networks.

        Args:
            modules: The paths of modules within the networks whose outputs are kept, too. The default is none.

        Yields:
            The calls, in their order.
        """
        calls: list[Call] = []
        before, self._recorded = self._recorded, (calls, modules)
        try:
            yield calls
        finally:
            self._recorded = before

    @contextlib.contextmanager
    def _running(self, executor: Executor) -> Iterator[None]:
        before, self._executor = self._executor, executor
        try:
            yield
        finally:
            self._executor = before

    @contextlib.contextmanager
    def in_backward(self, level: TrainingLevel, loss: Tensor) -> Iterator[None]:
        """Inside the block, whatever of the networks runs again in a backward runs at the level of the forward.

        Args:
            level: The level.
            loss: The loss whose backward runs inside the block.
        """
        with self._running(level), level.in_backward(loss):
            yield

    def __getstate__(self) -> dict[str, Any]:
        # A copy that is made inside of a block, such as a teacher in a step, is not at the level of the block.
        return {**self.__dict__, "_executor": None, "_rows": None, "_recorded": None}

    @contextlib.contextmanager
    def counting_rows(self) -> Iterator[Callable[[int], None]]:
        """Inside the block, count the rows that each of several networks gets, such as a head that runs on regions.

        Afterwards their costs are those of one sample of what they are parts of.

        Yields:
            A function to call with the number of samples of each batch.
        """
        rows: dict[str, int] = {}
        samples = 0

        def add(more: int) -> None:
            nonlocal samples
            samples += more

        # A single network is deployed alone, so that its own samples count.
        before, self._rows = self._rows, rows if len(self.parts) > 1 else None
        try:
            yield add
        finally:
            self._rows = before
        for part in self.parts:
            if samples and rows.get(part.prefix):
                part.rows = rows[part.prefix] / samples

    @contextlib.contextmanager
    def training_level(
        self,
        alpha: float,
        gradients: GradientSum | None = None,
        *,
        strength: float = 1.0,
        direct: bool = False,
        drawn: Mapping[str, float] | None = None,
    ) -> Iterator[TrainingLevel]:
        """One level of a training step: forward and backward inside the block, at exactly ``alpha``.

        The level's own tensors and activations are gone at its end. No running statistics are written. At alpha = 1 the
        network's own parameters are used directly, as without this block.

        Args:
            alpha: The level, in [0, 1].
            gradients: Takes the gradients of the network's parameters (both endpoints on a line) below alpha = 1. By
                default they are added to the parameters' ``.grad`` on a normal exit.
            strength: The share of the level's compression that applies while a warm-up lasts, in [0, 1]; inputs of
                layers are quantized at 1 only.
            direct: Whether to back-propagate into the parameters themselves, for a backward that comes after the block.
            drawn: The values of the mode's axis that single layers drew in place of the level's, by qualified path.

        Yields:
            What runs the networks inside the block.

        Raises:
            ValueError: ``alpha`` is outside [0, 1] or NaN.
        """
        self.forget()  # Weights and ranges are about to change.
        own = GradientSum()
        taker = None if direct else own if gradients is None else gradients
        level = Level(self.mode, self.mode.snap(alpha), strength=strength, drawn=drawn or {})
        try:
            executor = TrainingLevel(level, taker, self._ranges, self.evaluation.warn_of_statistics)
            with self._running(executor), own.added():
                yield executor
            executor.finish()
        finally:
            self._resolve()

    def forget(self) -> None:
        """Discard everything that was prepared from the weights."""
        self.evaluation.forget()
        if self.server is not None:
            self.server.forget()

    # -- calibration ------------------------------------------------------------------------------------------------

    def needs_data(self, alphas: Sequence[float]) -> bool:
        """Whether levels need training images; see :func:`lightning_lcs.subspace.running.calibration.needs_data`."""
        return calibration.needs_data(self.parts, self.mode, self._ranges, alphas)

    @property
    def has_batch_norm(self) -> bool:
        """Whether any network has batch norms, whose running statistics depend on the level."""
        return calibration.has_batch_norm(self.parts)

    @contextlib.contextmanager
    def collecting(self) -> Iterator[Collector]:
        """Collect batch-norm statistics from the batches that run inside the block, at the collector's ``alpha``.

        Layers run as in evaluation, except that batch norms normalise with the statistics of each batch. Modules that
        contain layers are in training mode, and return what a training step expects.
        """
        collector = Collector(self.parts, self.mode)
        with collector.flags(), self._running(collector):
            yield collector

    def recalibrate(self, batches: Iterable[Any], alphas: int | Sequence[float], forward: Callable[[Any], Any]) -> None:
        """Collect statistics for a grid of levels, and keep them; see :meth:`SubspaceModel.recalibrate`."""
        levels = self.grid(alphas)
        if self.needs_data(levels):
            self.statistics = self.collect(batches, levels, forward)

    def grid(self, alphas: int | Sequence[float]) -> list[float]:
        """The levels whose statistics are kept for a grid: without those that the mode does not compress."""
        full = self.mode.is_full
        return sorted({self.mode.snap(alpha) for alpha in calibration.level_grid(alphas) if not full(alpha)})

    def store_full(self, collected: LevelTensors) -> None:
        """Store statistics of alpha = 1 as the running statistics, and as a level if the mode compresses it, too."""
        if not self.mode.is_full(1.0):
            self.statistics = collected
        with torch.no_grad():
            for part in self.parts:
                running = dict(part.network.module.named_buffers())  # the others are ranges of quantized inputs
                for name, value in part.own(collected[1.0]).items():
                    if name in running:
                        running[name].copy_(value)

    def collect(self, batches: Iterable[Any], levels: Sequence[float], forward: Callable[[Any], Any]) -> LevelTensors:
        """Collect statistics for levels, without storing them; the arguments are those of :meth:`recalibrate`."""
        with torch.inference_mode(False), torch.no_grad(), self.collecting() as collector:
            return calibration.collect(collector, batches, levels, forward)

    def reduce_ranges(self) -> None:
        """Replace the ranges of quantized inputs by their mean over the ranks of a distributed run.

        All ranks must have trained the same levels.
        """
        self.ranges = {
            level: calibration.over_ranks(dict(ranges)) if ranges else ranges for level, ranges in self._ranges.items()
        }
