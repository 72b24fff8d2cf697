"""Build the parts of a new subspace model."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from lightning_lcs.graph.traced_network import TracedNetwork
from lightning_lcs.subspace.mode import Mode
from lightning_lcs.subspace.part import Part
from lightning_lcs.subspace.weights.tied import without_tied_to_whole


def build_parts(modules: Mapping[str, nn.Module], mode: Mode) -> list[Part]:
    """Build the parts of a subspace model, and warn where much of a network can't be compressed.

    Args:
        modules: The networks by name.
        mode: The mode.

    Raises:
        ValueError: No tensor of any network would be compressed.
    """
    parts: list[Part] = []
    tied: list[str] = []
    for name, module in modules.items():
        fitting = mode.select_weights(module)
        selected = without_tied_to_whole(module, fitting)
        tied.extend(weight for weight in fitting.weights if weight not in selected.weights)
        network = TracedNetwork(module, mode.plan(module))
        prefix = f"{name}." if len(modules) > 1 else ""
        parts.append(Part(name, prefix, network, selected=selected.weights, pinned=selected.pinned))
    for part in parts:
        part.siblings = parts
        mode.warn_of_whole(part)
    unchanged = all(set(part.selected) <= set(part.pinned) for part in parts)
    if not mode.runs_as_graph and unchanged and not mode.pins_layers:
        networks = ", ".join(type(module).__name__ for module in modules.values())
        options = " and ".join(f"{name}={getattr(mode, name)!r}" for name in mode.keeping_options)
        kept = f", besides those that {options} keeps as they are" if options else ""
        kept += f"; {', '.join(tied)} is one parameter with a tensor that stays whole: untie it" if tied else ""
        raise ValueError(f"{networks} has no layer that {type(mode).__name__} compresses{kept}")
    return parts
