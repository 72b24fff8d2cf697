"""Ranges of values at few bits: from the smallest to the largest value, or those whose grid has the least error.

A search has two halves: :func:`observe` takes from a tensor what the search needs, and :func:`find_ranges` finds the
ranges of many tensors together. On an accelerator, launching each of the three dozen operations for one tensor costs as
much as rounding a whole weight.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lightning_lcs.functional.quantization import grids_of_rows, integers_of_rows, value_range

# "minmax": from the smallest to the largest value; "mse": the range whose grid has the least squared error.
SEARCHES = ("minmax", "mse")
# The errors of ranges are compared in samples of about this many entries; with ranges of channels, in this many of each
# channel, or in fewer where there are more channels than fit into so many in all.
_SAMPLE, _OF_CHANNEL, _OF_CHANNELS = 1 << 12, 64, 1 << 18
# So many entries of samples are tried at once: on a processor what fits its cache, elsewhere what bounds the memory.
_TOGETHER_IN_CACHE, _TOGETHER = 1 << 13, 1 << 20


@dataclasses.dataclass(frozen=True)
class Observed:
    """What a search for a range needs of a tensor.

    Attributes:
        low: The smallest values: a scalar, or one for each channel.
        high: The largest values, of the shape of ``low``.
        bits: Number of bits, 2 to 8.
        sample: Some of the values, of shape ``(n,)`` or ``(channels, n)``; ``None`` for "minmax".
        size: The number of values that each sample stands for.
    """

    low: Tensor
    high: Tensor
    bits: int
    sample: Tensor | None
    size: int

    def copied(self) -> Observed:
        """The same with a sample of its own, which does not keep the tensor in memory."""
        return self if self.sample is None else dataclasses.replace(self, sample=self.sample.contiguous())


@torch.no_grad()
def observe(x: Tensor, bits: int, per_channel: bool, search: str) -> Observed:
    """What a search needs of a tensor.

    Args:
        x: Values of any shape.
        bits: Number of bits, 2 to 8.
        per_channel: Whether each entry of dimension 0 has a range of its own.
        search: One of :data:`SEARCHES`.
    """
    rows, size = (len(x), x[0].numel()) if per_channel else (1, x.numel())
    sample = _sample(x.detach(), rows, size, per_channel) if search == "mse" else None
    return Observed(*value_range(x, per_channel), bits, sample, size)


def _sample(x: Tensor, rows: int, size: int, per_channel: bool) -> Tensor:
    """Every k-th value, where k meets all columns of every inner shape."""
    count = max(_SAMPLE // rows, min(_OF_CHANNEL, _OF_CHANNELS // rows), 8)
    stride = next(step for step in itertools.count(max(1, size // count)) if math.gcd(step, size) == 1)
    if per_channel:
        return x.flatten(1)[:, ::stride].float()
    if x.is_contiguous():
        return x.flatten()[::stride].float()
    # Flattening would copy the whole tensor.
    return x.take(torch.arange(0, size, stride, device=x.device)).float()


@torch.no_grad()
def find_ranges(observed: Sequence[Observed]) -> list[tuple[Tensor, Tensor]]:
    """The ranges of tensors: of those with a sample, the one of the least error; see :func:`least_error_range`.

    Args:
        observed: What :func:`observe` returned for each.

    Returns:
        The lower and the upper ends, in the order of ``observed``: scalars, or tensors of shape ``(channels,)``.

    Example:
        >>> import torch
        >>> from lightning_lcs.functional.ranges import find_ranges, observe
        >>> x = torch.linspace(-1.0, 2.0, 100)
        >>> [(low, high)] = find_ranges([observe(x, bits=8, per_channel=False, search="minmax")])
        >>> float(low), float(high)
        (-1.0, 2.0)
    """
    ranges = [(one.low, one.high) for one in observed]
    for places in _together(observed):
        chosen = [observed[place] for place in places]
        low, high = (torch.cat([ranges[place][end].reshape(-1) for place in places]) for end in (0, 1))
        ratios = _least_error_ratios(low, high, chosen)
        parts = (torch.split(end * ratios, [one.low.numel() for one in chosen]) for end in (low, high))
        for place, one, *ends in zip(places, chosen, *parts, strict=True):
            ranges[place] = (ends[0].view_as(one.low), ends[1].view_as(one.low))
    return ranges


def _together(observed: Sequence[Observed]) -> Iterator[list[int]]:
    """The places of samples that are tried together, those of similar lengths with each other."""
    groups: dict[torch.device, list[int]] = {}
    for place, one in enumerate(observed):
        if one.sample is not None:
            groups.setdefault(one.sample.device, []).append(place)
    for device, places in groups.items():
        most = _TOGETHER_IN_CACHE if device.type == "cpu" else _TOGETHER
        chunk: list[int] = []
        rows = 0
        for place in sorted(places, key=lambda place: _length(observed[place])):
            rows += observed[place].low.numel()
            if chunk and rows * _length(observed[place]) > most:
                yield chunk
                chunk, rows = [], observed[place].low.numel()
            chunk.append(place)
        yield chunk


def _length(one: Observed) -> int:
    return 0 if one.sample is None else one.sample.shape[-1]


def _least_error_ratios(low: Tensor, high: Tensor, observed: Sequence[Observed]) -> Tensor:
    """Of the ratios 1, 0.95 and so on down to 0.25, the one of each range with the least error."""
    samples = [one.sample.view(-1, _length(one)) for one in observed if one.sample is not None]
    sizes = [one.low.numel() for one in observed]
    integers = integers_of_rows([one.bits for one in observed], sizes, low)
    # A smaller range has a smaller scale and the same zero point.
    scale, _, first, last = (values.unsqueeze(1) for values in grids_of_rows(low, high, *integers))
    ratios = torch.linspace(1.0, 0.25, 16, device=low.device).view(-1, 1, 1)
    scales = ratios * scale
    exact = _padded(samples) / scales
    values = exact.round()
    torch.minimum(values, last, out=values)
    torch.maximum(values, first, out=values)
    # Zeros, which fill short samples, have no error.
    errors = values.sub_(exact).square_().sum(-1, keepdim=True) * scales.square() * _factors(observed, sizes, low)
    # A sample may miss the largest values, of which at least these two would be clipped.
    clipped = ((1.0 - ratios) * scale).square() * (first.square() + last.square())
    # The first of equal errors is the widest range.
    return ratios.flatten()[torch.maximum(errors, clipped).argmin(0).flatten()]


def _factors(observed: Sequence[Observed], sizes: Sequence[int], like: Tensor) -> float | Tensor:
    """The number of values for each of a sample, for each row, as a column."""
    factors = [one.size / _length(one) for one in observed]
    if len(set(factors)) == 1:
        return factors[0]
    rows = torch.tensor([factor for factor, size in zip(factors, sizes, strict=True) for _ in range(size)])
    # The copy must not wait for the device.
    return rows.to(like.device, non_blocking=True).unsqueeze(1)


def _padded(samples: Sequence[Tensor]) -> Tensor:
    """Samples below each other, the shorter ones with zeros at their ends."""
    length = max(sample.shape[1] for sample in samples)
    if all(sample.shape[1] == length for sample in samples):
        return torch.cat(list(samples)) if len(samples) > 1 else samples[0]
    if all(len(sample) == 1 for sample in samples):
        zeros = samples[0].new_zeros(length)
        return torch.cat([x for (row,) in samples for x in (row, zeros[len(row) :])]).view(-1, length)
    padded = samples[0].new_zeros(sum(map(len, samples)), length)
    for part, sample in zip(torch.split(padded, list(map(len, samples))), samples, strict=True):
        part[:, : sample.shape[1]].copy_(sample)
    return padded


def find_range(x: Tensor, bits: int, per_channel: bool, search: str) -> tuple[Tensor, Tensor]:
    """The range of one tensor; the arguments are those of :func:`observe`.

    Returns:
        The ends of the range: two scalars, or two tensors of shape ``(x.shape[0],)``.
    """
    return find_ranges([observe(x, bits, per_channel, search)])[0]


def least_error_range(x: Tensor, bits: int, per_channel: bool = False) -> tuple[Tensor, Tensor]:
    """The range whose grid is nearest to the values of a tensor: some values are clipped so that all others are finer.

    The ranges that are tried are those of :func:`value_range` times 1, 0.95 and so on down to 0.25. Their squared
    errors are taken from a sample of the values: every k-th one, about 4,096 in all, and 64 of each channel or, of more
    than 4,096 channels, fewer.

    Args:
        x: Values of any shape.
        bits: Number of bits, 2 to 8.
        per_channel: Whether to return one pair per entry of dimension 0. The default is one pair for the whole tensor.

    Returns:
        The ends of the range: two scalars, or two tensors of shape ``(x.shape[0],)``.

    Example:
        >>> import torch
        >>> from lightning_lcs.functional.ranges import least_error_range
        >>> x = torch.cat([torch.linspace(-1.0, 1.0, 1001), torch.tensor([3.0])])
        >>> low, high = least_error_range(x, bits=3)
        >>> bool(high < 3.0), bool(least_error_range(x, bits=8)[1] == 3.0)
        (True, True)
    """
    return find_range(x, bits, per_channel, "mse")
