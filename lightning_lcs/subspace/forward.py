"""The two ways to run a network with other tensors than its own: as its traced graph, or by its own forward."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from lightning_lcs.graph.channels.plan import PlanAtWidth, Selection
from lightning_lcs.graph.program import Program
from lightning_lcs.graph.traced_network import TracedNetwork
from lightning_lcs.subspace.features import Feature, Features
from lightning_lcs.subspace.weights.computed import ComputedWeight, Place

Inputs = Callable[[str, Tensor], Tensor]
"""Takes the path of a layer and its input, and returns the input that the layer gets."""


class TrainingInputs(Protocol):
    """Changes the inputs of layers at one level of a training step."""

    def __call__(self, path: str, x: Tensor) -> Tensor:
        """The input that a layer gets."""

    def repeated(self) -> Inputs:
        """The same where a forward is repeated in its backward, as gradient checkpointing does."""

    def finish(self) -> None:
        """Called when the level is over."""


_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


class Execution(Protocol):
    """A forward that takes its parameters and buffers as arguments."""

    @property
    def names(self) -> tuple[str, ...]:
        """The qualified names of the tensors that it takes, in order."""

    @property
    def batch_statistics(self) -> frozenset[str]:
        """The running statistics that this forward only updates; ``None`` may be given for them."""

    @property
    def updated(self) -> frozenset[str]:
        """The other buffers that it changes in place, of which it needs copies."""

    @property
    def statistics(self) -> Mapping[str, tuple[str, float]]:
        """The running variance and the momentum of every batch norm, by the name of its running mean."""

    def cut(self, name: str) -> Selection:
        """The indices of a tensor that are kept."""

    def shape(self, name: str) -> Sequence[int]:
        """The shape of a tensor that it takes."""

    def run(
        self,
        tensors: Sequence[Tensor | None],
        full: Callable[..., Any],
        args: Any,
        kwargs: Any,
        inputs: Inputs | None = None,
    ) -> Any:
        """Run with these tensors; ``full`` is the network's own forward, ``inputs`` changes the inputs of layers."""

    def in_place(
        self, tensors: Sequence[Tensor | None], inputs: Inputs | None = None
    ) -> contextlib.AbstractContextManager[Any]:
        """Inside the block, what runs of the network's own code runs as in :meth:`run`."""


class Traced:
    """The traced graph at one width, with cut tensors.

    Args:
        program: The traced graph.
        at: The plan at the width.
        features: Gets what some modules return, if given.
    """

    def __init__(self, program: Program, at: PlanAtWidth, features: Features | None = None) -> None:
        self.program = program
        self.at = at
        self._features = features
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
        sizes = [self.at.size(dim) for dim in self.program.sizes]
        if self._features is None:
            return self.program.run(tensors, sizes, args, kwargs)
        paths = self._features.paths
        result, values = self.program.run_watched(paths, tensors, sizes, args, kwargs)
        resolve = self.at.plan.structure.resolve
        for path, dims, value in zip(paths, self.program.watched_dims(paths), values, strict=True):
            self._features.found[path] = Feature(value, tuple([self.at.kept(resolve(dim)) for dim in dims]))
        return result

    def in_place(
        self, tensors: Sequence[Tensor | None], inputs: Inputs | None = None
    ) -> contextlib.AbstractContextManager[Any]:
        """See :class:`Execution`; a trace runs none of the network's own code."""
        return contextlib.nullcontext()


class Replaced:
    """The network's own forward with other tensors in the place of its parameters and buffers.

    It works for any ``nn.Module``, traceable or not, but not while another thread runs the same network.

    Args:
        network: The network.
        parameters: The qualified names of the parameters that are replaced.
        layers: The paths of the layers whose inputs may be changed.
        computed: Those of the parameters that their layers compute from others.
    """

    def __init__(
        self,
        network: TracedNetwork,
        parameters: Sequence[str],
        layers: Sequence[str],
        computed: Mapping[str, ComputedWeight],
    ) -> None:
        self.network = network
        self._computed = computed
        self._layers = layers_at(network.module, layers)
        self._norms = [
            (f"{path}." if path else "", child)
            for path, child in network.module.named_modules()
            if isinstance(child, nn.modules.batchnorm._BatchNorm) and child.track_running_stats
        ]
        buffers = [prefix + leaf for prefix, _ in self._norms for leaf in _STATISTICS]
        self.names = (*parameters, *buffers)
        self.updated: frozenset[str] = frozenset()

    @property
    def statistics(self) -> dict[str, tuple[str, float]]:
        """See :class:`Execution`; a training may change the momentum of its norms, as weight averaging does."""
        return {
            f"{prefix}running_mean": (f"{prefix}running_var", 1.0 if child.momentum is None else float(child.momentum))
            for prefix, child in self._norms
        }

    @property
    def batch_statistics(self) -> frozenset[str]:
        """See :class:`Execution`."""
        return frozenset(prefix + leaf for prefix, child in self._norms if child.training for leaf in _STATISTICS)

    def cut(self, name: str) -> Selection:
        """See :class:`Execution`; nothing is cut."""
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
        with self.in_place(tensors, inputs):
            return full(*args, **kwargs)

    @contextlib.contextmanager
    def in_place(self, tensors: Sequence[Tensor | None], inputs: Inputs | None = None) -> Iterator[None]:
        """See :class:`Execution`."""
        handles = [] if inputs is None else hook_inputs(self._layers, inputs)
        try:
            with placed(self._places(tensors)):
                yield
        finally:
            for handle in handles:
                handle.remove()

    def _places(self, tensors: Sequence[Tensor | None]) -> Iterator[Place]:
        for name, tensor in zip(self.names, tensors, strict=True):
            if name in self._computed:
                yield from self._computed[name].places(tensor)
            else:
                yield *self.network.holder(name), tensor


@contextlib.contextmanager
def placed(places: Iterable[Place]) -> Iterator[None]:
    """Inside the block, dictionaries of modules hold other values."""
    before: list[Place] = []
    try:
        for holder, key, value in places:
            before.append((holder, key, holder[key]))
            holder[key] = value
        yield
    finally:
        for holder, key, value in before:
            holder[key] = value


def layers_at(module: nn.Module, paths: Sequence[str]) -> dict[str, nn.Module]:
    """The layers of a network by their paths."""
    return {path: module.get_submodule(path) for path in paths}


def hook_inputs(layers: Mapping[str, nn.Module], inputs: Inputs) -> list[Any]:
    """Change the inputs of layers; removing the handles undoes it."""
    return [
        layer.register_forward_pre_hook(ChangedInput(inputs, path), with_kwargs=True) for path, layer in layers.items()
    ]


class ChangedInput:
    """A forward pre-hook that changes the input of a layer; it is a plain object, so that it can be copied."""

    def __init__(self, inputs: Inputs, path: str) -> None:
        self.inputs = inputs
        self.path = path

    def __call__(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """The arguments of the layer, with the input changed: the first one, or the one with the name "input"."""
        if args:
            return (self.inputs(self.path, args[0]), *args[1:]), kwargs
        return args, {**kwargs, "input": self.inputs(self.path, kwargs["input"])}
