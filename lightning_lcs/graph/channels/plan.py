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
    """Indices of the entries of a dimension that are kept; they are copied to each device once."""

    def __init__(self, entries: Iterable[int]) -> None:
        super().__init__(entries)
        self._on: dict[torch.device, Tensor] = {}

    def on(self, device: torch.device) -> Tensor:
        """The indices as a tensor on a device."""
        found = self._on.get(device)
        if found is None:
            with torch.inference_mode(False):  # a training step may use it later
                found = torch.tensor(list(self), device=device)
            if type(found) is Tensor:  # a tensor of a tracer must not be kept
                self._on[device] = found
        return found


# What is kept of one dimension: all of it (None), a prefix of some length, or some indices.
Kept = None | int | Indices
Selection = tuple[Kept, ...]


@dataclasses.dataclass
class ChannelPlan:
    """How the channels of a network's parameters and buffers shrink together.

    Attributes:
        structure: The groups of channels that shrink together, and what is known about them.
        tensors: The dimensions of parameters and buffers, by qualified name.
        keep: Paths or patterns of modules that are kept whole with all their submodules. The default is none.
        round_to: Sizes that shrink are multiples of this number. The default is 1.
        multiplied: Names of the parameters by which an op multiplies its input over several channels, such as the
            weights of convolutions and linear layers. The default is none.

    Example:
        >>> import torch
        >>> from lightning_lcs import SubspaceModel
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3))
        >>> x = torch.zeros(1, 3, 8, 8)
        >>> model = SubspaceModel(net, mode="structured", subspace="point", example_inputs=x)
        >>> model.plan.sliced()
        {'0.weight': True, '0.bias': True, '2.weight': True, '2.bias': False}
        >>> print(model.plan.report(width=0.5))
        3 of 4 parameters and buffers are sliced; at width 0.5 they hold 260 of 516 numbers (50.4%)
          belong to inputs or outputs, or are single numbers: 2.bias
    """

    structure: Structure = dataclasses.field(default_factory=Structure)
    tensors: dict[str, Dims] = dataclasses.field(default_factory=dict)
    keep: tuple[str, ...] = ()
    round_to: int = 1
    multiplied: set[str] = dataclasses.field(default_factory=set)

    def with_whole(self, names: Iterable[str], why: str) -> ChannelPlan:
        """The plan in which further tensors are kept whole.

        Args:
            names: Qualified names of the tensors.
            why: The reason.
        """
        structure = dataclasses.replace(self.structure, kept_whole=dict(self.structure.kept_whole))
        for name in names:
            for dim in self.tensors[name]:
                structure.keep_whole(dim, why)
        return dataclasses.replace(self, structure=structure)

    def selection(self, width: float, chosen: ChosenChannels = NO_CHOSEN_CHANNELS) -> PlanAtWidth:
        """The plan at a width.

        Args:
            width: Share of the channels of each group, in (0, 1].
            chosen: The channels to keep, by atom. The default is the first ones of each group.
        """
        return PlanAtWidth(self, width, chosen)

    def sliced(self) -> dict[str, bool]:
        """For each parameter and buffer, whether one of its dimensions may shrink."""
        return {name: any(self.structure.free(dim) for dim in dims) for name, dims in self.tensors.items()}

    def dimensions_kept_whole(self) -> dict[str, list[tuple[int, str]]]:
        """The dimensions that are kept whole although they are not inputs or outputs of the network.

        Returns:
            Pairs of a dimension and the operation because of which it is kept whole, by qualified name.
        """
        found: dict[str, list[tuple[int, str]]] = {}
        for name, dims in self.tensors.items():
            for axis, dim in enumerate(dims):
                for term in self.structure.resolve(dim):
                    reasons = [self.structure.kept_whole[atom] for atom in term if atom in self.structure.kept_whole]
                    if len(reasons) == len(term) and reasons and reasons[-1] not in _EXPECTED:
                        found.setdefault(name, []).append((axis, reasons[-1]))
        return found

    def tensors_kept_whole(self) -> dict[str, str]:
        """The tensors of which no dimension shrinks because of an operation, rather than ``keep``.

        Returns:
            The operation, by qualified name.
        """
        sliced = self.sliced()
        return {
            name: dims[0][1]
            for name, dims in self.dimensions_kept_whole().items()
            if not sliced[name] and not dims[0][1].startswith("keep=")
        }

    def report(self, width: float = 0.5) -> str:
        """A text about the plan: the share that is left at a width, and all that is kept whole, with the reasons.

        Args:
            width: Share of the channels of each group, in (0, 1]. The default is 0.5.
        """
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
            more = f" and {len(others) - _MAX_NAMES} more" if len(others) > _MAX_NAMES else ""
            lines.append(
                f"  belong to inputs or outputs, or are single numbers: {', '.join(others[:_MAX_NAMES])}{more}"
            )
        return "\n".join(lines)


_MAX_NAMES = 6  # in a line of a report
# Reasons that need no report.
_EXPECTED = {"input of the network", "output of the network", "spatial", "groups", "groups of a convolution"}


class PlanAtWidth:
    """A plan at one width. The result for each dimension is computed once.

    Args:
        plan: The plan.
        width: Share of the channels of each group, in (0, 1].
        chosen: The channels to keep, by atom. The default is the first ones of each group.
    """

    def __init__(self, plan: ChannelPlan, width: float, chosen: ChosenChannels = NO_CHOSEN_CHANNELS) -> None:
        self.plan = plan
        self.width = width
        self._chosen = chosen
        self._kept: dict[Dim, Kept] = {}
        self._sizes: dict[Dim, int] = {}
        self._indices: dict[tuple[int, ...], Indices] = {}  # shared, because many dimensions have the same indices

    def of(self, name: str) -> Selection:
        """What is kept of each dimension of a parameter or buffer; a tensor that is not in the plan is kept whole."""
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
        """A view of what is kept of a tensor, in which a sliced product has one axis for each factor.

        Args:
            name: Qualified name of the parameter or buffer.
            tensor: Its value at full width.

        Returns:
            The view, or ``None`` if there is no such view: a concatenation is sliced, or other channels than the first
            ones are kept.
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
    """The entries of a tensor that are kept, differentiably.

    Args:
        tensor: The tensor at full width.
        selection: What is kept of each dimension.

    Returns:
        A view if a prefix of each dimension is kept, else a copy.
    """
    for axis, kept in enumerate(selection):
        if isinstance(kept, int):
            tensor = tensor.narrow(axis, 0, kept)
        elif kept is not None:
            tensor = tensor.index_select(axis, kept.on(tensor.device))
    return tensor


def add_selected(full: Tensor, selection: Selection, part: Tensor, scale: float = 1.0) -> None:
    """Add to the selected entries in place, ``full[selection] += scale * part``: the transpose of :func:`select`.

    Args:
        full: The tensor at full width.
        selection: What is kept of each dimension.
        part: What is added, of the shape that is kept.
        scale: A factor on ``part``. The default is 1.
    """
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
