"""The networks of a subspace model, and which of their weights a mode compresses."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from lightning_lcs.functional.sparsity import BLOCK
from lightning_lcs.graph.channels.dims import Structure
from lightning_lcs.graph.channels.importance import importances, largest_scales, reorder, sorted_orders
from lightning_lcs.graph.channels.plan import ChannelPlan, PlanAtWidth
from lightning_lcs.graph.network import TracedNetwork, training_flags
from lightning_lcs.graph.tracing.errors import check_kinds
from lightning_lcs.subspace.coverage import issue_pending_warnings, warn_of_kept_whole, warn_of_whole
from lightning_lcs.subspace.endpoints import is_norm
from lightning_lcs.subspace.forward import Execution, Replaced, Traced, attention_weights, layer_weights
from lightning_lcs.subspace.modes.observers import Inputs, LayerBits, Reading
from lightning_lcs.subspace.modes.registry import Mode, Quantized, Structured, Unstructured

# What to do where something takes one network, and a subspace model has several.
TOGETHER = "where the module's own forward calls them all, target='self' makes them one"

MOST_WIDTHS = 64  # of which it is kept what they cut: training may draw any


@dataclasses.dataclass
class Part:
    """One separately called network of a subspace model.

    Attributes:
        name: of the part; may be empty for the only one.
        prefix: what its tensor names start with; empty for the only part.
        network: the network and its traces.
        endpoints: endpoint 0 by the network's own parameter names.
        compressed: names of the weights that lose entries or bits.
        fixed_bits: bits of those among them that have the same at every level.
        calls: how often it has run, for the check that a training step calls it.
        running: how many of these calls have not returned yet.
        scales: names of the norms' scales, of a network that came out of a file and has no norm layers.
        told: whether it has been said what the plan leaves whole; whoever wrote a file was told.
    """

    name: str
    prefix: str
    network: TracedNetwork
    endpoints: dict[str, nn.Parameter] = dataclasses.field(default_factory=dict)
    compressed: tuple[str, ...] = ()
    fixed_bits: dict[str, int] = dataclasses.field(default_factory=dict)
    calls: int = 0
    running: int = 0
    scales: tuple[str, ...] | None = None
    told: bool = False
    _replaced: Replaced | None = None
    _selections: dict[float, PlanAtWidth] = dataclasses.field(default_factory=dict)

    def execution(self, mode: Mode, alpha: float, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Execution:
        """How the network runs at a level, for this call and the current training flags."""
        if isinstance(mode, Structured):
            program = self.network.program(args, kwargs)
            if not self.told:
                self.told = True
                warn_of_kept_whole(self.network.module, self.network.plan)
            issue_pending_warnings(self.network.pending_warnings)
            return Traced(program, self.selection(mode, alpha))
        self.network.remember(args, kwargs)
        return self.replaced()

    def example_execution(self, mode: Mode, alpha: float, training: bool) -> Execution:
        """The same for the call seen first, wholly in training or in evaluation.

        Raises:
            RuntimeError: in structured mode, the network was never called: its input is not known.
        """
        if not isinstance(mode, Structured):
            return self.replaced()
        self.network.in_mode(training)  # raises where it has no such form
        with training_flags(self.network.module, training):
            return self.execution(mode, alpha, *self.network.example_inputs())

    def replaced(self) -> Replaced:
        """The network's own forward, with the tensors of the line and the compressed ones as arguments."""
        if self._replaced is None:
            names = tuple(dict.fromkeys((*self.endpoints, *self.compressed)))
            layers = tuple(map(layer_of, self.compressed))
            self._replaced = Replaced(self.network, names, layers)
        return self._replaced

    def selection(self, mode: Structured, alpha: float) -> PlanAtWidth:
        """What a level keeps of the network as it is now."""
        width = mode.width(alpha)
        if mode.select == "first" or width == 1.0:
            return self._first_channels(width)
        known = {name: self.network.tensor(name) for name in self.scale_names()}
        return self.network.plan.selection(width, largest_scales(self.network.plan, known, width))

    def __getstate__(self) -> dict[str, Any]:
        # What is kept of the widths holds tensors of a device, which whoever opens this may not have.
        return {**self.__dict__, "_selections": {}}

    def _first_channels(self, width: float) -> PlanAtWidth:
        held = self._selections.get(width)
        if held is None or held.plan is not self.network.plan:
            if len(self._selections) >= MOST_WIDTHS:
                del self._selections[next(iter(self._selections))]
            held = self._selections[width] = self.network.plan.selection(width)
        return held

    def scale_names(self) -> tuple[str, ...]:
        """Qualified names of the scales of the network's norms."""
        if self.scales is not None:
            return self.scales
        norms = [(path, child) for path, child in self.network.module.named_modules() if is_norm(child)]
        return tuple(f"{path}.weight" for path, child in norms if child._parameters.get("weight") is not None)

    def sort_channels(self) -> None:
        """Put the channels of every group in the order of their importance."""
        self.network.in_mode(False)
        plan, names = self.network.plan, self.network.plan.tensors
        tensors = {name: [self.network.tensor(name)] for name in names}
        orders = sorted_orders(importances(plan, {name: values[0] for name, values in tensors.items()}))
        for name, endpoint in self.endpoints.items():
            if name in tensors:
                tensors[name].append(endpoint)
        reorder(plan, tensors, orders)

    def inputs(self, mode: Mode, alpha: float, ranges: Mapping[str, Tensor]) -> Inputs | None:
        """What quantizes the inputs of layers at a level, with these ranges."""
        if not isinstance(mode, Quantized):
            return None
        return Reading(ranges, self.prefix, self.layer_bits(mode.bit_width(alpha)))

    def layer_bits(self, bits: int, drawn: Mapping[str, int] | None = None) -> LayerBits:
        """Bits of the layers at a level of so many, of which some drew others; those by qualified path."""
        own = {path[len(self.prefix) :]: b for path, b in (drawn or {}).items() if path.startswith(self.prefix)}
        return LayerBits(bits, own, {layer_of(name): fixed for name, fixed in self.fixed_bits.items()})


