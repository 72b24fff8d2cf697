"""A part: one of the networks of a subspace model."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lightning_lcs.functional.subspace import endpoint_cosine, interpolate
from lightning_lcs.graph.channels.plan import ChannelPlan, Selection, select
from lightning_lcs.graph.traced_network import ENDPOINT_NAME, TracedNetwork
from lightning_lcs.subspace.features import Features
from lightning_lcs.subspace.forward import Replaced, placed
from lightning_lcs.subspace.weights.computed import ComputedWeight, computed_weights, source_names, without_effects
from lightning_lcs.subspace.weights.endpoints import is_norm, user_parameters
from lightning_lcs.subspace.weights.layers import single_input_layers, transposed_groups
from lightning_lcs.subspace.weights.tied import tied_crosswise

Value = TypeVar("Value")
# The reason for which a weight is whole at every level, and for which channels are.
FROZEN = "it requires no gradients and was never trained"
FROZEN_CHANNELS = "channels of a weight that requires no gradients and was never trained"
# Advice for errors of functions that take one network, when a subspace model has several.
TOGETHER = "where the module's own forward calls them all, target='self' makes them one"


@dataclasses.dataclass
class Part:
    """One separately called network of a subspace model.

    Attributes:
        name: The name of the part; may be empty for the only one.
        prefix: The prefix of its qualified tensor names; empty for the only part.
        network: The network and its traces.
        endpoints: Endpoint 0, by the network's own parameter names.
        selected: The names of the weights that the mode compresses once something trains them.
        pinned: The values of the mode's axis that some of these weights have at every level, by name.
        calls: How often the network has run, for the check that a training step calls it.
        running: How many of these calls have not returned yet.
        rows: How many samples of its own the network gets for one sample of the module that it is a part of; 1 unless
            it was counted. See :meth:`LevelRunner.counting_rows`.
        scales: The names of the scales of its norms, for a network from a file, which has no norm layers.
        warned: Whether the warning about tensors that stay whole was issued.
        cache: Results that a mode keeps from one call to the next.
        siblings: All networks of the subspace model; empty if there is only this one.
        features: Gets what modules of the network return in the call that runs; ``None`` where nobody asks.
        untrained: The names of the parameters that no training step has trained so far; ``None`` before the first one.
    """

    name: str
    prefix: str
    network: TracedNetwork
    endpoints: dict[str, nn.Parameter] = dataclasses.field(default_factory=dict)
    selected: tuple[str, ...] = ()
    pinned: Mapping[str, float] = dataclasses.field(default_factory=dict)
    calls: int = 0
    running: int = 0
    rows: float = 1.0
    scales: tuple[str, ...] | None = None
    warned: bool = False
    cache: dict[Any, Any] = dataclasses.field(default_factory=dict)
    siblings: list[Part] = dataclasses.field(default_factory=list, repr=False, compare=False)
    features: Features | None = None
    untrained: frozenset[str] | None = None
    _replaced: tuple[tuple[str, ...], Replaced] | None = None
    _found: dict[str, tuple[tuple[str, ...], Any]] = dataclasses.field(default_factory=dict, repr=False)
    _sources: dict[str, tuple[str, ...]] | None = None
    _weights: list[str] | None = None
    _places: list[tuple[dict[str, Any], str]] = dataclasses.field(default_factory=list, repr=False)
    _frozen: tuple[Any, frozenset[str]] | None = None
    _plan: tuple[ChannelPlan, frozenset[str], ChannelPlan] | None = None

    @contextlib.contextmanager
    def runs(self) -> Iterator[None]:
        """Inside the block, the network counts as running."""
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1

    # -- what nothing trains ----------------------------------------------------------------------------------------

    def frozen(self, names: Iterable[str]) -> frozenset[str]:
        """Those of some parameters that nothing trains, such as the weights of a teacher: levels leave them whole.

        These are the parameters that require no gradients, unless a training step has trained them before. Where no
        parameter of any network requires gradients, the networks are not being trained, and this says nothing.
        """
        every = self._frozen_weights()
        return every.intersection(names) if every else every

    def _frozen_weights(self) -> frozenset[str]:
        """All weights that nothing trains, also those that their layers compute; it is asked for in every forward."""
        if self._weights is None:
            self._weights = self._weight_names()
            stored = dict.fromkeys(source for name in self._weights for source in self._stored(name))
            self._places = [self.network.holder(name) for name in stored if self.network.is_parameter(name)]
        key: Any = self.untrained
        if key is None:
            key = [held[name].requires_grad for held, name in self._places if held.get(name) is not None]
        if self._frozen is None or self._frozen[0] != key:
            self._frozen = (key, frozenset(filter(self._is_untrained, self._weights)))
        found = self._frozen[1]
        if found and self.untrained is None and not any(map(Part._is_trainable, self.siblings or [self])):
            return frozenset()
        return found

    def _is_untrained(self, name: str) -> bool:
        return self._is_frozen(name) if self.untrained is None else self.untrained.issuperset(self._stored(name))

    def _weight_names(self) -> list[str]:
        """The names of all parameters, and of all weights that layers compute from parameters."""
        every = self.network.module.named_parameters(remove_duplicate=False)  # a trace may know another of two names
        names = [name for name, _ in every if ENDPOINT_NAME not in name.split(".")]
        return [*names, *self._weight_sources()]

    def all_frozen(self) -> list[str]:
        """The names of all parameters that nothing trains, in order."""
        frozen = self._frozen_weights()
        return [name for name in self._weight_names() if name in frozen and name not in self._weight_sources()]

    def frozen_modules(self) -> set[str]:
        """The paths of modules that lie inside of a module of which nothing trains any parameter."""
        frozen = set(self.all_frozen())
        names = [name for name, _ in self.user_parameters()] if frozen else []
        holding = {path for name in names for path in _paths_around(name)}
        trained = {path for name in names if name not in frozen for path in _paths_around(name)}
        paths = [path for path, _ in self.network.module.named_modules()]
        return {path for path in paths if path.rpartition(".")[0] in holding - trained}

    def see_training(self) -> None:
        """A training step runs: what requires gradients now is trained from here on, whatever happens to it later."""
        if self.untrained is None:
            self.untrained = frozenset(self.all_frozen())
        elif self.untrained:
            self.untrained = frozenset(filter(self._is_frozen, self.untrained))

    def _is_frozen(self, name: str) -> bool:
        values = [self.network.tensor(stored) for stored in self._stored(name)]
        parameters = [value for value in values if isinstance(value, nn.Parameter)]
        return bool(parameters) and not any(parameter.requires_grad for parameter in parameters)

    def _stored(self, name: str) -> tuple[str, ...]:
        """The parameters and buffers that hold a weight: itself, or what its layer computes it from."""
        return self._weight_sources().get(name, (name,))

    def _weight_sources(self) -> dict[str, tuple[str, ...]]:
        if self._sources is None:
            self._sources = {}
            for source, weight in source_names(computed_weights(self.network.module)).items():
                self._sources[weight] = (*self._sources.get(weight, ()), source)
        return self._sources

    def _is_trainable(self) -> bool:
        return any(parameter.requires_grad for parameter in self.network.module.parameters())

    @property
    def compressed(self) -> tuple[str, ...]:
        """The names of the weights that the mode compresses."""
        frozen = self.frozen(self.selected) if self.selected else ()
        return tuple(name for name in self.selected if name not in frozen) if frozen else self.selected

    @property
    def plan(self) -> ChannelPlan:
        """The channel plan of the network, in which the weights that nothing trains are whole."""
        plan = self.network.plan
        frozen = self.frozen(plan.multiplied)
        if not frozen:
            return plan
        if self._plan is None or self._plan[0] is not plan or self._plan[1] != frozen:
            self._plan = (plan, frozen, plan.with_whole(frozen, FROZEN_CHANNELS))
        return self._plan[2]

    def _of_compressed(self, name: str, find: Callable[[], Value]) -> Value:
        """What was found out of the compressed weights, as long as these are the same."""
        known = self._found.get(name)
        if known is None or known[0] != self.compressed:
            known = self._found[name] = (self.compressed, find())
        found: Value = known[1]
        return found

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of each compressed weight, by name."""

        def find() -> dict[str, tuple[int, ...]]:
            with torch.no_grad():
                return {name: tuple(self.on_line(name, 1.0).shape) for name in self.compressed}

        return self._of_compressed("shapes", find)

    @property
    def transposed(self) -> Mapping[str, int]:
        """The number of groups of each compressed transposed convolution, by the name of its weight."""
        return self._of_compressed("transposed", lambda: transposed_groups(self.network.module, self.compressed))

    @property
    def crosswise(self) -> frozenset[str]:
        """The compressed weights whose output channels are not those of another layer with the same weight."""
        return self._of_compressed("crosswise", lambda: tied_crosswise(self.network.module, self.compressed))

    @property
    def computed(self) -> Mapping[str, ComputedWeight]:
        """The compressed weights that their layers compute from other tensors, by name."""

        def find() -> dict[str, ComputedWeight]:
            found = computed_weights(self.network.module)
            return {name: found[name] for name in self.compressed if name in found}

        return self._of_compressed("computed", find)

    @property
    def sources(self) -> Mapping[str, str]:
        """The tensors that compressed weights are computed from, each with the weight, by name."""
        return self._of_compressed("sources", lambda: source_names(self.computed))

    @property
    def layers(self) -> tuple[str, ...]:
        """The paths of the layers with compressed weights whose inputs a mode may change."""
        return self._of_compressed("layers", lambda: single_input_layers(self.network.module, self.compressed))

    def replaced(self) -> Replaced:
        """The network's own forward, which takes the tensors on the line and the compressed tensors as arguments."""
        compressed = self.compressed
        if self._replaced is None or self._replaced[0] != compressed:
            names = tuple(dict.fromkeys((*self.endpoints, *compressed)))
            self._replaced = (compressed, Replaced(self.network, names, self.layers, self.computed))
        return self._replaced[1]

    # -- tensors ----------------------------------------------------------------------------------------------------

    def stored(self, names: Sequence[str]) -> Sequence[str]:
        """The names of parameters and buffers, with the sources of weights that layers compute in their place."""
        return [*(name for name in names if name not in self.computed), *self.sources] if self.computed else names

    def trained_sources(self, name: str) -> list[nn.Parameter]:
        """The trained parameters, of both ends of the line, that a weight is computed from by its layer."""
        own = [source for source, weight in self.sources.items() if weight == name]
        found = [self.network.tensor(source) for source in own]
        found += [self.endpoints[source] for source in own if source in self.endpoints]
        return [value for value in found if isinstance(value, nn.Parameter) and value.requires_grad]

    def on_line(self, name: str, alpha: float, selection: Selection = (), as_in_forward: bool = False) -> Tensor:
        """A tensor at a position on the line, cut but not yet compressed.

        Args:
            name: The qualified name of a parameter or buffer.
            alpha: The position, in [0, 1]; a tensor that is not on the line has the same value at every position.
            selection: The indices to keep in each dimension. The default, empty, keeps all.
            as_in_forward: Whether a weight that its layer computes is computed as in a forward with the present
                training flags, which may change buffers. The default is to compute it as in evaluation.
        """
        if name in self.computed:
            return select(self._computed(name, alpha, as_in_forward), selection)
        value = select(self.network.tensor(name), selection)
        if name in self.endpoints:
            value = interpolate(select(self.endpoints[name], selection), value, alpha)
        return value

    def _computed(self, name: str, alpha: float, as_in_forward: bool) -> Tensor:
        weight = self.computed[name]
        own = [source for source, of in self.sources.items() if of == name and source in self.endpoints]
        with placed([(*self.network.holder(source), self.on_line(source, alpha)) for source in own]):
            return weight.compute() if as_in_forward else without_effects(weight)

    def scale_names(self) -> tuple[str, ...]:
        """The qualified names of the scales of the network's norms."""
        if self.scales is not None:
            return self.scales
        norms = [(path, child) for path, child in self.network.module.named_modules() if is_norm(child)]
        return tuple(f"{path}.weight" for path, child in norms if child._parameters.get("weight") is not None)

    def user_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The network's own parameters by qualified name, each once, without second endpoints."""
        return user_parameters(self.network.module)

    def level_parameters(self, alpha: float, full: bool) -> Iterator[tuple[str, Tensor]]:
        """The parameters that a level has, by qualified name, each once and not compressed yet.

        Args:
            alpha: The level.
            full: Whether the network runs as it is: weights that layers compute then count as what they are computed
                from.
        """
        sources = {} if full else self.sources
        yield from ((name, value) for name, value in self.user_parameters() if name not in sources)
        yield from ((name, self.on_line(name, alpha)) for name in ({} if full else self.computed))

    def buffer_bytes(self, full: bool) -> int:
        """The bytes of the floating-point buffers of a level; see :meth:`level_parameters`."""
        sources = {} if full else self.sources
        buffers = [value for name, value in self.network.module.named_buffers() if name not in sources]
        return sum(value.numel() * value.element_size() for value in buffers if value.is_floating_point())

    def own(self, tensors: Mapping[str, Value]) -> dict[str, Value]:
        """Select the entries that belong to this network, and name them without its prefix."""
        return {name[len(self.prefix) :]: value for name, value in tensors.items() if name.startswith(self.prefix)}

    @contextlib.contextmanager
    def own_forward(self) -> Iterator[nn.Module]:
        """Inside the block the network has its own forward instead of the one that a callback has put in its place."""
        module = self.network.module
        patched = module.__dict__.pop("forward", None)
        try:
            yield module
        finally:
            if patched is not None:
                module.__dict__["forward"] = patched

    def __getstate__(self) -> dict[str, Any]:
        # The cache may hold tensors on a device that does not exist where the copy is opened.
        return {**self.__dict__, "cache": {}}


def _paths_around(name: str) -> Iterator[str]:
    """The paths of all modules around a parameter, up to the network itself."""
    while name:
        name = name.rpartition(".")[0]
        yield name


def endpoint_pairs(parts: Sequence[Part]) -> list[tuple[nn.Parameter, nn.Parameter]]:
    """``(w0, w1)`` for every parameter on the line, each pair once."""
    pairs = {id(w0): (w0, part.network.tensor(name)) for part in parts for name, w0 in part.endpoints.items()}
    return list(pairs.values())  # type: ignore[arg-type]


def cosine_between(pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """The cosine between the endpoints of a line; see :func:`lightning_lcs.functional.subspace.endpoint_cosine`.

    Scales and shifts count only if nothing else lies on the line, as in arXiv 2110.04252, because all of them start at
    the same constants, whatever the weights are.
    """
    return endpoint_cosine([pair for pair in pairs if pair[0].ndim > 1] or list(pairs))
