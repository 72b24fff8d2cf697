"""Parameters that several places of a network share: a level compresses them in all of these places, or in none."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import nn

from lightning_lcs.graph.traced_network import ENDPOINT_NAME
from lightning_lcs.subspace.compression import Selected
from lightning_lcs.subspace.weights.computed import computed_weights, source_names
from lightning_lcs.subspace.weights.layers import transposed_groups

# The reason for which a weight that is tied crosswise is whole where each block of inputs is compressed on its own.
CROSSWISE = "it holds its inputs in another dimension"


def tied_parameters(module: nn.Module) -> dict[str, tuple[str, ...]]:
    """The qualified names of each parameter that several modules hold, by the first of them.

    Args:
        module: The network. A module that it holds under several paths counts once.
    """
    names: dict[int, list[str]] = {}
    for path, child in module.named_modules():
        if ENDPOINT_NAME in path.split("."):
            continue
        for leaf, parameter in child._parameters.items():
            if parameter is not None:
                names.setdefault(id(parameter), []).append(f"{path}.{leaf}" if path else leaf)
    return {places[0]: tuple(places) for places in names.values() if len(places) > 1}


def without_tied_to_whole(module: nn.Module, selected: Selected) -> Selected:
    """What a mode compresses, without the weights whose parameters another place holds that it leaves whole.

    Such a place is an embedding, for example. The parameter of a materialized level can't be whole in one place and
    compressed in another.

    Args:
        module: The network.
        selected: What the mode selects.
    """
    weight_of = source_names(computed_weights(module))
    groups = list(tied_parameters(module).values())
    kept = set(selected.weights)

    def is_whole(places: tuple[str, ...]) -> bool:
        """Whether a place is not compressed, or its layer compresses what it computes from the parameter."""
        weights = [weight_of.get(place, place) for place in places]
        return not kept.issuperset(weights) or len({place in weight_of for place in places}) > 1

    # A weight that is computed from several parameters is whole for one of them, and makes all others so.
    while lost := {
        weight_of.get(place, place) for places in groups if is_whole(places) for place in places
    }.intersection(kept):
        kept -= lost
    pinned = {name: value for name, value in selected.pinned.items() if name in kept}
    return Selected(tuple(name for name in selected.weights if name in kept), pinned)


def tied_crosswise(module: nn.Module, names: Iterable[str]) -> frozenset[str]:
    """The weights that are one parameter, with inputs and outputs in other dimensions in one layer than in another.

    A convolution and a transposed one are such layers, as autoencoders have them.

    Args:
        module: The network.
        names: The qualified names of weights of any layers.
    """
    names = frozenset(names)
    groups = transposed_groups(module, names)
    tied: Iterable[Sequence[str]] = tied_parameters(module).values()
    found = ([name for name in places if name in names] for places in tied)
    return frozenset(name for places in found if len(set(map(groups.get, places))) > 1 for name in places)