def sort_channels(parts: Sequence[Part], mode: Mode) -> None:
    """See :meth:`SubspaceModel.sort_channels`.

    Raises:
        RuntimeError: another mode than structured, or the input of a network is not known.
    """
    if not isinstance(mode, Structured):
        raise RuntimeError(f"sort_channels() is for structured mode: {mode} keeps all channels")
    for part in parts:
        part.sort_channels()


def layer_of(weight: str) -> str:
    """Path of the layer that a weight belongs to."""
    return weight.rpartition(".")[0]


def compressed_weights(module: nn.Module, mode: Mode) -> tuple[tuple[str, ...], dict[str, int]]:
    """Names of the weights of a network that a mode compresses, and the bits of those that it pins.

    Raises:
        ValueError: the mode pins layers that do not exist, or finds no blocks.
    """
    if isinstance(mode, Structured):
        return (), {}
    if isinstance(mode, Unstructured):
        return _sparse_weights(module, mode), {}
    return _quantized_weights(module, mode)


def _sparse_weights(module: nn.Module, mode: Unstructured) -> tuple[str, ...]:
    names = layer_weights(module, mode.dense) + attention_weights(module)
    if mode.scope != "block":
        return names
    fitting = tuple(name for name in names if module.get_parameter(name).shape[1] % BLOCK == 0)
    if not fitting:
        raise ValueError(
            f"scope='block': no convolution or linear layer of {type(module).__name__} has a multiple of {BLOCK} inputs"
        )
    return fitting


def _quantized_weights(module: nn.Module, mode: Quantized) -> tuple[tuple[str, ...], dict[str, int]]:
    every = layer_weights(module)
    inner = layer_weights(module, ("first", "last"))
    fixed = {name: mode.edge_bits for name in every if name not in inner}
    unused = set(mode.layer_bits)
    for name in every:
        fits = [pattern for pattern in mode.layer_bits if fnmatch.fnmatchcase(layer_of(name), pattern)]
        if fits:
            fixed[name] = mode.layer_bits[fits[0]]
            unused.difference_update(fits)
    if unused:
        raise ValueError(
            f"layer_bits names {', '.join(map(repr, sorted(unused)))}, which fits no convolution or linear layer of "
            f"{type(module).__name__}; its layers are {', '.join(map(repr, map(layer_of, every)))}"
        )
    whole = {name for name, bits in fixed.items() if bits == 32}
    compressed = tuple(name for name in every if name not in whole)
    return compressed, {name: bits for name, bits in fixed.items() if name not in whole}


def parts_of(modules: Mapping[str, nn.Module], mode: Mode) -> list[Part]:
    """The networks of a subspace model, by name, and a warning where much of one can't be compressed.

    Raises:
        ValueError: nothing of any network would be compressed.
    """
    parts = []
    for name, module in modules.items():
        weights, fixed_bits = compressed_weights(module, mode)
        if not isinstance(mode, Structured):
            warn_of_whole(module, mode, weights)
        prefix = f"{name}." if len(modules) > 1 else ""
        network = TracedNetwork(module, _empty_plan(module, mode))
        parts.append(Part(name, prefix, network, compressed=weights, fixed_bits=fixed_bits))
    pinned = isinstance(mode, Quantized) and bool(mode.layer_bits)  # whoever pins all layers has asked for it
    unchanged = all(set(part.compressed) <= set(part.fixed_bits) for part in parts)
    if not isinstance(mode, Structured) and unchanged and not pinned:
        networks = ", ".join(type(module).__name__ for module in modules.values())
        raise ValueError(
            f"{networks} has no convolution or linear layer to compress, besides those that the options of {mode} keep"
        )
    return parts


def _empty_plan(module: nn.Module, mode: Mode) -> ChannelPlan:
    """A plan with the options of a mode.

    Raises:
        ValueError: ``keep`` names modules that do not exist, or the network is of a kind that can't be sliced.
    """
    if not isinstance(mode, Structured):
        return ChannelPlan()
    check_kinds(module)
    for pattern in mode.keep:
        if not any(fnmatch.fnmatchcase(path, pattern) for path, _ in module.named_modules()):
            raise ValueError(f"keep={pattern!r} fits the path of no module of {type(module).__name__}")
    return ChannelPlan(Structure(min_channels=mode.min_channels), keep=mode.keep, round_to=mode.round_to)
