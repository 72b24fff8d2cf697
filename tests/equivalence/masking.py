"""An oracle for sliced networks: the user's own full-size code, run with the removed entries marked absent.

Removed entries of parameters and buffers are NaN, and NaN means "not there": layers that sum over channels skip it,
norms and means take their statistics over what is there, everything else hands NaN on by itself. Where two tensors
disagree about what is there (a weight expects a channel that its input lacks) the oracle raises `MaskMismatchError`.

It knows nothing of the channel plan. Which entries are removed comes from the shapes of a materialized network, under
the rule that a prefix is kept (`prefix_masks`), or from marks that survive slicing (`survivors`).
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from lightning_lcs.model import SubspaceModel
from tests.equivalence.absent import Absent, MaskMismatchError

Masks = Mapping[str, Tensor]


# -- which entries are kept -------------------------------------------------------------------------------------------


def kept_axis(full: int, kept: int, copies: int = 1) -> Tensor:
    """Keep a prefix in each of ``copies`` equal pieces of an axis."""
    return torch.arange(full) % (full // copies) < kept // copies


def kept_pieces(full: list[int], kept: list[int]) -> Tensor:
    """Keep a prefix in each piece of an axis that was joined from pieces."""
    return torch.cat([kept_axis(*sizes) for sizes in zip(full, kept, strict=True)])


def outer(axes: list[Tensor]) -> Tensor:
    """The mask whose every axis is masked by itself."""
    mask = torch.ones([len(axis) for axis in axes], dtype=torch.bool)
    for position, axis in enumerate(axes):
        mask &= axis.view([-1 if k == position else 1 for k in range(len(axes))])
    return mask


def prefix_masks(full: nn.Module, small: nn.Module) -> dict[str, Tensor]:
    """Masks of a network in which every axis keeps a prefix: from the two networks' shapes alone."""
    shapes = {name: value.shape for name, value in small.state_dict().items()}
    return {
        name: outer([kept_axis(*sizes) for sizes in zip(value.shape, shapes[name], strict=True)])
        for name, value in full.state_dict().items()
        if name in shapes
    }


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, those that no state_dict holds included."""
    return {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }


def survivors(model: SubspaceModel, alpha: float) -> dict[str, Tensor]:
    """Masks of any network: every entry is numbered, and those whose numbers are in a materialized network stayed.

    Args:
        model: whose tensors are numbered for the while.
        alpha: the level.

    Returns:
        Name of a tensor -> which of its entries are kept.
    """
    numbered = {
        name: value for name, value in _tensors(model.module).items() if value.is_floating_point()
    }  # others are tables of positions, which nothing cuts
    before = {name: value.detach().clone() for name, value in numbered.items()}
    with torch.no_grad():
        for value in numbered.values():
            assert value.numel() < (2**24 if value.dtype == torch.float32 else 2**53), "counts no further"
            value.copy_(torch.arange(value.numel(), dtype=value.dtype).view(value.shape))
        small = _tensors(model.materialize(alpha))
        for name, value in numbered.items():
            value.copy_(before[name])
    known: dict[int, Tensor] = {}
    for name, value in numbered.items():
        if name in small:
            mask = torch.zeros(value.numel(), dtype=torch.bool)
            mask[small[name].flatten().long()] = True
            known[id(value)] = mask.view(value.shape)
    # A tensor of several names goes by one of them in a materialized network.
    return {name: known[id(value)] for name, value in numbered.items() if id(value) in known}


class Survivors:
    """Masks of a network as :func:`survivors` finds them, by a subspace model of its own."""

    def __init__(self, full: nn.Module, example: Tensor, **options: Any) -> None:
        self._model = SubspaceModel(copy.deepcopy(full), example, subspace="point", **options).eval()

    def masks(self, alpha: float) -> dict[str, Tensor]:
        """Name of a tensor -> which of its entries are kept."""
        return survivors(self._model, alpha)


def removed(module: nn.Module, masks: Masks, mark: float = torch.nan) -> nn.Module:
    """A copy of a network with the removed entries of its floating-point tensors marked absent, or set to 0."""
    marked = copy.deepcopy(module)
    for name, value in [*marked.named_parameters(), *marked.named_buffers()]:
        if name in masks and value.is_floating_point():
            value.data = value.data.masked_fill(~masks[name], mark)
    return marked


def masked_forward(module: nn.Module, masks: Masks, *args: Tensor) -> Any:
    """The full-size result with the removed channels absent everywhere.

    Raises:
        MaskMismatchError: the masks do not fit together.
    """
    marked = removed(module, masks).eval()
    with torch.no_grad(), Absent():
        result = marked(*args)
    if any(torch.isnan(leaf).any() for leaf in pytree.tree_leaves(result)):
        raise MaskMismatchError("a removed channel reaches the output")
    return result
