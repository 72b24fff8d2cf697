"""The tensors of a network that are weights of its layers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor, nn


def layer_of(weight: str) -> str:
    """The path of the layer that a weight belongs to."""
    return weight.rpartition(".")[0]


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
    shapes = {name: module.get_parameter(name).shape for name in weights}
    return {name: shape[0] // groups[name] if name in groups else shape[1] for name, shape in shapes.items()}


def attention_weights(module: nn.Module) -> tuple[str, ...]:
    """The qualified names of the input projections that torch's attention holds as its own parameters."""
    leaves = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
    return tuple(
        f"{path}.{leaf}" if path else leaf
        for path, child in module.named_modules()
        if isinstance(child, nn.MultiheadAttention)
        for leaf in leaves
        if isinstance(child._parameters.get(leaf), Tensor)
    )


def layer_weights(module: nn.Module, without: Sequence[str] = ()) -> tuple[str, ...]:
    """The qualified names of the weights of convolutions and linear layers.

    Args:
        module: The network.
        without: The kinds of layers to leave out, any of "first" (the first convolution), "last" (the last linear
            layer) and "depthwise", in order of registration. The default is none.
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
