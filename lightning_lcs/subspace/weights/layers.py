"""The tensors of a network that are weights of its layers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_lcs.subspace.weights.computed import computed_in, computed_weights, without_effects

_KINDS = (nn.modules.conv._ConvNd, nn.Linear)
_RECURRENT = re.compile(r"weight_(ih|hh|hr)(_l\d+(_reverse)?)?")
_PROJECTIONS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


def layer_of(weight: str) -> str:
    """The path of the layer that a weight belongs to."""
    return weight.rpartition(".")[0]


def is_projection(weight: str) -> bool:
    """Whether a name is that of an input projection of torch's attention."""
    return weight.rpartition(".")[2] in _PROJECTIONS


def transposed_groups(module: nn.Module, weights: Iterable[str]) -> dict[str, int]:
    """The number of groups of each transposed convolution, by the name of its weight.

    Such a weight holds its inputs in dimension 0; see :func:`lightning_lcs.functional.channels.swap_channels`.

    Args:
        module: The network.
        weights: The qualified names of weights of any layers.
    """
    layers = {name: module.get_submodule(layer_of(name)) for name in weights}
    return {name: layer.groups for name, layer in layers.items() if isinstance(layer, nn.modules.conv._ConvTransposeNd)}


def layer_inputs(module: nn.Module, weights: Iterable[str]) -> dict[str, int]:
    """The number of inputs that each output of a layer reads, by the name of the layer's weight.

    Args:
        module: The network.
        weights: The qualified names of weights of any layers.
    """
    weights = tuple(weights)
    groups = transposed_groups(module, weights)
    computed = computed_weights(module)
    shapes = {
        name: (without_effects(computed[name]) if name in computed else module.get_parameter(name)).shape
        for name in weights
    }
    return {name: shape[0] // groups[name] if name in groups else shape[1] for name, shape in shapes.items()}


def all_weights(module: nn.Module, without: Sequence[str] = ()) -> tuple[str, ...]:
    """The qualified names of the weights of all layers: convolutions, linear, recurrent and torch's attention.

    Args:
        module: The network.
        without: The kinds of layers to leave out; see :func:`layer_weights`.
    """
    return layer_weights(module, without) + attention_weights(module) + recurrent_weights(module)


def attention_weights(module: nn.Module) -> tuple[str, ...]:
    """The qualified names of the input projections that torch's attention holds as its own parameters."""
    found = ((path, child) for path, child in module.named_modules() if isinstance(child, nn.MultiheadAttention))
    return tuple(name for path, child in found for name in _weights_of(path, child, _PROJECTIONS))


def recurrent_weights(module: nn.Module) -> tuple[str, ...]:
    """The qualified names of the weights of recurrent layers and cells: LSTM, GRU and RNN."""
    kinds = (nn.RNNBase, nn.RNNCellBase)
    found = ((path, child) for path, child in module.named_modules() if isinstance(child, kinds))
    return tuple(
        name
        for path, child in found
        for name in _weights_of(path, child, filter(_RECURRENT.fullmatch, {**child._parameters, **computed_in(child)}))
    )


def _weights_of(path: str, layer: nn.Module, leaves: Iterable[str]) -> Iterator[str]:
    """The qualified names of those weights that a layer has."""
    computed = computed_in(layer)
    for leaf in leaves:
        weight = layer._parameters.get(leaf)
        # Layers may be built for no channels at all; a lazy layer does not know its channels yet.
        if leaf in computed or (isinstance(weight, Tensor) and (is_lazy(weight) or weight.numel() > 0)):
            yield f"{path}.{leaf}" if path else leaf


def single_input_layers(module: nn.Module, weights: Iterable[str]) -> tuple[str, ...]:
    """The paths of the layers whose only input is what they are called with: convolutions and linear layers.

    Recurrent layers read their own states, too, and torch's attention computes with its output projection itself,
    without calling it.

    Args:
        module: The network.
        weights: The qualified names of weights of any layers.
    """
    attentions = (child for child in module.modules() if isinstance(child, nn.MultiheadAttention))
    inside = {id(child.out_proj) for child in attentions}
    layers = {layer_of(name): module.get_submodule(layer_of(name)) for name in weights}
    return tuple(path for path, layer in layers.items() if isinstance(layer, _KINDS) and id(layer) not in inside)


def layer_weights(module: nn.Module, without: Sequence[str] = ()) -> tuple[str, ...]:
    """The qualified names of the weights of convolutions and linear layers.

    Args:
        module: The network.
        without: The kinds of layers to leave out, any of "first" (the first convolution), "last" (the last linear
            layer) and "depthwise", in order of registration. The default is none.
    """
    found = [(path, child) for path, child in module.named_modules() if isinstance(child, _KINDS)]
    convolutions = [child for _, child in found if isinstance(child, nn.modules.conv._ConvNd)]
    linear = [child for _, child in found if isinstance(child, nn.Linear)]
    whole = {
        "first": set(map(id, convolutions[:1])),
        "last": set(map(id, linear[-1:])),
        "depthwise": {id(child) for child in convolutions if child.groups == child.in_channels > 1},
    }
    left_out = set[int]().union(*(whole[kind] for kind in without))
    inside = [(path, child) for path, child in found if id(child) not in left_out]
    return tuple(name for path, child in inside for name in _weights_of(path, child, ["weight"]))
