"""Unstructured sparsity: which entries of a weight are kept.

Masks on an accelerator are made there, and nothing is read back: a step of training never waits for it. NaN is not
looked for then, and goes on into the loss.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

# Entries that share their budget in the semi-structured pattern of accelerators (2:4).
BLOCK = 4
# A selection looks at a sample first, which is not worth its while below this many entries.
_SAMPLED_FROM = 1 << 15
# Odd, and no multiple of a kernel's size: every place of a kernel comes up.
_STRIDE = 149


def zero_count(numel: int, sparsity: float) -> int:
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
def magnitude_threshold(weight: Tensor, zeros: int) -> float | None:
    """The magnitude that exactly so many entries do not exceed.

    Args:
        weight: any shape.
        zeros: number of entries, at least 1 and less than all.

    Returns:
        The magnitude; ``None`` where entries tie, so that there is none.

    Raises:
        ValueError: the weight holds NaN.
    """
    magnitude = weight.detach().abs().flatten()
    if not _is_here(magnitude):
        # 0.3 ms for two million entries, where kthvalue takes 12 (H200).
        threshold = magnitude.sort().values[zeros - 1]
        exact = int((magnitude > threshold).sum()) == magnitude.numel() - zeros
        found = float(threshold)
    else:
        # torch's selection, masks and counts take ten times as long on a processor.
        values = (magnitude if magnitude.dtype == torch.float64 else magnitude.float()).numpy()
        found = _smallest(values, zeros)
        exact = np.count_nonzero(values > found) == values.size - zeros
    if exact:
        return found
    _refuse_nan(magnitude)
    return None


def _smallest(values: npt.NDArray[Any], count: int) -> float:
    """The ``count``-th smallest value: among those that a sample says are near it, else among all."""
    if values.size >= _SAMPLED_FROM:
        sample = np.sort(values[::_STRIDE])
        share = count / values.size
        # Four standard deviations to either side.
        margin = 4.0 * math.sqrt(share * (1.0 - share) * sample.size) + 2.0
        first, last = math.floor(share * sample.size - margin), math.ceil(share * sample.size + margin)
        low = sample[first] if first >= 0 else -np.inf
        high = sample[last] if last < sample.size else np.inf
        near = values[(values >= low) & (values <= high)]
        rank = count - np.count_nonzero(values < low)
        if 0 < rank <= near.size:
            return float(np.partition(near, rank - 1)[rank - 1])
    return float(np.partition(values, count - 1)[count - 1])


def _is_here(values: Tensor) -> bool:
    """Whether Python can look at them without waiting for an accelerator."""
    return values.device.type == "cpu"


def _refuse_nan(values: Tensor) -> None:
    if bool(values.isnan().any()):
        raise ValueError("the weight holds NaN, which has no magnitude to compare: training has diverged")


@torch.no_grad()
def largest_mask(weight: Tensor, sparsity: float) -> Tensor:
    """The entries of largest magnitude (arXiv 2110.04252, unstructured mode: top-k per layer).

    Args:
        weight: any shape.
        sparsity: share of zeros, in [0, 1).

    Returns:
        A mask of the weight's shape and type, 1 where an entry is kept: exactly ``zero_count(numel, sparsity)`` are 0.
        Among equal magnitudes the first ones are kept.

    Raises:
        ValueError: ``sparsity`` is outside [0, 1), or the weight holds NaN (on the processor).
    """
    zeros = zero_count(weight.numel(), sparsity)
    if zeros == 0:
        return torch.ones_like(weight)
    threshold = magnitude_threshold(weight, zeros) if _is_here(weight) else None
    if threshold is not None:
        return (weight.detach().abs() > threshold).to(weight.dtype)
    return _first_of_equals(weight.detach().abs().flatten(), zeros).view_as(weight).to(weight.dtype)


def _first_of_equals(magnitude: Tensor, zeros: int) -> Tensor:
    order = magnitude.argsort(descending=True, stable=True)
    return torch.ones_like(magnitude, dtype=torch.bool).scatter_(0, order[magnitude.numel() - zeros :], False)


@torch.no_grad()
def largest_masks(weights: Mapping[str, Tensor], sparsity: float) -> dict[str, Tensor]:
    """The entries of largest magnitude of all weights together: one threshold, and each weight a share of its own.

    The largest entry of each weight is kept in any case: nothing passes a layer without any.

    Args:
        weights: by name, any shapes; at least one.
        sparsity: share of zeros among all entries together, in [0, 1).

    Returns:
        Masks as :func:`largest_mask` gives them; exactly ``zero_count(all entries, sparsity)`` are 0, or all but one of
        each weight where that is fewer.

    Raises:
        ValueError: ``sparsity`` is outside [0, 1), or a weight holds NaN (on the processor).
    """
    magnitudes = [weight.detach().abs().flatten().float() for weight in weights.values()]
    for magnitude in magnitudes:
        if _is_here(magnitude):
            _refuse_nan(magnitude)
        magnitude.scatter_(0, magnitude.argmax(0, keepdim=True), torch.inf)
    together = torch.cat(magnitudes)
    zeros = min(zero_count(together.numel(), sparsity), together.numel() - len(magnitudes))
    if zeros == 0:
        return {name: torch.ones_like(weight) for name, weight in weights.items()}
    threshold = magnitude_threshold(together, zeros) if _is_here(together) else None
    kept = together > threshold if threshold is not None else _first_of_equals(together, zeros)
    pieces = torch.split(kept, [magnitude.numel() for magnitude in magnitudes])
    return {
        name: piece.view_as(weight).to(weight.dtype)
        for (name, weight), piece in zip(weights.items(), pieces, strict=True)
    }


@torch.no_grad()
def block_mask(weight: Tensor, kept: int) -> Tensor:
    """So many entries of largest magnitude in each four consecutive inputs: with 2, the 2:4 pattern of accelerators.

    Args:
        weight: ``(outputs, inputs, ...)``; the number of inputs is a multiple of 4.
        kept: entries kept in each four, in 1..4.

    Returns:
        A mask as :func:`largest_mask` gives it.

    Raises:
        ValueError: the number of inputs is no multiple of 4, ``kept`` is out of range, or the weight holds NaN (on
            the processor).
    """
    if weight.shape[1] % BLOCK:
        raise ValueError(f"the weight has {weight.shape[1]} inputs, which is no multiple of {BLOCK}")
    if not 1 <= kept <= BLOCK:
        raise ValueError(f"kept={kept!r} is not in 1..{BLOCK}")
    if _is_here(weight):
        _refuse_nan(weight)
    blocks = torch.unflatten(weight.detach().abs(), 1, (-1, BLOCK))
    order = blocks.argsort(dim=2, descending=True, stable=True)
    mask = torch.zeros_like(blocks).scatter_(2, order.narrow(2, 0, kept), 1.0)
    return mask.flatten(1, 2)
