"""SubspaceModel: a network, its second endpoint, and the level at which it runs."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from lightning_lcs._deployable import Deployable
from lightning_lcs.functional.subspace import endpoint_cosine
from lightning_lcs.graph.channels.plan import ChannelPlan
from lightning_lcs.io import checkpoint as checkpoints
from lightning_lcs.runtime.runtime import Runtime
from lightning_lcs.subspace import endpoints
from lightning_lcs.subspace.coverage import norm_lines, report
from lightning_lcs.subspace.curve import Efficiency
from lightning_lcs.subspace.evaluation import Prepared
from lightning_lcs.subspace.forward import Execution
from lightning_lcs.subspace.gradients import GradientSum
from lightning_lcs.subspace.materialize import efficiency_of, own_part
from lightning_lcs.subspace.modes.observers import Inputs
from lightning_lcs.subspace.modes.registry import Mode, Structured, check_alpha, check_subspace, parse_mode
from lightning_lcs.subspace.network import TOGETHER, Part, parts_of, sort_channels
from lightning_lcs.subspace.norms import convert_norms
from lightning_lcs.subspace.training_level import Collector, TrainingLevel

NO_STATISTICS = (
    "running at alpha={alpha:g} on the batch-norm statistics of alpha=1: accuracy will be poor; recalibrate() collects "
    "statistics for every level (LCSCallback does so by itself)"
)


class SubspaceModel(Deployable, nn.Module):
    """A network that runs at any level of compression.

    At alpha = 1 the network's own forward runs, untouched; below, its traced graph runs with sliced tensors, at the
    speed of the small network. On a line the network's own parameters are endpoint 1.

    Args:
        module: the network; or several that are called separately, by name.
        example_inputs: a tensor or a tuple of arguments; without it the first call serves.
        mode: "structured", or a mode object with options.
        subspace: "line" or "point".
        line_parameters: what lies on the line: "norm" (scale and shift of normalisation layers), "backbone" (all but
            the last linear layer, the head) or "all"; see :class:`LCSCallback`.
        endpoint_start: how endpoint 0 starts: "copy", or "independent" (each weight of two or more dimensions redrawn
            with its own mean and deviation).
        norm: "keep", or "instance" or "group" to replace the network's batch norms, in place, by norms that need no
            statistics.
        seed: of the independent draws.

    Attributes:
        runtime: of a structured model from a file: what it runs with, and how long switches took; else ``None``.

    Raises:
        ValueError: an unknown option.
        TraceError: with ``example_inputs``, a network that can't be traced.
    """

    def __init__(
        self,
        module: nn.Module | Mapping[str, nn.Module],
        example_inputs: Any = None,
        *,
        mode: str | Mode | Mapping[str, Any] = "structured",
        subspace: str = "line",
        line_parameters: str = "norm",
        endpoint_start: str = "copy",
        norm: str = "keep",
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.mode = parse_mode(mode)
        self.subspace = check_subspace(subspace)
        modules = dict(module) if isinstance(module, Mapping) else {"": module}
        if not modules:
            raise ValueError("module is empty: give at least one network")
        self.module = next(iter(modules.values())) if len(modules) == 1 else nn.ModuleList(modules.values())
        self.norm = norm
        self._converted = convert_norms(modules.values(), norm, isinstance(self.mode, Structured))
        self.line_parameters = line_parameters
        self.endpoint_start = endpoint_start
        self.seed = seed
        self.parts = parts_of(modules, self.mode)
        if subspace == "line":
            lines = endpoints.attach(list(modules.values()), line_parameters, endpoint_start, seed)
            for part, line in zip(self.parts, lines, strict=True):
                part.endpoints = line
        self.statistics: dict[float, dict[str, Tensor]] = {}
        self.ranges: dict[float, dict[str, Tensor]] = {}
        self.settled = False  # trained or loaded as a subspace
        self._alpha = 1.0
        self._training_level: TrainingLevel | None = None
        self._collector: Collector | None = None
        self._prepared = Prepared()
        self.runtime: Runtime | None = None
        self.warns = True  # of the first level that runs without batch-norm statistics of its own
        if example_inputs is not None:
            args = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
            self._only_part("example_inputs").execution(self.mode, 0.0, args, {})

    # -- levels -----------------------------------------------------------------------------------------------------

    @property
    def alpha(self) -> float:
        """The level asked for, in [0, 1]."""
        return self._alpha

    def set_alpha(self, alpha: float) -> None:
        """Choose the level at which the network runs from now on.

        A structured model from a file has the level's tensors ready when this returns, and other threads may run it
        meanwhile: each forward sees one level, whole.

        Args:
            alpha: in [0, 1]; 1 is the full network.

        Raises:
            ValueError: ``alpha`` is outside [0, 1] or NaN; the level stays what it was.
        """
        alpha = check_alpha(alpha)
        if self.runtime is not None:
            self._switch(self.runtime, alpha)
        self._alpha = alpha
        self._prepared.forget_tensors()

    def _switch(self, runtime: Runtime, alpha: float) -> None:
        level = self.nearest_level(alpha)
        cut = self.mode.width(level) < 1.0
        if self.warns and cut and level not in self.statistics and runtime.has_statistics:
            self.warns = False
            warnings.warn(NO_STATISTICS.format(alpha=level), stacklevel=3)
        runtime.switch(level, self.statistics)

    def _forget(self) -> None:
        self._prepared.forget()
        if self.runtime is not None:
            self.runtime.forget()

    @contextlib.contextmanager
    def at_alpha(self, alpha: float) -> Iterator[SubspaceModel]:
        """Run at ``alpha`` inside the block; the level before comes back on any exit."""
        before = self._alpha
        self.set_alpha(alpha)
        try:
            yield self
        finally:
            self.set_alpha(before)

    def nearest_level(self, alpha: float) -> float:
        """The level that runs when ``alpha`` is asked for.

        With stored batch-norm statistics it is the nearest stored one (or 1, whose statistics are the network's own);
        without any it is ``alpha`` itself. In quantized mode it is that of a bit width.
        """
        alpha = self.mode.snap(alpha)
        if not self.statistics:
            return alpha
        return min((*self.statistics, 1.0), key=lambda level: (abs(level - alpha), -level))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The network's own arguments and results, at the level set."""
        part = self._only_part("forward()")
        return self.run(part, part.network.module, args, kwargs)

    def run(self, part: Part, full: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one part at the level set; ``full`` is called at alpha = 1."""
        part.calls += 1
        part.running += 1
        try:
            return self._run(part, full, args, kwargs)
        finally:
            part.running -= 1

    def _run(self, part: Part, full: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._collector is not None:
            return self._collector.run(part, full, args, kwargs)
        if self._training_level is not None:
            level = self._training_level
            return full(*args, **kwargs) if level.is_full else level.run(part, full, args, kwargs)
        if self.runtime is not None and self.runtime.serves:
            if not self.runtime.is_ready(self.statistics):
                self._switch(self.runtime, self._alpha)
            return self.runtime.run(args, kwargs)
        part.network.remember(args, kwargs)
        alpha = self.nearest_level(self._alpha)
        if self.mode.is_full(alpha):
            return full(*args, **kwargs)
        execution = part.execution(self.mode, alpha, args, kwargs)
        tensors, inputs = self._prepared.get(
            part,
            execution,
            self.mode,
            alpha,
            self.statistics.get(alpha),
            lambda: (
                self._statistics(part, execution, alpha),
                self._inputs(part, alpha),
            ),
        )
        return execution.run(tensors, full, args, kwargs, inputs)

    def _inputs(self, part: Part, alpha: float) -> Inputs | None:
        return part.inputs(self.mode, alpha, {**self.ranges.get(alpha, {}), **self.statistics.get(alpha, {})})

    def _statistics(self, part: Part, execution: Execution, alpha: float) -> dict[str, Tensor]:
        """Stored running statistics of a level, by the part's own buffer names."""
        untouched = execution.batch_statistics
        read = [name for name in execution.statistics if name not in untouched]
        stored = self.statistics.get(alpha)
        if stored is None:
            if read and self.warns:
                self.warns = False
                warnings.warn(NO_STATISTICS.format(alpha=alpha), stacklevel=7)
            return {}
        return {name[len(part.prefix) :]: value for name, value in stored.items() if name.startswith(part.prefix)}

    @contextlib.contextmanager
    def training_level(
        self,
        alpha: float,
        gradients: GradientSum | None = None,
        *,
        strength: float = 1.0,
        direct: bool = False,
        layer_bits: Mapping[str, int] | None = None,
    ) -> Iterator[None]:
        """One level of a training step: forward and backward inside the block, at exactly ``alpha``.

        The level's own tensors and activations are gone at its end. No running statistics are written. At alpha = 1 the
        network's own parameters are used directly, as without this block.

        Args:
            alpha: in [0, 1].
            gradients: takes the gradients of the network's parameters (both endpoints on a line) below alpha = 1; by
                default they are added to the parameters' ``.grad`` on a normal exit.
            strength: share of the level's sparsity that applies, in [0, 1], while a warm-up lasts; inputs of layers are
                quantized at 1 only.
            direct: back-propagate into the parameters themselves, for a backward that comes after the block.
            layer_bits: bits of single layers in place of the level's, by path; in quantized mode.

        Raises:
            ValueError: ``alpha`` is outside [0, 1] or NaN.
        """
        self._forget()  # weights and ranges are about to change
        own = GradientSum()
        taker = None if direct else own if gradients is None else gradients
        self._training_level = TrainingLevel.of(self.mode, alpha, strength, taker, self.ranges, layer_bits or {})
        try:
            with own.added():
                yield
        finally:
            self._training_level = None

    @contextlib.contextmanager
    def collecting(self) -> Iterator[Collector]:
        """Collect batch-norm statistics from the batches that run inside the block, at the collector's ``alpha``.

        Layers run as in evaluation, except that batch norms normalise with each batch's own statistics; modules made
        of layers are in training, and give what a training step expects.
        """
        collector = Collector(self.parts, self.mode)
        with collector.flags():
            self._collector = collector
            try:
                yield collector
            finally:
                self._collector = None

    # -- what a level is --------------------------------------------------------------------------------------------

    @property
    def plan(self) -> ChannelPlan:
        """Which channels shrink together in structured mode; known once the network has been traced."""
        if not isinstance(self.mode, Structured):
            raise RuntimeError(f"a plan of channels belongs to structured mode: {self.mode} keeps all")
        return self._plan(self._only_part("plan"))

    def _plan(self, part: Part) -> ChannelPlan:
        part.network.in_mode(False)
        return part.network.plan

    def report(self, alpha: float = 0.0) -> str:
        """What is compressed at a level, what stays whole and why, and which norms were replaced; see :attr:`plan`."""
        if isinstance(self.mode, Structured):
            names = [f"{part.name}: " if len(self.parts) > 1 else "" for part in self.parts]
            lines = [self._plan(part).report(self.mode.width(alpha)) for part in self.parts]
            return "\n".join([*map("".join, zip(names, lines, strict=True)), *norm_lines(self._converted)])
        return "\n".join(report(p.network.module, self.mode, p.compressed, self._converted) for p in self.parts)

    @property
    def has_batch_norm(self) -> bool:
        """Whether the network holds running statistics that depend on the level."""
        children = [child for part in self.parts for child in part.network.module.modules()]
        norms = [child for child in children if isinstance(child, nn.modules.batchnorm._BatchNorm)]
        return any(norm.track_running_stats for norm in norms)

    def endpoint_pairs(self) -> list[tuple[nn.Parameter, nn.Parameter]]:
        """``(w0, w1)`` of every parameter on the line, each once."""
        pairs = {id(w0): (w0, part.network.tensor(name)) for part in self.parts for name, w0 in part.endpoints.items()}
        return list(pairs.values())  # type: ignore[arg-type]

    def settle_endpoints(self) -> None:
        """Before training: endpoint 0 starts from the weights as they are now, unless it was trained or loaded."""
        for part in self.parts:
            if not endpoints.is_settled(part.network.module):
                endpoints.restart(part.network.module, part.endpoints, self.endpoint_start, self.seed)
                endpoints.settle(part.network.module)
        self.settled = True

    def sort_channels(self) -> None:
        """Sort the channels of every group, the strongest first; see ``Structured(order="importance")``.

        Not for a trained subspace: its narrow widths would change. Errors as in :meth:`efficiency`.
        """
        sort_channels(self.parts, self.mode)
        self.statistics.clear()
        self._forget()

    def endpoint_cosine(self) -> Tensor:
        """Cosine between the endpoints; see :func:`functional.subspace`.

        Scales and shifts count only where nothing else lies on the line, as in arXiv 2110.04252: all of them start at
        the same constants, whatever the weights do.
        """
        pairs = self.endpoint_pairs()
        return endpoint_cosine([pair for pair in pairs if pair[0].ndim > 1] or pairs)

    def efficiency(self, alpha: float) -> Efficiency:
        """What a level costs; with stored batch-norm statistics, the level that is nearest to ``alpha``.

        Raises:
            RuntimeError: the network was never called, and had no ``example_inputs``.
        """
        return efficiency_of(self.parts, self.mode, self.nearest_level(alpha))

    def materialize(self, alpha: float, train: bool = False) -> nn.Module:
        """A plain network of one level, with its own parameters and buffers.

        Args:
            alpha: in [0, 1].
            train: make it for training instead of evaluation; in structured mode the other of ``.train()`` and
                ``.eval()`` is an error afterwards.

        Returns:
            A network whose ``state_dict`` has the network's own names: in structured mode an ``fx.GraphModule`` with
            small tensors, else a copy of the network; for several networks a ``ModuleDict`` of them.
        """
        alpha = self.nearest_level(alpha)
        made: dict[str, nn.Module] = {}
        for part in self.parts:
            execution = part.example_execution(self.mode, alpha, train)
            statistics = {} if self.mode.is_full(alpha) else self._statistics(part, execution, alpha)
            made[part.name] = own_part(part, execution, self.mode, alpha, statistics, train, self._inputs(part, alpha))
        if len(self.parts) == 1:
            return made[self.parts[0].name]
        return nn.ModuleDict({name.replace(".", "_"): module for name, module in made.items()})

    # -- files ------------------------------------------------------------------------------------------------------

    def subspace_state(self) -> dict[str, Any]:
        """What a checkpoint needs beside the network's own ``state_dict``: plain data and tensors."""
        return checkpoints.state_of(self)

    def load_subspace_state(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`subspace_state` gave.

        Raises:
            ValueError: another mode, subspace, architecture or version; nothing has been changed then.
        """
        checkpoints.load_state(self, state)

    @classmethod
    def from_checkpoint(cls, checkpoint: str | os.PathLike[str], module: nn.Module) -> SubspaceModel:
        """Open a Lightning checkpoint, in any process.

        Args:
            checkpoint: path; read with ``weights_only=True``.
            module: the LightningModule that was trained, or its network; its weights are replaced.

        Raises:
            ValueError: the file holds no subspace, or one of another architecture or version.
        """
        return checkpoints.open_checkpoint(cls, checkpoint, module)

    # -- small print ------------------------------------------------------------------------------------------------

    def _only_part(self, what: str) -> Part:
        if len(self.parts) > 1:
            names = ", ".join(repr(part.name) for part in self.parts)
            raise RuntimeError(
                f"{what} needs a single network, and this subspace model has several: {names}; {TOGETHER}"
            )
        return self.parts[0]
