"""The cost of a level that runs the network's own forward with other weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from lightning_lcs.graph.cost import count_module_macs
from lightning_lcs.graph.traced_network import training_flags
from lightning_lcs.subspace.forward import placed
from lightning_lcs.subspace.part import Part
from lightning_lcs.subspace.weights.computed import computed_weights, without_effects
from lightning_lcs.subspace.weights.layers import is_projection, layer_of


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost of a level of one network; see :class:`Efficiency` for the units."""

    params: int
    macs: int
    size_bytes: int


def _of_layers(part: Part, density: Mapping[str, float]) -> dict[str, float]:
    """The share of multiplications by entries that are not zero, by the path of a layer.

    A recurrent layer multiplies by each entry of its weights equally often. The products of torch's attention are not
    those of its weights alone, so that they count as dense.
    """
    sizes = {name: part.on_line(name, 1.0).numel() for name in density if not is_projection(name)}
    layers: dict[str, list[str]] = {}
    for name in sizes:
        layers.setdefault(layer_of(name), []).append(name)
    return {
        path: sum(density[name] * sizes[name] for name in names) / sum(sizes[name] for name in names)
        for path, names in layers.items()
    }


def macs_of(part: Part, density: Mapping[str, float]) -> int:
    """Count the multiply-accumulates of one sample.

    Args:
        part: The network, which runs once.
        density: The share of entries that are not zero, by qualified name of a weight.
    """
    density = _of_layers(part, density)
    # Computing weights is no work on a sample.
    computed = computed_weights(part.network.module).values()
    places = [place for weight in computed for place in weight.places(without_effects(weight))]
    with part.own_forward() as module, training_flags(module, False), placed(places):
        return count_module_macs(module, *part.network.example_inputs(), density)
