"""The order of the channels of weights."""

from __future__ import annotations

import torch
from torch import Tensor


def swap_channels(weight: Tensor, groups: int) -> Tensor:
    """The weight of a transposed convolution with its outputs in dimension 0, as other layers have them, and back.

    A transposed convolution holds its inputs in dimension 0, and the outputs of one group in dimension 1.

    Args:
        weight: A tensor of shape ``(inputs, outputs / groups, ...)``; or ``(outputs, inputs / groups, ...)``, which
            becomes such a tensor again.
        groups: The number of groups of the convolution.

    Returns:
        A tensor of shape ``(outputs, inputs / groups, ...)``, or of the other one.

    Example:
        >>> import torch
        >>> from lightning_lcs.functional.channels import swap_channels
        >>> weight = torch.randn(8, 3, 2, 2)
        >>> swapped = swap_channels(weight, groups=4)
        >>> tuple(swapped.shape), torch.equal(swap_channels(swapped, groups=4), weight)
        ((12, 2, 2, 2), True)
    """
    return torch.unflatten(weight, 0, (groups, -1)).transpose(1, 2).flatten(0, 1)
