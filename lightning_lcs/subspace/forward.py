"""The two ways in which a network runs with other tensors than its own: as its traced graph, or as itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from lightning_lcs.graph.channels.plan import PlanAtWidth, Selection
from lightning_lcs.graph.network import TracedNetwork
from lightning_lcs.graph.program import Program
from lightning_lcs.subspace.modes.observers import Inputs, QuantizedInput

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


class Execution(Protocol):
    """A forward that takes its parameters and buffers as arguments."""

    @property
    def names(self) -> tuple[str, ...]:
        """Qualified names of the tensors that it takes, in order."""

    @property
    def batch_statistics(self) -> frozenset[str]:
        """Running statistics that this forward only updates: ``None`` may stand for them."""

    @property
    def updated(self) -> frozenset[str]:
        """Other buffers that it changes in place: they need a copy."""

    @property
    def statistics(self) -> Mapping[str, tuple[str, float]]:
        """Running mean -> (running variance, momentum), of every batch norm."""

    def cut(self, name: str) -> Selection:
        """What is kept of a tensor."""

    def shape(self, name: str) -> Sequence[int]:
        """The shape in which a tensor is taken."""

    def run(
        self,
        tensors: Sequence[Tensor | None],
        full: Callable[..., Any],
        args: Any,
        kwargs: Any,
        inputs: Inputs | None = None,
    ) -> Any:
        """The result with these tensors; ``full`` is the network's own forward, ``inputs`` changes layers' inputs."""


class Traced:
    """The traced graph at one width: tensors are cut."""

    def __init__(self, program: Program, at: PlanAtWidth) -> None:
        self.program = program
        self.at = at
        self.names = program.names
        self.batch_statistics = program.batch_statistics
        self.updated = program.updated
        self.statistics = program.statistics
        self.cut = at.of
        self.shape = at.shape

    def run(
        self,
        tensors: Sequence[Tensor | None],
        full: Callable[..., Any],
        args: Any,
        kwargs: Any,
        inputs: Inputs | None = None,
    ) -> Any:
        """See :class:`Execution`."""
        return self.program.run(tensors, [self.at.size(dim) for dim in self.program.sizes], args, kwargs)


class Replaced:
    """The network's own forward, for which tensors are put in the place of its parameters and buffers.

    Any ``nn.Module`` runs so, traceable or not. Not while another thread runs the same network.

    Args:
        network: the network.
        parameters: qualified names of the parameters that are replaced.
        layers: paths of the layers whose inputs may be changed.
    """

    def __init__(self, network: TracedNetwork, parameters: Sequence[str], layers: Sequence[str]) -> None:
        self.network = network
        self._layers = layers_at(network.module, layers)
        self._norms = [
            (f"{path}." if path else "", child)
            for path, child in network.module.named_modules()
            if isinstance(child, nn.modules.batchnorm._BatchNorm) and child.track_running_stats
        ]
        buffers = [prefix + leaf for prefix, _ in self._norms for leaf in _STATISTICS]
        self.names = (*parameters, *buffers)
        self.updated: frozenset[str] = frozenset()
        self.statistics = {
            f"{prefix}running_mean": (f"{prefix}running_var", 1.0 if child.momentum is None else float(child.momentum))
            for prefix, child in self._norms
        }

    @property
    def batch_statistics(self) -> frozenset[str]:
        """See :class:`Execution`."""
        return frozenset(prefix + leaf for prefix, child in self._norms if child.training for leaf in _STATISTICS)

    def cut(self, name: str) -> Selection:
        """See :class:`Execution`: nothing is cut."""
        return ()

    def shape(self, name: str) -> Sequence[int]:
        """See :class:`Execution`."""
        return self.network.tensor(name).shape

    def run(
        self,
        tensors: Sequence[Tensor | None],
        full: Callable[..., Any],
        args: Any,
        kwargs: Any,
        inputs: Inputs | None = None,
    ) -> Any:
        """See :class:`Execution`."""
        before: list[tuple[dict[str, Any], str, Any]] = []
        handles = [] if inputs is None else hook_inputs(self._layers, inputs)
        try:
            for name, tensor in zip(self.names, tensors, strict=True):
                holder, leaf = self.network.holder(name)
                before.append((holder, leaf, holder[leaf]))
                holder[leaf] = tensor
            return full(*args, **kwargs)
        finally:
            for holder, leaf, value in before:
                holder[leaf] = value
            for handle in handles:
                handle.remove()


def layers_at(module: nn.Module, paths: Sequence[str]) -> dict[str, nn.Module]:
    """Layers of a network by their paths."""
    return {path: module.get_submodule(path) for path in paths}


def hook_inputs(layers: Mapping[str, nn.Module], inputs: Inputs) -> list[Any]:
    """Let layers take changed inputs; the handles take this back."""
    return [layer.register_forward_pre_hook(QuantizedInput(inputs, path)) for path, layer in layers.items()]


def attention_weights(module: nn.Module) -> tuple[str, ...]:
    """Qualified names of the input projections that torch's attention keeps as parameters of its own."""
    leaves = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
    return tuple(
        f"{path}.{leaf}" if path else leaf
        for path, child in module.named_modules()
        if isinstance(child, nn.MultiheadAttention)
        for leaf in leaves
        if isinstance(child._parameters.get(leaf), Tensor)
    )


def layer_weights(module: nn.Module, without: Sequence[str] = ()) -> tuple[str, ...]:
    """Qualified names of the weights of convolutions and linear layers.

    Args:
        module: the network.
        without: kinds to leave out, any of "first" (the first convolution), "last" (the last linear layer) and
            "depthwise", by order of registration.
    """
    kinds = (nn.modules.conv._ConvNd, nn.Linear)
    found = [(path, child) for path, child in module.named_modules() if isinstance(child, kinds)]
    convolutions = [child for _, child in found if isinstance(child, nn.modules.conv._ConvNd)]
    linear = [child for _, child in found if isinstance(child, nn.Linear)]
    whole = {
        "first": set(map(id, convolutions[:1])),
        "last": set(map(id, linear[-1:])),
        "depthwise": {id(child) for child in convolutions if child.groups == child.in_channels > 1},
    }
    left_out = set[int]().union(*(whole[kind] for kind in without))
    return tuple(
        f"{path}.weight" if path else "weight"
        for path, child in found
        if id(child) not in left_out and isinstance(child._parameters.get("weight"), Tensor)
    )
