"""Unstructured sparsity: masks of the weight entries that a level keeps.

The mask of a weight on an accelerator is made there, and nothing is copied back, so a training step never waits for it.
For the same reason NaN is not checked there; it reaches the loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

# Length of the blocks of accelerators' semi-structured pattern (2:4).
BLOCK = 4
# For this many entries and more, looking at a sample first makes the selection faster.
_MIN_SAMPLED_SIZE = 1 << 15
# The sample takes every 149th entry: a prime, so that every place of a kernel is in it.
_SAMPLE_STRIDE = 149


def zero_count(numel: int, sparsity: float) -> int:
    """Number of entries that become zero, ``floor(sparsity * numel)``.

    A product such as ``0.1 * 30`` counts as 3, although it is slightly above or below in floating point.

    Args:
        numel: Number of entries.
        sparsity: Share of zeros, in [0, 1).

    Raises:
        ValueError: ``sparsity`` is outside [0, 1).
    """
    if not 0.0 <= sparsity < 1.0:
        raise ValueError(
            f"sparsity={sparsity!r} is not in [0, 1): it is the share of zeros, and 1 would leave no weights"
        )
    return math.floor(sparsity * numel + 1e-6)


def even_sparsities(shapes: Mapping[str, Sequence[int]], sparsity: float) -> dict[str, float]:
    """The same share of zeros for every weight.

    Args:
        shapes: The shapes of the weights, by name.
        sparsity: Share of zeros, in [0, 1).
    """
    return dict.fromkeys(shapes, sparsity)


def erdos_renyi_sparsities(shapes: Mapping[str, Sequence[int]], sparsity: float) -> dict[str, float]:
    """Shares of zeros that leave small weights denser: the Erdős-Rényi kernel (ERK, arXiv 1911.11134, section 3).

    The share kept of a weight is proportional to the sum of the lengths of its dimensions, divided by their product.
    Weights for which this would be more than 1 are whole.

    Args:
        shapes: The shapes of the weights, by name.
        sparsity: Share of zeros among all entries together, in [0, 1).

    Returns:
        The share of zeros of each weight, by name, in [0, 1).

    Example:
        >>> from lightning_lcs.functional.sparsity import erdos_renyi_sparsities
        >>> found = erdos_renyi_sparsities({"first": (16, 8, 3, 3), "second": (64, 32, 3, 3)}, 0.9)
        >>> {name: round(share, 3) for name, share in found.items()}
        {'first': 0.643, 'second': 0.916}
    """
    if sparsity == 0.0:
        return even_sparsities(shapes, sparsity)
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    sums = {name: sum(shape) for name, shape in shapes.items()}
    kept = (1.0 - sparsity) * sum(sizes.values())
    whole: set[str] = set()
    while True:
        others = sums.keys() - whole
        factor = (kept - sum(sizes[name] for name in whole)) / max(1, sum(sums[name] for name in others))
        full = {name for name in others if factor * sums[name] >= sizes[name]}
        if not full:
            return {name: 0.0 if name in whole else 1.0 - factor * sums[name] / sizes[name] for name in shapes}
        whole |= full


# Ways to divide the zeros of a sparsity among weights of given shapes.
LAYER_SPARSITIES: Mapping[str, Callable[[Mapping[str, Sequence[int]], float], dict[str, float]]] = {
    "uniform": even_sparsities,
    "erk": erdos_renyi_sparsities,
}


@torch.no_grad()
def magnitude_threshold(weight: Tensor, zeros: int) -> float | None:
    """The magnitude that exactly ``zeros`` entries do not exceed.

    Args:
        weight: A tensor of any shape.
        zeros: Number of entries, at least 1 and less than all of them.

    Returns:
        The magnitude, or ``None`` if there is no such magnitude because entries tie.

    Raises:
        ValueError: The weight holds NaN.
    """
    magnitude = weight.detach().abs().flatten()
    if not _is_on_cpu(magnitude):
        # Sorting two million entries takes 0.3 ms on an H200, kthvalue 12 ms.
        threshold = magnitude.sort().values[zeros - 1]
        exact = int((magnitude > threshold).sum()) == magnitude.numel() - zeros
        found = float(threshold)
    else:
        # On a CPU, torch's selection, masks and counts take ten times as long as NumPy's.
        values = (magnitude if magnitude.dtype == torch.float64 else magnitude.float()).numpy()
        found = _smallest(values, zeros)
        exact = np.count_nonzero(values > found) == values.size - zeros
    if exact:
        return found
    _refuse_nan(magnitude)
    return None


def _smallest(values: npt.NDArray[Any], count: int) -> float:
    """The ``count``-th smallest value, searched first in the interval in which a sample expects it, then everywhere."""
    if values.size >= _MIN_SAMPLED_SIZE:
        sample = np.sort(values[::_SAMPLE_STRIDE])
        share = count / values.size
        # The interval is four standard deviations wide on either side.
        margin = 4.0 * math.sqrt(share * (1.0 - share) * sample.size) + 2.0
        first, last = math.floor(share * sample.size - margin), math.ceil(share * sample.size + margin)
        low = sample[first] if first >= 0 else -np.inf
        high = sample[last] if last < sample.size else np.inf
        near = values[(values >= low) & (values <= high)]
        rank = count - np.count_nonzero(values < low)
        if 0 < rank <= near.size:
            return float(np.partition(near, rank - 1)[rank - 1])
    return float(np.partition(values, count - 1)[count - 1])


def _is_on_cpu(values: Tensor) -> bool:
    """Whether values can be read without waiting for an accelerator."""
    return values.device.type == "cpu"


def _refuse_nan(values: Tensor) -> None:
    if bool(values.isnan().any()):
        raise ValueError("the weight holds NaN, so its entries can't be ranked: training has diverged")


@torch.no_grad()
def largest_mask(weight: Tensor, sparsity: float) -> Tensor:
    """Mask of the entries with the largest magnitude (arXiv 2110.04252, unstructured mode, top-k per layer).

    Args:
        weight: A tensor of any shape.
        sparsity: Share of zeros, in [0, 1).

    Returns:
        A mask of the weight's shape and dtype, which is 1 where an entry is kept. ``zero_count(numel, sparsity)``
        entries are 0. Among entries of equal magnitude, the first ones are kept.

    Raises:
        ValueError: ``sparsity`` is outside [0, 1), or the weight holds NaN (checked on a CPU only).
    """
    zeros = zero_count(weight.numel(), sparsity)
    if zeros == 0:
        return torch.ones_like(weight)
    threshold = magnitude_threshold(weight, zeros) if _is_on_cpu(weight) else None
    if threshold is not None:
        return (weight.detach().abs() > threshold).to(weight.dtype)
    return _stable_top_mask(weight.detach().abs().flatten(), zeros).view_as(weight).to(weight.dtype)


def _stable_top_mask(magnitude: Tensor, zeros: int) -> Tensor:
    """Mask of all but the ``zeros`` smallest magnitudes; among equal ones the first are kept."""
    order = magnitude.argsort(descending=True, stable=True)
    return torch.ones_like(magnitude, dtype=torch.bool).scatter_(0, order[magnitude.numel() - zeros :], False)


@torch.no_grad()
def largest_masks(weights: Mapping[str, Tensor], sparsity: float) -> dict[str, Tensor]:
    """Masks of the entries with the largest magnitude in all weights together.

    One threshold holds for all weights, so each weight gets a sparsity of its own. The largest entry of every weight is
    always kept, since a layer without any weights would pass nothing on.

    Args:
        weights: One or more tensors of any shapes, by name.
        sparsity: Share of zeros among all entries together, in [0, 1).

    Returns:
        Masks as of :func:`largest_mask`, by name. Exactly ``zero_count(all entries, sparsity)`` entries are 0, or all
        but one of each weight if these are fewer.

    Raises:
        ValueError: ``sparsity`` is outside [0, 1), or a weight holds NaN (checked on a CPU only).
    """
    magnitudes = [weight.detach().abs().flatten().float() for weight in weights.values()]
    for magnitude in magnitudes:
        if _is_on_cpu(magnitude):
            _refuse_nan(magnitude)
        magnitude.scatter_(0, magnitude.argmax(0, keepdim=True), torch.inf)
    every = torch.cat(magnitudes)
    zeros = min(zero_count(every.numel(), sparsity), every.numel() - len(magnitudes))
    if zeros == 0:
        return {name: torch.ones_like(weight) for name, weight in weights.items()}
    threshold = magnitude_threshold(every, zeros) if _is_on_cpu(every) else None
    kept = every > threshold if threshold is not None else _stable_top_mask(every, zeros)
    pieces = torch.split(kept, [magnitude.numel() for magnitude in magnitudes])
    return {
        name: piece.view_as(weight).to(weight.dtype)
        for (name, weight), piece in zip(weights.items(), pieces, strict=True)
    }


@torch.no_grad()
def block_mask(weight: Tensor, kept: int) -> Tensor:
    """Mask of the ``kept`` largest entries in each block of four consecutive inputs.

    With ``kept=2`` this is the 2:4 pattern of accelerators.

    Args:
        weight: A tensor of shape ``(outputs, inputs, ...)``, where the number of inputs is a multiple of 4.
        kept: Number of entries kept in each block, 1 to 4.

    Returns:
        A mask as of :func:`largest_mask`.

    Raises:
        ValueError: The number of inputs is not a multiple of 4, ``kept`` is out of range, or the weight holds NaN
            (checked on a CPU only).
    """
    if weight.shape[1] % BLOCK:
        raise ValueError(f"the weight has {weight.shape[1]} inputs, which is not a multiple of {BLOCK}")
    if not 1 <= kept <= BLOCK:
        raise ValueError(f"kept={kept!r} is not in 1..{BLOCK}")
    if _is_on_cpu(weight):
        _refuse_nan(weight)
    blocks = torch.unflatten(weight.detach().abs(), 1, (-1, BLOCK))
    order = blocks.argsort(dim=2, descending=True, stable=True)
    mask = torch.zeros_like(blocks).scatter_(2, order.narrow(2, 0, kept), 1.0)
    return mask.flatten(1, 2)
