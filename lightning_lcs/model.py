"""SubspaceModel: a network, its second endpoint, and the level at which it runs."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from lightning_lcs.graph.channels.plan import ChannelPlan
from lightning_lcs.graph.traced_network import training_flags
from lightning_lcs.graph.tracing.example_inputs import sample
from lightning_lcs.io import checkpoint as checkpoints
from lightning_lcs.io import lcs_file
from lightning_lcs.runtime.memory_format import check_layout, lay_out
from lightning_lcs.runtime.runtime import Runtime
from lightning_lcs.subspace.build import build_parts
from lightning_lcs.subspace.curves.curve import Efficiency
from lightning_lcs.subspace.curves.level_table import (
    GivenLevels,
    NamedLevel,
    check_measured_at,
    level_for_budget,
    make_table,
    named_level,
)
from lightning_lcs.subspace.describe import describe
from lightning_lcs.subspace.materialize import materialized_part
from lightning_lcs.subspace.mode import Level, Mode
from lightning_lcs.subspace.modes.registry import check_subspace, name_of, parse_mode
from lightning_lcs.subspace.option_places import model_places
from lightning_lcs.subspace.part import TOGETHER, Part, cosine_between, endpoint_pairs
from lightning_lcs.subspace.running.calibration import DEFAULT_LEVELS
from lightning_lcs.subspace.running.level_runner import LevelRunner
from lightning_lcs.subspace.state import SubspaceState, parameter_shapes
from lightning_lcs.subspace.weights import endpoints
from lightning_lcs.subspace.weights.line import Line
from lightning_lcs.subspace.weights.norms import convert_norms
from lightning_lcs.utils.options import checked_keywords, parse_options
from lightning_lcs.utils.warning import warn

NO_STATISTICS = (
    "{path} holds no batch-norm statistics of its levels: it was written during a training that did not reach its end, "
    "or with Recalibration(images=0). Until recalibrate() with training images collects them, {until}"
)


class SubspaceModel(nn.Module):
    """A network that runs at any level of compression.

    At alpha = 1 the network's own forward runs, untouched. Below, it runs compressed: in structured mode as its traced
    graph with sliced tensors, at the speed of the small network. On a line the network's own parameters are endpoint 1.

    Args:
        module: The network; or several that are called separately, by name.
        example_inputs: A tensor or a tuple of arguments. By default the first call serves.
        mode: The compression mode: "structured", "unstructured", "quantized", or a mode object with options. The
            default is "structured".
        subspace: "line" or "point". The default is that of the mode: a point for those of this package.
        line: The options of the line, as a :class:`Line` or a mapping. The default is ``Line()``.
        norm: "keep", or "instance" or "group" to replace the network's batch norms, in place, by norms that need no
            statistics. The default is "keep".
        seed: The seed of the independent draws. The default is 0.

    Attributes:
        levels: The level table, by ascending alpha; empty unless the model came out of a file.
        class_names: The names of the classes, by their number; empty if the file has none.
        runtime: What a structured model from a file runs with, and how long switches took; else ``None``.

    Raises:
        ValueError: An option is not known.
        TraceError: With ``example_inputs``, the network can't be traced.

    Example:
        >>> import torch
        >>> from lightning_lcs import SubspaceModel
        >>> network = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> model = SubspaceModel(network, torch.randn(2, 4), subspace="point")
        >>> model.set_alpha(0.0)
        >>> model(torch.randn(3, 4)).shape, model.efficiency(0.0).params
        (torch.Size([3, 2]), 16)
    """

    @checked_keywords(model_places)
    def __init__(
        self,
        module: nn.Module | Mapping[str, nn.Module],
        example_inputs: Any = None,
        *,
        mode: str | Mode | Mapping[str, Any] = "structured",
        subspace: str | None = None,
        line: Line | Mapping[str, Any] = Line(),  # noqa: B008
        norm: str = "keep",
        seed: int = 0,
    ) -> None:
        super().__init__()
        parsed, modules = parse_mode(mode), dict(module) if isinstance(module, Mapping) else {"": module}
        options = parse_options(Line, line, "line")
        if subspace is not None:
            check_subspace(subspace)
        if not modules:
            raise ValueError("module is empty: give at least one network")
        self._replaced_norms = convert_norms(modules.values(), norm, parsed.runs_as_graph)
        chosen = endpoints.chosen_subspace(subspace, parsed.default_subspace, modules.values(), options)
        parts = build_parts(modules, parsed)
        if chosen == "line":
            lines = endpoints.attach(list(modules.values()), options, seed)
            for part, endpoint_0 in zip(parts, lines, strict=True):
                part.endpoints = endpoint_0
        self._set_up(parts, parsed, chosen, options, norm)
        self.seed = seed
        if example_inputs is not None:
            args = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
            parsed.execution(self._only_part("example_inputs"), Level(parsed, 0.0), args, {})

    def _set_up(self, parts: list[Part], mode: Mode, subspace: str, line: Line, norm: str) -> None:
        networks = [part.network.module for part in parts]
        self.module = networks[0] if len(networks) == 1 else nn.ModuleList(networks)
        self.parts = parts
        self.mode = mode
        self.subspace = subspace
        self.line = line
        self.norm = norm
        self.trained = False  # whether the subspace was trained or loaded
        self.levels: tuple[NamedLevel, ...] = ()
        self.class_names: tuple[str, ...] = ()
        self.runner = LevelRunner(parts, mode)
        self.runtime: Runtime | None = None

    # -- levels -----------------------------------------------------------------------------------------------------

    @property
    def alpha(self) -> float:
        """The level asked for, in [0, 1]."""
        return self.runner.alpha

    def set_alpha(self, alpha: float) -> None:
        """Choose the level at which the network runs from now on.

        A structured model from a file has the level's tensors ready when this returns, and other threads may run it
        meanwhile: each forward sees one level, whole.

        Args:
            alpha: The level, in [0, 1]; 1 is the full network.

        Raises:
            ValueError: ``alpha`` is outside [0, 1] or NaN; the level stays what it was.

        Example:
            >>> import torch
            >>> from lightning_lcs import SubspaceModel
            >>> network = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
            >>> model = SubspaceModel(network, torch.randn(2, 4)).eval()
            >>> model.set_alpha(0.5)
            >>> model.alpha
            0.5
        """
        self.runner.set_alpha(alpha)

    @contextlib.contextmanager
    def at_alpha(self, alpha: float) -> Iterator[SubspaceModel]:
        """Run at ``alpha`` inside the block; the level before comes back on any exit.

        Args:
            alpha: The level, in [0, 1]; 1 is the full network.

        Yields:
            The model.

        Raises:
            ValueError: ``alpha`` is outside [0, 1] or NaN; the level stays what it was.

        Example:
            >>> import torch
            >>> from lightning_lcs import SubspaceModel
            >>> network = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
            >>> model = SubspaceModel(network, torch.randn(2, 4)).eval()
            >>> with model.at_alpha(0.0):
            ...     outputs = model(torch.randn(3, 4))
            >>> outputs.shape, model.alpha
            (torch.Size([3, 2]), 1.0)
        """
        before = self.alpha
        self.set_alpha(alpha)
        try:
            yield self
        finally:
            self.set_alpha(before)

    def set_level(self, name: str) -> NamedLevel:
        """Choose a level of the level table.

        Args:
            name: The name of the level, as in ``levels``, such as "small".

        Returns:
            The level, with its costs and what was measured there.

        Raises:
            ValueError: There is no such level; the one set stays.

        Example:
            >>> import torch
            >>> from lightning_lcs import SubspaceModel
            >>> network = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
            >>> model = SubspaceModel(network, torch.randn(2, 4)).eval()
            >>> model.save("model.lcs", levels=[0.0, 1.0])
            >>> loaded = SubspaceModel.load("model.lcs")
            >>> loaded.set_level("small").macs
            12
        """
        level = named_level(self.levels, name)
        self.set_alpha(level.alpha)
        return level

    def fit_budget(
        self,
        *,
        macs: float | None = None,
        latency_ms: float | None = None,
        size_bytes: float | None = None,
        accuracy: float | None = None,
        metric: str | None = None,
    ) -> NamedLevel:
        """Choose the level of the level table that fits a budget.

        Of the levels within all limits it is the largest; with ``accuracy`` alone the smallest that reaches it.

        Args:
            macs: The most multiply-accumulates of one sample.
            latency_ms: The longest time of one sample, in milliseconds, as it was measured for the table. On another
                machine, or with other threads, measure it again (``lightning-lcs bench``).
            size_bytes: The most bytes of parameters and buffers.
            accuracy: The least value of the metric.
            metric: The metric of the table. The default is the only one that has "acc" in its name.

        Returns:
            The level that was set.

        Raises:
            ValueError: No level fits (the nearest is named), or a limit is not known or not finite; the level set
                stays.

        Example:
            >>> import torch
            >>> from lightning_lcs import SubspaceModel
            >>> network = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
            >>> model = SubspaceModel(network, torch.randn(2, 4)).eval()
            >>> model.save("model.lcs", levels=[0.0, 0.5, 1.0])
            >>> loaded = SubspaceModel.load("model.lcs")
            >>> loaded.fit_budget(macs=30).name
            'medium'
        """
        level = level_for_budget(
            self.levels, macs=macs, latency_ms=latency_ms, size_bytes=size_bytes, accuracy=accuracy, metric=metric
        )
        self.set_alpha(level.alpha)
        return level

    def nearest_level(self, alpha: float) -> float:
        """The level that runs when ``alpha`` is asked for.

        With stored batch-norm statistics it is the nearest stored one (or 1, whose statistics are the network's own);
        without any it is ``alpha`` itself. In quantized mode it is that of a bit width.

        Args:
            alpha: The level asked for, in [0, 1].

        Raises:
            ValueError: ``alpha`` is outside [0, 1] or NaN.
        """
        return self.runner.nearest_level(alpha)

    @property
    def statistics(self) -> Mapping[float, Mapping[str, Tensor]]:
        """The stored batch-norm statistics, by level and qualified name: a copy.

        Assign a mapping to replace them; it counts as collected at the present weights.
        """
        return self.runner.statistics

    @statistics.setter
    def statistics(self, levels: Mapping[float, Mapping[str, Tensor]]) -> None:
        self.runner.statistics = levels

    # -- running ----------------------------------------------------------------------------------------------------

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The network's own results for its own arguments, at the level set.

        Args:
            args: The arguments of the network.
            kwargs: The keyword arguments of the network.

        Raises:
            RuntimeError: The subspace has several networks, which are called separately.
        """
        part = self._only_part("forward()")
        return self.runner.run(part, part.network.module, args, kwargs)

    def recalibrate(
        self,
        batches: Iterable[Any],
        alphas: int | Sequence[float] = DEFAULT_LEVELS,
        forward: Callable[[Any], Any] | None = None,
    ) -> None:
        """Collect batch-norm statistics for a grid of levels, and keep them.

        Each is a cumulative average over the batches (no momentum), at the level's own width. Levels in between are
        served by the nearest stored one. alpha = 1 is left alone: its statistics are the network's own running ones.
        Weights, running statistics and training flags stay as they are. In a distributed run the ranks' averages are
        averaged. Without batch norm nothing happens.

        Args:
            batches: Batches of *training* data. Every batch runs once per level.
            alphas: The levels: their number, at least 2, evenly spaced over [0, 1], or the levels themselves. The
                default is 25.
            forward: What to do with a batch, such that the network runs. The default is to call the model with it.

        Raises:
            RuntimeError: The model came out of a structured file, whose batch norms can't be trained.
            ValueError: No batch was given, or a level is outside [0, 1].

        Example:
            >>> import torch
            >>> from lightning_lcs import SubspaceModel
            >>> network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8))
            >>> model = SubspaceModel(network, torch.randn(2, 3, 8, 8), subspace="point")
            >>> model.recalibrate([torch.randn(16, 3, 8, 8)], alphas=[0.0, 0.5])
            >>> list(model.statistics)
            [0.0, 0.5]
        """
        if self.runtime is not None and self.runtime.has_statistics:
            raise RuntimeError(
                "the network of a file runs in evaluation only, so that its batch norms can't be recalibrated: "
                "recalibrate the model that it was saved from (SubspaceModel.from_checkpoint opens one), and save that"
            )
        self.runner.recalibrate(batches, alphas, self if forward is None else forward)

    # -- what a level is --------------------------------------------------------------------------------------------

    @property
    def plan(self) -> ChannelPlan:
        """Which channels shrink together in structured mode; known once the network has been traced.

        Raises:
            RuntimeError: The mode keeps all channels, or the network was never called.
        """
        part = self._only_part("plan")
        if not self.mode.runs_as_graph:
            raise RuntimeError(f"a channel plan needs structured mode, and this mode keeps all channels: {self.mode}")
        part.network.in_mode(False)
        return part.plan

    def report(self, alpha: float = 0.0) -> str:
        """What is compressed at a level, what stays whole and why, and which norms were replaced, a line each.

        Args:
            alpha: The level, in [0, 1]. The default is 0, the most compressed level.

        Raises:
            RuntimeError: The mode traces the network, which was never called, and had no ``example_inputs``.

        Example:
            >>> import torch
            >>> from lightning_lcs import SubspaceModel
            >>> network = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
            >>> model = SubspaceModel(network, torch.randn(2, 4)).eval()
            >>> print(model.report())
            3 of 4 parameters and buffers are sliced; at width 0.25 they hold 16 of 58 numbers (27.6%)
              belong to inputs or outputs, or are single numbers: 2.bias
        """
        lines: list[str] = []
        for part in self.parts:
            first, *more = self.mode.report(part, alpha)
            lines += [f"{part.name}: {first}" if len(self.parts) > 1 else first, *more]
        return "\n".join([*lines, *[f"  norm replaced: {line}" for line in self._replaced_norms]])

    def describe(self) -> dict[str, Any]:
        """The subspace as plain data: its settings, what it compresses, its endpoints, its batch-norm statistics."""
        return describe(self.state(), self.parts, self._replaced_norms)

    def efficiency(self, alpha: float) -> Efficiency:
        """What a level costs; with stored batch-norm statistics, the level that is nearest to ``alpha``.

        The multiply-accumulates of several networks are those of one sample of the module that they are parts of, once
        a curve was measured: a head that runs on a hundred regions of each image counts a hundred times.

        Args:
            alpha: The level, in [0, 1].

        Returns:
            The number of parameters, the multiply-accumulates of one sample, and the size in bytes.

        Raises:
            RuntimeError: The network was never called, and had no ``example_inputs``.
            ValueError: ``alpha`` is outside [0, 1] or NaN.

        Example:
            >>> import torch
            >>> from lightning_lcs import SubspaceModel
            >>> network = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
            >>> model = SubspaceModel(network, torch.randn(2, 4)).eval()
            >>> cost = model.efficiency(0.0)
            >>> cost.width, cost.params, cost.macs, cost.size_bytes
            (0.25, 16, 12, 64)
        """
        level = self.runner.level(alpha)
        costs = [self.mode.cost(part, level) for part in self.parts]
        counts = {name: sum(getattr(cost, name) for cost in costs) for name in ("params", "size_bytes")}
        counts["macs"] = round(sum(part.rows * cost.macs for part, cost in zip(self.parts, costs, strict=True)))
        return Efficiency.on_axis(self.mode.axis.name, level.value, alpha=level.alpha, **counts)

    def materialize(self, alpha: float, train: bool = False) -> nn.Module:
        """A plain network of one level, with its own parameters and buffers.

        Args:
            alpha: The level, in [0, 1].
            train: Whether it is for training instead of evaluation. In structured mode the other of ``.train()`` and
                ``.eval()`` is an error afterwards. The default is ``False``.

        Returns:
            A network whose ``state_dict`` has the network's own names: in structured mode an ``fx.GraphModule`` with
            small tensors, else a copy of the network; for several networks a ``ModuleDict`` of them. In a copy, the
            compressed weights of layers with weight norm, spectral norm or other parametrizations are plain parameters.

        Raises:
            RuntimeError: The mode traces the network, which was never called, and had no ``example_inputs``.
            ValueError: ``alpha`` is outside [0, 1] or NaN.

        Example:
            >>> import torch
            >>> from lightning_lcs import SubspaceModel
            >>> network = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
            >>> model = SubspaceModel(network, torch.randn(2, 4)).eval()
            >>> small = model.materialize(0.0)
            >>> {name: tuple(value.shape) for name, value in small.state_dict().items()}
            {'0.weight': (2, 4), '0.bias': (2,), '2.weight': (2, 2), '2.bias': (2,)}
        """
        level = self.runner.level(alpha)
        networks: dict[str, nn.Module] = {}
        for part in self.parts:
            execution = self.mode.example_execution(part, level, train)
            statistics = {} if level.is_full else self.runner.evaluation.statistics_of(part, execution, level)
            networks[part.name] = materialized_part(part, execution, level, statistics, train)
        if len(self.parts) == 1:
            return networks[self.parts[0].name]
        return nn.ModuleDict({name.replace(".", "_"): module for name, module in networks.items()})

    # -- the line ---------------------------------------------------------------------------------------------------

    def endpoint_pairs(self) -> list[tuple[nn.Parameter, nn.Parameter]]:
        """``(w0, w1)`` of every parameter on the line, each once."""
        return endpoint_pairs(self.parts)

    def endpoint_cosine(self) -> Tensor:
        """The cosine between the endpoints; see :func:`lightning_lcs.subspace.part.cosine_between`."""
        return cosine_between(self.endpoint_pairs())

    def start_endpoints(self) -> None:
        """Set endpoint 0 from the present weights before training, unless it was trained or loaded."""
        for part in self.parts:
            if not endpoints.is_trained(part.network.module):
                endpoints.restart(part.network.module, part.endpoints, self.line.start, self.seed)
                endpoints.mark_trained(part.network.module)
        self.trained = True

    def sort_channels(self) -> None:
        """Sort the channels of every group, the strongest first; see ``Structured(order="importance")``.

        It is not for a trained subspace, whose narrow widths would change.

        Raises:
            RuntimeError: The mode keeps all channels, or the network was never called.
        """
        for part in self.parts:
            self.mode.sort_channels(part)
        self.statistics = {}
        self.runner.forget()

    # -- checkpoints and files --------------------------------------------------------------------------------------

    def state(self) -> SubspaceState:
        """What a checkpoint and a file hold of the subspace, apart from the weights of the networks."""
        return SubspaceState(
            mode=self.mode,
            subspace=self.subspace,
            line_parameters=self.line.parameters,
            norm=self.norm,
            targets=[part.name for part in self.parts],
            shapes=parameter_shapes(self.parts),
            endpoint_0={part.prefix + name: w0 for part in self.parts for name, w0 in part.endpoints.items()},
            statistics=self.runner.statistics,
            ranges=self.runner.ranges,
            inputs=[part.network.example for part in self.parts],
            statistics_weights=self.runner.statistics_weights,
            rows=[part.rows for part in self.parts],
            frozen=[part.prefix + name for part in self.parts for name in part.all_frozen()],
        )

    def subspace_state(self) -> dict[str, Any]:
        """What a checkpoint needs beside the network's own ``state_dict``: plain data and tensors."""
        return checkpoints.to_data(self.state())

    def load_subspace_state(self, data: Mapping[str, Any]) -> None:
        """Take over what :meth:`subspace_state` gave.

        Once the weights are loaded, too, ``runner.settle_statistics()`` drops statistics of other weights.

        Raises:
            ValueError: It is of another mode, subspace, architecture or version; nothing has been changed then.
        """
        state = checkpoints.from_data(data)
        state.check(self.state())
        self._take(state)

    def _take(self, state: SubspaceState) -> None:
        state.apply(self.parts)
        self.runner.ranges = state.ranges
        self.runner.set_statistics(state.statistics, state.statistics_weights)
        self.trained = True

    @classmethod
    def _from_state(
        cls,
        state: SubspaceState,
        networks: nn.Module | Mapping[str, nn.Module],
        module: nn.Module,
        weights: Mapping[str, Tensor],
        strict: bool = True,
    ) -> SubspaceModel:
        """Build a model of networks inside a module, and replace the weights of the module: all of them if strict."""
        trained = endpoints.is_trained(module)
        line = Line(parameters=state.line_parameters)
        model = cls(networks, mode=state.mode, subspace=state.subspace, line=line, norm=state.norm)
        try:
            state.check(model.state())
        except ValueError:
            if not trained:
                endpoints.detach(module)
            raise
        module.load_state_dict(weights, strict=strict)
        model._take(state)
        model.runner.settle_statistics()
        return model.eval()

    @classmethod
    def from_checkpoint(
        cls, checkpoint: str | os.PathLike[str], module: nn.Module, *, weights_only: bool = True
    ) -> SubspaceModel:
        """Open a Lightning checkpoint, in any process.

        Args:
            checkpoint: The path of the file.
            module: The LightningModule that was trained, or its network; its weights are replaced. Weights that a
                module with ``strict_loading = False`` leaves out of its checkpoints stay as they are.
            weights_only: Whether to read tensors and plain data alone. Objects of other types in the file, such as
                paths and functions among the hyperparameters, are then left out, since reading them may run code. Give
                false only for a file that you trust. The default is true.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The file holds no subspace, or one of another architecture or version, or it can't be read
                without its objects of other types.

        Example:
            >>> import lightning as L
            >>> import torch
            >>> from lightning_lcs import CompressibleSubspaceWrapper, SubspaceModel
            >>> def module():
            ...     network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 4), torch.nn.Linear(4, 2))
            ...     return CompressibleSubspaceWrapper(network, num_classes=2)
            >>> quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
            >>> trainer = L.Trainer(accelerator="cpu", **quiet)
            >>> trainer.strategy.connect(module())
            >>> trainer.save_checkpoint("last.ckpt")
            >>> SubspaceModel.from_checkpoint("last.ckpt", module()).mode
            Structured(min_width=0.25)
        """
        state, weights = checkpoints.read(checkpoint, weights_only)
        strict = getattr(module, "strict_loading", True)  # of a LightningModule
        networks, weights = state.networks_in(module, weights, strict)
        model = cls._from_state(state, networks, module, weights, strict)
        if not state.statistics and model.runner.needs_data(model.runner.grid(DEFAULT_LEVELS)):
            until = "levels run on those of alpha = 1, with a loss of accuracy"
            if model.mode.observes_inputs:
                until += ", and not at all where training has not observed the inputs of layers"
            warn(NO_STATISTICS.format(path=os.fspath(checkpoint), until=until))
            model.runner.evaluation.warns = False  # it has been said
        return model

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        levels: GivenLevels | None = None,
        class_names: Sequence[str] | None = None,
    ) -> None:
        """Write one file that holds every level, and a table of levels by name.

        A structured file holds the network itself, as a graph; the others hold tensors, and are loaded into the user's
        own network. The file holds tensors and JSON, no code and no pickle. It is written whole or not at all.

        Args:
            path: The path of the file, such as "model.lcs".
            levels: The levels of the table: a measured curve (``LCSCallback.curve``, or the path of its ``curve.csv``),
                which brings its metrics and latencies, or alphas; or either of them by name. The default is the model's
                own table, else the alphas 0, 0.25, 0.5, 0.75 and 1 (every bit width in quantized mode). Names by
                default: :func:`lightning_lcs.subspace.curves.level_table.default_names`.
            class_names: The names of the classes, by their number. The default is the model's own.

        Raises:
            RuntimeError: The network was never called, and had no ``example_inputs``.
            ValueError: The network holds an op that a file may not hold, the curve is of another model or other
                weights, or the batch-norm statistics are of other weights.
            OSError: The file could not be written; the old one is as it was.

        Example:
            >>> import torch
            >>> from lightning_lcs import SubspaceModel
            >>> network = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
            >>> model = SubspaceModel(network, torch.randn(2, 4)).eval()
            >>> model.save("model.lcs", levels={"phone": 0.0, "server": 1.0}, class_names=["cat", "dog"])
            >>> loaded = SubspaceModel.load("model.lcs")
            >>> [level.name for level in loaded.levels], loaded.class_names
            (['phone', 'server'], ('cat', 'dog'))
        """
        given = (self.levels or None) if levels is None else levels
        table = make_table(given, self.mode, self.efficiency)
        self.check_weights_of(table)
        names = self.class_names if class_names is None else class_names
        lcs_file.save(path, self.state(), self.parts, table, names)

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], module: nn.Module | None = None, *, layout: str = "auto"
    ) -> SubspaceModel:
        """Open a file written by :meth:`save`, for inference.

        Args:
            path: The path of the file, which is mapped into memory and validated against its checksums.
            module: The network that it was trained from, for unstructured and quantized subspaces; its weights are
                replaced. A structured file holds its network.
            layout: The order in memory of the weights of a structured file's 2-D convolutions: "contiguous",
                "channels_last", or "auto": the faster one on this machine, as measured with a few forwards of the full
                network (contiguous below ten million MACs). Results differ by rounding. The default is "auto".

        Raises:
            ValueError: The file is of another kind, version or architecture, it is damaged, it holds an op that is not
                allowed, ``module`` is missing, or ``layout`` is not known.

        Example:
            >>> import torch
            >>> from lightning_lcs import SubspaceModel
            >>> network = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
            >>> model = SubspaceModel(network, torch.randn(2, 4)).eval()
            >>> model.save("model.lcs", levels=[0.0, 1.0])
            >>> loaded, inputs = SubspaceModel.load("model.lcs"), torch.randn(3, 4)
            >>> torch.allclose(loaded(inputs), model(inputs), atol=1e-6)
            True
        """
        check_layout(layout)
        saved = lcs_file.read(path)
        with lcs_file.errors_of(path):
            if saved.part is not None:
                if module is not None:
                    raise ValueError("the file holds its network: leave module= out")
                model = cls._of_part(saved.state, saved.part)
                lay_out(
                    saved.part, model.runner.level(1.0), layout, max((level.macs for level in saved.levels), default=0)
                )
            elif module is None:
                name = name_of(saved.state.mode)
                raise ValueError(
                    f"it is {name}: the file holds the tensors of the network without its code, so give "
                    "SubspaceModel.load(path, module=...) the network that it was trained from"
                )
            else:
                lcs_file.check_weights(saved, module)
                model = cls._from_state(saved.state, module, module, saved.weights)
            # Statistics and metrics of the file are those of its weights, as long as these do not change.
            weights = model.runner.statistics_weights or model.runner.fingerprint()
            model.levels = tuple(dataclasses.replace(level, weights=weights) for level in saved.levels)
            model.class_names = saved.class_names
            return model

    @classmethod
    def _of_part(cls, state: SubspaceState, part: Part) -> SubspaceModel:
        """Build a model of a network from a file."""
        model = cls.__new__(cls)
        nn.Module.__init__(model)
        model._replaced_norms, model.seed = [], 0
        model._set_up([part], state.mode, state.subspace, Line(parameters=state.line_parameters), state.norm)
        model.statistics, model.trained, model.training = state.statistics, True, False
        model.runtime = model.runner.server = Runtime(part, model.runner.evaluation)
        return model

    def check_weights_of(self, levels: Sequence[NamedLevel]) -> None:
        """Check that the batch-norm statistics, and the metrics of levels, are those of the present weights.

        Args:
            levels: The levels that are to be saved with these weights.

        Raises:
            ValueError: Some of them belong to other weights.
        """
        weights = self.runner.fingerprint()
        self.runner.check_statistics(weights)
        check_measured_at(levels, weights)

    def set_example_inputs(self, *args: Any, **kwargs: Any) -> None:
        """Choose the call that ``save``, ``materialize`` and the exports are for.

        The default is the first call that there was.

        A network that computes its loss itself, when it is given labels, is trained with them and deployed without.

        Args:
            args: The arguments of the call; their values don't matter, but those of numbers and flags do.
            kwargs: The same by name.

        Raises:
            RuntimeError: The subspace has several networks.
            TraceError: In structured mode, the network can't be traced for this call.
            ValueError: The model came out of a file, which is for other calls.
        """
        network = self._only_part("set_example_inputs").network
        if self.mode.runs_as_graph:
            with training_flags(network.module, False):
                network.program(*sample(args, kwargs))
        network.example = None
        network.remember(args, kwargs)

    def _only_part(self, what: str) -> Part:
        if len(self.parts) > 1:
            names = ", ".join(repr(part.name) for part in self.parts)
            raise RuntimeError(
                f"{what} needs a single network, and this subspace model has several: {names}; {TOGETHER}"
            )
        return self.parts[0]
