"""The order of channels: narrow widths keep the first channels of each group, so these should be the strongest."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_lcs.functional.sparsity import largest_masks
from lightning_lcs.graph.channels.dims import Dim, Structure
from lightning_lcs.graph.channels.plan import ChannelPlan


def importances(plan: ChannelPlan, weights: Mapping[str, Tensor]) -> dict[int, Tensor]:
    """The importance of each channel: the sum of its L1 norms in all weights that have the channel.

    All weights count equally, because the norms of each weight are divided by their mean.

    Args:
        plan: The plan of the network.
        weights: Weights by qualified name. Those with a single dimension, and those that are not in the plan, do not
            count.

    Returns:
        One number per channel, by the atom that shrinks.
    """
    sums: dict[int, Tensor] = {}
    for name, weight in weights.items():
        if name not in plan.tensors or weight.ndim < 2 or not weight.is_floating_point():
            continue
        for axis, dim in enumerate(plan.tensors[name]):
            others = [other for other in range(weight.ndim) if other != axis]
            norms = weight.detach().abs().double().sum(others)
            norms = norms / norms.mean().clamp_min(torch.finfo(norms.dtype).tiny)
            for atom, part in _by_atom(plan.structure, dim, norms):
                sums[atom] = sums[atom] + part if atom in sums else part
    return sums


def largest_scales(plan: ChannelPlan, scales: Mapping[str, Tensor], width: float) -> dict[int, list[int]]:
    """The channels with the largest scales in the whole network, at least one of each group (arXiv 1708.06519).

    Args:
        plan: The plan of the network.
        scales: Scales of its norms, by qualified name. The mean counts for a group with several norms; a group without
            norms is kept whole.
        width: Share of channels to keep, among all channels that have a scale, in (0, 1].

    Returns:
        The channels to keep in ascending order, by atom.
    """
    sums: dict[int, Tensor] = {}
    counts: dict[int, int] = {}
    for name, scale in scales.items():
        for dim in plan.tensors.get(name, ()):
            for atom, part in _by_atom(plan.structure, dim, scale.detach().abs().float()):
                sums[atom] = sums[atom] + part if atom in sums else part
                counts[atom] = counts.get(atom, 0) + 1
    atoms = {atom for dims in plan.tensors.values() for dim in dims for atom in plan.structure.free(dim)}
    chosen = {atom: list(range(plan.structure.sizes[atom])) for atom in atoms}
    means = {str(atom): total / counts[atom] for atom, total in sums.items()}
    if means:
        masks = largest_masks(means, 1.0 - width)
        chosen |= {int(atom): mask.nonzero().flatten().tolist() for atom, mask in masks.items()}
    return chosen


def _by_atom(structure: Structure, dim: Dim, values: Tensor) -> list[tuple[int, Tensor]]:
    """The values of a dimension's entries, summed for each channel of each atom that may shrink."""
    parts: list[tuple[int, Tensor]] = []
    offset = 0
    for term in structure.resolve(dim):
        sizes = [structure.sizes[atom] for atom in term]
        block = values[offset : offset + math.prod(sizes)].reshape(sizes)
        offset += math.prod(sizes)
        for place, atom in enumerate(term):
            if atom not in structure.kept_whole:
                parts.append((atom, block.movedim(place, 0).flatten(1).sum(1) if len(term) > 1 else block))
    return parts


def sorted_orders(importance: Mapping[int, Tensor]) -> dict[int, list[int]]:
    """The channels by descending importance; channels of equal importance keep their order.

    Args:
        importance: One number per channel, by atom, as :func:`importances` returns it.

    Returns:
        The channels, by atom.
    """
    return {atom: values.argsort(descending=True, stable=True).tolist() for atom, values in importance.items()}


def reordered_indices(structure: Structure, dim: Dim, orders: Mapping[int, list[int]]) -> list[int]:
    """The source index of each entry of a dimension when the channels of its groups are reordered.

    Args:
        structure: The atoms of the network.
        dim: The dimension.
        orders: The new order of channels, by atom. All others keep their order.
    """
    result: list[int] = []
    offset = 0
    for term in structure.resolve(dim):
        places = [0]
        for atom in term:
            size = structure.sizes[atom]
            places = [place * size + channel for place in places for channel in orders.get(atom, range(size))]
        result.extend(offset + place for place in places)
        offset += structure.term_size(term)
    return result


@torch.no_grad()
def reorder(plan: ChannelPlan, tensors: Mapping[str, list[Tensor]], orders: Mapping[int, list[int]]) -> None:
    """Reorder channels in place. The network computes the same, except for the order of its sums.

    Args:
        plan: The plan of the network.
        tensors: All tensors of each qualified name: a parameter and its second endpoint. Each tensor occurs once.
        orders: The new order of channels, by atom.
    """
    for name, values in tensors.items():
        for axis, dim in enumerate(plan.tensors.get(name, ())):
            if any(atom in orders for term in plan.structure.resolve(dim) for atom in term):
                order = torch.tensor(reordered_indices(plan.structure, dim, orders))
                for value in values:
                    value.copy_(value.index_select(axis, order.to(value.device)))
