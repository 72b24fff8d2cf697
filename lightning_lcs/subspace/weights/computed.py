"""Weights that a layer computes from other tensors: parametrizations of torch, and its older forward pre-hooks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm, SpectralNormLoadStateDictPreHook
from torch.nn.utils.weight_norm import WeightNorm

from lightning_lcs.graph.traced_network import ENDPOINT_NAME, training_flags

Place = tuple[MutableMapping[Any, Any], Any, Any]
"""A dictionary of a module, a key in it, and the value to put there."""


class ComputedWeight(Protocol):
    """A weight that its layer computes in each forward.

    Attributes:
        layer: The layer.
        sources: The names of the parameters and buffers that it is computed from, within the layer.
    """

    @property
    def layer(self) -> nn.Module:
        """The layer."""

    @property
    def sources(self) -> tuple[str, ...]:
        """The names of the parameters and buffers that it is computed from, within the layer."""

    def compute(self) -> Tensor:
        """Compute the weight as a forward does; in training this may change buffers (the vectors of spectral norm)."""

    def places(self, value: Tensor | None) -> list[Place]:
        """What to put where, so that the layer runs with a value instead of computing its weight."""

    def make_plain(self) -> None:
        """Turn the weight into a parameter of the layer, and remove its sources."""


@dataclasses.dataclass(frozen=True)
class Parametrized:
    """A weight with parametrizations (``torch.nn.utils.parametrizations``, ``parametrize``)."""

    layer: nn.Module
    leaf: str
    sources: tuple[str, ...]

    @property
    def _lists(self) -> nn.ModuleDict:
        return self.layer.parametrizations  # type: ignore[return-value]

    def compute(self) -> Tensor:
        """See :class:`ComputedWeight`."""
        value: Tensor = self._lists[self.leaf]()
        return value

    def places(self, value: Tensor | None) -> list[Place]:
        """See :class:`ComputedWeight`."""
        return [(self._lists._modules, self.leaf, _Given(value))]

    def make_plain(self) -> None:
        """See :class:`ComputedWeight`."""
        # Copies of a layer share its class, and torch removes the property from the class.
        own = type(self.layer)
        self.layer.__class__ = type(own.__name__, own.__bases__, dict(own.__dict__))
        with torch.enable_grad():  # else torch makes a buffer of a weight that has several sources
            parametrize.remove_parametrizations(self.layer, self.leaf)
        if not parametrize.is_parametrized(self.layer):
            _remove_load_hooks(self.layer, lambda hook: getattr(hook, "__name__", "") == "_weight_norm_compat_hook")


class _Given(nn.Module):
    """Stands in the place of parametrizations, and returns a value."""

    def __init__(self, value: Tensor | None) -> None:
        super().__init__()
        self._value = (value,)  # in a tuple, so that it is no parameter of this module

    def forward(self) -> Tensor | None:
        """The value."""
        return self._value[0]


@dataclasses.dataclass(frozen=True)
class Hooked:
    """A weight that a forward pre-hook of ``torch.nn.utils`` computes: weight norm, spectral norm or pruning."""

    layer: nn.Module
    leaf: str
    sources: tuple[str, ...]
    key: int

    def compute(self) -> Tensor:
        """See :class:`ComputedWeight`."""
        hook = self.layer._forward_pre_hooks[self.key]
        value: Tensor = _kind_of(hook).compute(hook, self.layer)  # type: ignore[union-attr]
        return value

    def places(self, value: Tensor | None) -> list[Place]:
        """See :class:`ComputedWeight`."""
        return [(self.layer._forward_pre_hooks, self.key, _nothing), (self.layer.__dict__, self.leaf, value)]

    def make_plain(self) -> None:
        """See :class:`ComputedWeight`."""
        _kind_of(self.layer._forward_pre_hooks[self.key]).remove(self.layer, self.leaf)  # type: ignore[union-attr]


def _remove_spectral_norm(layer: nn.Module, leaf: str) -> None:
    remove_spectral_norm(layer, leaf)
    _remove_load_hooks(layer, lambda hook: isinstance(hook, SpectralNormLoadStateDictPreHook) and hook.fn.name == leaf)


def _remove_load_hooks(layer: nn.Module, belongs: Callable[[Any], bool]) -> None:
    """Remove hooks of ``load_state_dict`` that torch (2.14) leaves behind: some ask for tensors that are gone."""
    for key, wrapped in list(layer._load_state_dict_pre_hooks.items()):
        if belongs(getattr(wrapped, "hook", wrapped)):
            del layer._load_state_dict_pre_hooks[key]


@dataclasses.dataclass(frozen=True)
class _Kind:
    """A kind of hook: its class, the attribute with the name of the weight, and the endings of its sources."""

    hook: type
    name: str
    endings: tuple[str, ...]
    compute: Callable[[Any, nn.Module], Tensor]
    remove: Callable[[nn.Module, str], Any]


_KINDS = (
    _Kind(WeightNorm, "name", ("_g", "_v"), lambda hook, layer: hook.compute_weight(layer), remove_weight_norm),
    _Kind(
        SpectralNorm,
        "name",
        ("_orig", "_u", "_v"),
        lambda hook, layer: hook.compute_weight(layer, do_power_iteration=layer.training),
        _remove_spectral_norm,
    ),
    _Kind(
        prune.BasePruningMethod,
        "_tensor_name",
        ("_orig", "_mask"),
        lambda hook, layer: hook.apply_mask(layer),
        prune.remove,
    ),
)


def _kind_of(hook: Any) -> _Kind | None:
    return next((kind for kind in _KINDS if isinstance(hook, kind.hook)), None)


def _nothing(*_: Any) -> None:
    return None


def computed_in(layer: nn.Module) -> dict[str, ComputedWeight]:
    """The tensors that a layer computes in each forward, by their names in the layer."""
    found: dict[str, ComputedWeight] = {}
    if parametrize.is_parametrized(layer):
        for leaf, held in layer.parametrizations.items():  # type: ignore[union-attr, operator]
            names = [name for name, _ in (*held.named_parameters(), *held.named_buffers())]
            own = [f"parametrizations.{leaf}.{name}" for name in names if ENDPOINT_NAME not in name.split(".")]
            found[leaf] = Parametrized(layer, leaf, tuple(own))
    for key, hook in layer._forward_pre_hooks.items():
        kind = _kind_of(hook)
        if kind is not None:
            leaf = getattr(hook, kind.name)
            found[leaf] = Hooked(layer, leaf, tuple(leaf + ending for ending in kind.endings), key)
    return found


def computed_weights(module: nn.Module) -> dict[str, ComputedWeight]:
    """The tensors that the layers of a network compute in each forward, by qualified name."""
    return {
        f"{path}.{leaf}" if path else leaf: weight
        for path, layer in module.named_modules()
        for leaf, weight in computed_in(layer).items()
    }


def source_names(weights: Mapping[str, ComputedWeight]) -> dict[str, str]:
    """The weight that each source belongs to, both by qualified name.

    Args:
        weights: Computed weights by qualified name.
    """
    found = {}
    for name, weight in weights.items():
        path = name.rpartition(".")[0]
        found.update({f"{path}.{source}" if path else source: name for source in weight.sources})
    return found


def without_effects(weight: ComputedWeight) -> Tensor:
    """Compute a weight as in evaluation, where nothing changes buffers."""
    with training_flags(weight.layer, False):
        return weight.compute()


def make_plain(module: nn.Module, names: Iterable[str]) -> None:
    """Turn those of these weights that layers compute into parameters of their layers.

    Args:
        module: The network, which is changed.
        names: The qualified names of weights of any layers.
    """
    found = computed_weights(module)
    for name in names:
        if name in found:
            found[name].make_plain()
