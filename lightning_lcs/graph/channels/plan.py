"""The channel plan: which entries of every parameter and buffer a width keeps."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from math import prod

import torch
from torch import Tensor

from lightning_lcs.graph.channels.dims import NO_CHOSEN_CHANNELS, ChosenChannels, Dim, Structure
from lightning_lcs.graph.channels.rules import Dims


class Indices(list[int]):
    """Entries of a dimension that are kept, chosen one by one; a device gets them once."""

    def __init__(self, entries: Iterable[int]) -> None:
        super().__init__(entries)
        self._on: dict[torch.device, Tensor] = {}

    def on(self, device: torch.device) -> Tensor:
        """As a tensor there."""
        found = self._on.get(device)
        if found is None:
            with torch.inference_mode(False):  # a step of training may take it next
                found = torch.tensor(list(self), device=device)
            if type(found) is Tensor:  # not one of a tracer
                self._on[device] = found
        return found


# What is kept of one dimension: nothing is cut, a prefix of this length, or these indices.
Kept = None | int | Indices
Selection = tuple[Kept, ...]


@dataclasses.dataclass
class ChannelPlan:
    """How the tensors of one network shrink together.

    Attributes:
        structure: the atoms of all dimensions.
        tensors: dimensions of parameters and buffers, by qualified name.
        keep: paths or patterns of the modules that stay whole, with all that is in them.
        round_to: sizes that shrink are multiples of it.
    """

    structure: Structure = dataclasses.field(default_factory=Structure)
    tensors: dict[str, Dims] = dataclasses.field(default_factory=dict)
    keep: tuple[str, ...] = ()
    round_to: int = 1

    def selection(self, width: float, chosen: ChosenChannels = NO_CHOSEN_CHANNELS) -> PlanAtWidth:
        """What a width keeps: the first channels of each group, or those chosen."""
        return PlanAtWidth(self, width, chosen)

    def sliced(self) -> dict[str, bool]:
        """For every tensor, whether any of its dimensions shrinks."""
        return {name: any(self.structure.free(dim) for dim in dims) for name, dims in self.tensors.items()}

    def dimensions_kept_whole(self) -> dict[str, list[tuple[int, str]]]:
        """Dimensions kept whole although they are not inputs or outputs: tensor -> (dimension, what froze it)."""
        found: dict[str, list[tuple[int, str]]] = {}
        for name, dims in self.tensors.items():
            for axis, dim in enumerate(dims):
                for term in self.structure.resolve(dim):
                    reasons = [self.structure.kept_whole[atom] for atom in term if atom in self.structure.kept_whole]
                    if len(reasons) == len(term) and reasons and reasons[-1] not in _EXPECTED:
                        found.setdefault(name, []).append((axis, reasons[-1]))
        return found

    def tensors_kept_whole(self) -> dict[str, str]:
        """Tensors of which nothing shrinks because of an op, and not of ``keep``: name -> the op."""
        sliced = self.sliced()
        return {
            name: dims[0][1]
            for name, dims in self.dimensions_kept_whole().items()
            if not sliced[name] and not dims[0][1].startswith("keep=")
        }

    def report(self, width: float = 0.5) -> str:
        """The share left at ``width``, every dimension kept whole with what froze it, and what never shrinks."""
        at = self.selection(width)
        full = sum(prod(self.structure.size(dim) for dim in dims) for dims in self.tensors.values())
        kept = sum(prod(at.shape(name)) for name in self.tensors)
        sliced = sum(self.sliced().values())
        lines = [
            f"{sliced} of {len(self.tensors)} parameters and buffers are sliced; at width {width:g} they hold "
            f"{kept:,} of {full:,} numbers ({kept / max(full, 1):.1%})"
        ]
        for name, dims in self.dimensions_kept_whole().items():
            lines.extend(f"  kept whole: {name}, dimension {axis} ({why})" for axis, why in dict.fromkeys(dims))
        others = [name for name, cut in self.sliced().items() if not cut and name not in self.dimensions_kept_whole()]
        if others:
            more = f" and {len(others) - _NAMED} more" if len(others) > _NAMED else ""
            lines.append(f"  of inputs and outputs, or single numbers: {', '.join(others[:_NAMED])}{more}")
        return "\n".join(lines)


_NAMED = 6  # in a line of a report
_EXPECTED = {"input of the network", "output of the network", "spatial", "groups", "groups of a convolution"}


class PlanAtWidth:
    """What one width keeps; worked out once per dimension."""

    def __init__(self, plan: ChannelPlan, width: float, chosen: ChosenChannels = NO_CHOSEN_CHANNELS) -> None:
        self.plan = plan
        self.width = width
        self._chosen = chosen
        self._kept: dict[Dim, Kept] = {}
        self._sizes: dict[Dim, int] = {}
        self._indices: dict[tuple[int, ...], Indices] = {}  # many dimensions have the same

    def of(self, name: str) -> Selection:
        """What is kept of each dimension of a parameter or buffer; a tensor unknown to the plan is kept whole."""
        return tuple([self.kept(dim) for dim in self.plan.tensors.get(name, ())])

    def kept(self, dim: Dim) -> Kept:
        """What is kept of a dimension."""
        if dim not in self._kept:
            self._kept[dim] = self._find(dim)
        return self._kept[dim]

    def _find(self, dim: Dim) -> Kept:
        structure = self.plan.structure
        if not structure.free(dim):
            return None
        resolved = structure.resolve(dim)
        if len(resolved) == len(resolved[0]) == 1 and resolved[0][0] not in self._chosen:
            return self.size(dim)
        indices = structure.kept_indices(dim, self.width, self._chosen)
        if indices[-1] == len(indices) - 1:
            return len(indices)
        return self._indices.setdefault(tuple(indices), Indices(indices))

    def size(self, dim: Dim) -> int:
        """Size of a dimension at this width."""
        if dim not in self._sizes:
            self._sizes[dim] = self.plan.structure.kept_size(dim, self.width, self._chosen)
        return self._sizes[dim]

    def shape(self, name: str) -> list[int]:
        """Shape of a parameter or buffer at this width."""
        return [self.size(dim) for dim in self.plan.tensors[name]]

    def view(self, name: str, tensor: Tensor) -> Tensor | None:
        """What is kept of a tensor as a view of it, in which a cut product is an axis for each factor.

        ``None`` where that is no view: a concatenation of which each piece is cut, or channels chosen one by one.
        """
        structure = self.plan.structure
        dims = self.plan.tensors.get(name, [])
        for axis in reversed(range(len(dims))):
            kept = self.kept(dims[axis])
            if isinstance(kept, int):
                tensor = tensor.narrow(axis, 0, kept)
            elif kept is not None:
                resolved = structure.resolve(dims[axis])
                if len(resolved) > 1 or any(atom in self._chosen for atom in resolved[0]):
                    return None
                tensor = torch.unflatten(tensor, axis, [structure.sizes[atom] for atom in resolved[0]])
                for place, atom in enumerate(resolved[0]):
                    tensor = tensor.narrow(axis + place, 0, self.size(((atom,),)))
        return tensor


def select(tensor: Tensor, selection: Selection) -> Tensor:
    """The entries that are kept: a view where all cuts are prefixes, else a copy; differentiable."""
    for axis, kept in enumerate(selection):
        if isinstance(kept, int):
            tensor = tensor.narrow(axis, 0, kept)
        elif kept is not None:
            tensor = tensor.index_select(axis, kept.on(tensor.device))
    return tensor


def add_selected(full: Tensor, selection: Selection, part: Tensor, scale: float = 1.0) -> None:
    """``full[selection] += scale * part``, in place: the transpose of :func:`select`."""
    indexed: list[tuple[int, Indices]] = []
    for axis, kept in enumerate(selection):
        if isinstance(kept, int):
            full = full.narrow(axis, 0, kept)
        elif kept is not None:
            indexed.append((axis, kept))
    for axis, indices in indexed[1:]:
        shape = list(part.shape)
        shape[axis] = full.shape[axis]
        part = part.new_zeros(shape).index_copy_(axis, indices.on(part.device), part)
    if indexed:
        axis, indices = indexed[0]
        full.index_add_(axis, indices.on(full.device), part, alpha=scale)
    else:
        full.add_(part, alpha=scale)
