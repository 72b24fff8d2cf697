"""Unstructured sparsity: which entries of a weight are kept."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def zeros_at(numel: int, sparsity: float) -> int:
    """Number of entries that become zero: ``floor(sparsity * numel)``, with products such as 0.1 * 30 taken as exact.

    Args:
        numel: number of entries.
        sparsity: share of zeros, in [0, 1).

    Raises:
        ValueError: ``sparsity`` is outside [0, 1), so that nothing would be left.
    """
    if not 0.0 <= sparsity < 1.0:
        raise ValueError(f"sparsity={sparsity!r} is not in [0, 1): it is the share of zeros, and 1 would leave nothing")
    return math.floor(sparsity * numel + 1e-6)


@torch.no_grad()
def largest_mask(weight: Tensor, sparsity: float) -> Tensor:
    """The entries of largest magnitude (arXiv 2110.04252, unstructured mode: top-k per layer).

    Args:
        weight: any shape.
        sparsity: share of zeros, in [0, 1).

    Returns:
        A mask of the weight's shape and type, 1 where an entry is kept: exactly ``zeros_at(numel, sparsity)`` are 0.
        Among equal magnitudes the first ones are kept.

    Raises:
        ValueError: ``sparsity`` is outside [0, 1), or the weight holds NaN.
    """
    zeros = zeros_at(weight.numel(), sparsity)
    if zeros == 0:
        return torch.ones_like(weight)
    magnitude = weight.detach().abs().flatten()
    threshold = magnitude.kthvalue(zeros).values
    above = magnitude > threshold
    # Ties at the threshold, or NaN: both are rare, and counting is cheap.
    missing = weight.numel() - zeros - int(above.sum())
    if missing:
        if bool(magnitude.isnan().any()):
            raise ValueError("the weight holds NaN, which has no magnitude to compare: training has diverged")
        ties = magnitude == threshold
        above |= ties & (ties.cumsum(0) <= missing)
    return above.view_as(weight).to(weight.dtype)
