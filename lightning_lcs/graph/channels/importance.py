"""The order of channels: narrow widths keep the first of each group, so the strongest belong there."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_lcs.functional.sparsity import largest_masks
from lightning_lcs.graph.channels.dims import Dim, Structure
from lightning_lcs.graph.channels.plan import ChannelPlan


def importances(plan: ChannelPlan, weights: Mapping[str, Tensor]) -> dict[int, Tensor]:
    """How much each channel of each group weighs: its L1 norm in every weight that has it, summed.

    Each weight counts the same: its norms are divided by their mean.

    Args:
        plan: of the network.
        weights: by qualified name; those of one dimension and those unknown to the plan are left out.

    Returns:
        Atom that shrinks -> one number per channel.
    """
    found: dict[int, Tensor] = {}
    for name, weight in weights.items():
        if name not in plan.tensors or weight.ndim < 2 or not weight.is_floating_point():
            continue
        for axis, dim in enumerate(plan.tensors[name]):
            others = [other for other in range(weight.ndim) if other != axis]
            norms = weight.detach().abs().double().sum(others)
            norms = norms / norms.mean().clamp_min(torch.finfo(norms.dtype).tiny)
            for atom, part in _by_atom(plan.structure, dim, norms):
                found[atom] = found[atom] + part if atom in found else part
    return found


def largest_scales(plan: ChannelPlan, scales: Mapping[str, Tensor], width: float) -> dict[int, list[int]]:
    """The channels of largest scale in the whole network, at least one of each group (arXiv 1708.06519).

    Args:
        plan: of the network.
        scales: of its norms, by qualified name. A group with several counts their mean; one without stays whole.
        width: share of all channels with a scale that is kept.

    Returns:
        Atom -> the channels kept, ascending.
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
    """Values of the entries of a dimension, summed for each channel of every group in it that shrinks."""
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


def sorted_orders(found: Mapping[int, Tensor]) -> dict[int, list[int]]:
    """Atom -> its channels by falling importance; equal ones as they come."""
    return {atom: values.argsort(descending=True, stable=True).tolist() for atom, values in found.items()}


def reordered_indices(structure: Structure, dim: Dim, orders: Mapping[int, list[int]]) -> list[int]:
    """Where each entry of a dimension comes from when the channels of its groups are put in another order."""
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
    """Put channels into another order, in place: the network computes the same, up to the order of its sums.

    Args:
        plan: of the network.
        tensors: qualified name -> the tensors that go by it (a parameter and its second endpoint); each once.
        orders: of the groups that change.
    """
    for name, values in tensors.items():
        for axis, dim in enumerate(plan.tensors.get(name, ())):
            if any(atom in orders for term in plan.structure.resolve(dim) for atom in term):
                order = torch.tensor(reordered_indices(plan.structure, dim, orders))
                for value in values:
                    value.copy_(value.index_select(axis, order.to(value.device)))
