"""Affine quantization to a few bits, simulated in floating point (arXiv 2110.04252, quantized mode).

Nothing here reads a value back to Python: ranges, scales and zero points stay tensors.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

MIN_BITS, MAX_BITS = 2, 8


def integer_range(bits: int) -> tuple[int, int]:
    """``[-2^(b-1), 2^(b-1) - 1]``.

    Raises:
        ValueError: ``bits`` is not in 2..8.
    """
    if not MIN_BITS <= bits <= MAX_BITS:
        raise ValueError(f"bits={bits!r} is not in {MIN_BITS}..{MAX_BITS}")
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def affine_parameters(low: Tensor, high: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Scale and zero point of a range.

    The range is widened to include 0, ``scale = (high - low) / (2^b - 1)``, and ``zero_point = round(qmin - low /
    scale)``, clipped, so that 0 is represented exactly.

    Args:
        low: smallest value or values.
        high: largest, of the same shape.
        bits: 2 to 8.

    Returns:
        Scale, and the zero point as int32; for a range that is 0 alone the scale is 1.
    """
    scale, zero_point = _parameters(low, high, bits)
    return scale, zero_point.to(torch.int32)


def _parameters(low: Tensor, high: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """:func:`affine_parameters`, the zero point as a float: each operation counts, where tensors are that small."""
    qmin, qmax = integer_range(bits)
    low, high = low.float().clamp(max=0.0), high.float().clamp(min=0.0)
    scale = (high - low) / (qmax - qmin)
    # A range below float32's smallest normal number has no reciprocal: its values are 0 at any precision.
    scale = torch.where(scale > torch.finfo(torch.float32).tiny, scale, 1.0)
    return scale, (qmin - low / scale).round().clamp(qmin, qmax)


def fake_quantize(x: Tensor, low: Tensor, high: Tensor, bits: int) -> Tensor:
    """``(q - zero_point) * scale`` with ``q = clip(round(x / scale) + zero_point)``; gradients pass straight through.

    Args:
        x: values of any shape.
        low: lower end of the range: a scalar, or one per entry of dimension 0 of ``x``.
        high: upper end.
        bits: 2 to 8.
    """
    return round_to_grid(x, affine_grid(low, high, bits))


@dataclasses.dataclass(frozen=True)
class AffineGrid:
    """Scale, zero point (a whole number, as a float), and the bits."""

    scale: Tensor
    zero_point: Tensor
    bits: int

    @functools.cached_property
    def ends(self) -> tuple[Tensor, Tensor]:
        """The smallest and the largest multiple of the scale."""
        qmin, qmax = integer_range(self.bits)
        return qmin - self.zero_point, qmax - self.zero_point


def affine_grid(low: Tensor, high: Tensor, bits: int) -> AffineGrid:
    """The grid of a range; arguments as in :func:`affine_parameters`."""
    return AffineGrid(*_parameters(low, high, bits), bits)


def affine_grids(ranges: Mapping[str, tuple[Tensor, Tensor]], bits: Mapping[str, int]) -> dict[str, AffineGrid]:
    """:func:`affine_grid` for many ranges; those of as many bits on one device in one go.

    On an accelerator each of its dozen operations on a few numbers costs as much to launch as rounding a weight.

    Args:
        ranges: lower and upper ends by name, as :func:`value_range` gives them.
        bits: 2 to 8, by the same names.
    """
    alike: dict[tuple[int, torch.device], list[str]] = {}
    for name, (low, _) in ranges.items():
        alike.setdefault((bits[name], low.device), []).append(name)
    found = {}
    for (count, _), names in alike.items():
        lows, highs = zip(*(ranges[name] for name in names), strict=True)
        low, high = (torch.cat([end.reshape(-1) for end in ends]) for ends in (lows, highs))
        sizes = [end.numel() for end in lows]
        scales, zero_points = (torch.split(values, sizes) for values in _parameters(low, high, count))
        for name, end, scale, zero_point in zip(names, lows, scales, zero_points, strict=True):
            found[name] = AffineGrid(scale.view_as(end), zero_point.view_as(end), count)
    return found


def round_to_grid(x: Tensor, grid: AffineGrid) -> Tensor:
    """:func:`fake_quantize` with a grid that :func:`affine_grid` gave."""
    if not (x.requires_grad and torch.is_grad_enabled()):
        return _round(x, grid)
    result: Tensor = _RoundToGrid.apply(x, grid)
    return result


def _round(x: Tensor, grid: AffineGrid) -> Tensor:
    # Passes in place: a fraction of the time of torch's fake_quantize, which computes a mask, too. Two bounds one after
    # the other: with tensors as its bounds clamp is not vectorized, and takes three times as long as all of this.
    scale, first, last = (_along_first(values, x) for values in (grid.scale, *grid.ends))
    values = torch.div(x.float(), scale).round_()
    torch.minimum(values, last, out=values)
    torch.maximum(values, first, out=values)
    return values.mul_(scale).to(x.dtype)


class _RoundToGrid(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, grid: AffineGrid) -> Tensor:
        if x.is_cuda and grid.scale.ndim == 0:
            # One pass instead of seven: 0.16 ms for 1.2 (51 million entries in bfloat16, H200). It multiplies by the
            # scale's reciprocal, so that a tie may round to the other side; and has no NaN but that of the scale, which
            # a range that follows its values has.
            zero_point = grid.zero_point.to(torch.int32)
            return torch.fake_quantize_per_tensor_affine(x, grid.scale, zero_point, *integer_range(grid.bits))
        return _round(x, grid)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


@torch.no_grad()
def value_range(x: Tensor, per_channel: bool = False) -> tuple[Tensor, Tensor]:
    """Smallest and largest value: of all, or of each entry of dimension 0."""
    low, high = torch.aminmax(x.detach().flatten(1), dim=1) if per_channel else torch.aminmax(x.detach())
    return low, high


def quantize(x: Tensor, scale: Tensor, zero_point: Tensor, bits: int) -> Tensor:
    """``clip(round(x / scale) + zero_point)``: the integers that stand for values.

    Args:
        x: values of any shape.
        scale: a scalar, or one per entry of dimension 0 of ``x``.
        zero_point: of the scale's shape.
        bits: 2 to 8.

    Returns:
        int8, in ``integer_range(bits)``.
    """
    scale, zero_point = _along_first(scale, x), _along_first(zero_point, x)
    return ((x.float() / scale).round() + zero_point).clamp(*integer_range(bits)).to(torch.int8)


def dequantize(integers: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """``(q - zero_point) * scale``, the inverse of :func:`quantize` up to half a scale; float32."""
    return (integers.float() - _along_first(zero_point, integers)) * _along_first(scale, integers)


def narrow_bits(master: Tensor, bits: int) -> Tensor:
    """The integers of fewer bits that eight-bit ones stand for: the upper bits, by an arithmetic shift.

    Args:
        master: int8, as :func:`quantize` gives it with 8 bits.
        bits: 2 to 8.

    Returns:
        int8, in ``integer_range(bits)``.
    """
    integer_range(bits)
    return master >> (MAX_BITS - bits)


def dequantize_narrowed(integers: Tensor, scale: Tensor, zero_point: Tensor, bits: int) -> Tensor:
    """Values of what :func:`narrow_bits` gave, with the scale and the zero point of the eight-bit integers.

    A shift drops between 0 and ``2^(8 - bits) - 1``; the middle of these is put back, half a step less half a unit.
    With ``r`` the width of the range, no value within it then lies further from its own than ``2^(8 - bits) / 2 * r /
    255``, plus the rounding of the zero point: where direct quantization to so many bits has ``r / (2 (2^bits - 1))``,
    which is a little more. Unlike there 0 is not represented exactly below eight bits, so that weights that are exactly
    zero (pruned ones) do not stay so.

    Returns:
        float32 of the shape of ``integers``.
    """
    shift = MAX_BITS - bits
    middle = ((1 << shift) - 1) / 2.0
    return dequantize(integers.float() * (1 << shift) + middle, scale, zero_point)


def _along_first(values: Tensor, x: Tensor) -> Tensor:
    return values.view(-1, *[1] * (x.ndim - 1)) if values.ndim else values
