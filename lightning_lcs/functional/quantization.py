"""Affine quantization to 2 to 8 bits, simulated in floating point (arXiv 2110.04252, quantized mode).

Ranges, scales and zero points stay tensors, so nothing here waits for an accelerator.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

MIN_BITS, MAX_BITS = 2, 8


def integer_range(bits: int) -> tuple[int, int]:
    """The smallest and the largest integer of ``bits`` bits: ``-2^(bits - 1)`` and ``2^(bits - 1) - 1``.

    Args:
        bits: Number of bits, 2 to 8.

    Raises:
        ValueError: ``bits`` is not in 2..8.
    """
    if not MIN_BITS <= bits <= MAX_BITS:
        raise ValueError(f"bits={bits!r} is not in {MIN_BITS}..{MAX_BITS}")
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def affine_parameters(low: Tensor, high: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Scale and zero point of a range of values.

    The range is first widened to include 0. Then ``scale = (high - low) / (2^bits - 1)``, and ``zero_point`` is
    ``round(qmin - low / scale)``, clipped to the integers of ``bits`` bits, so that 0 is represented exactly.

    Args:
        low: Smallest values: a scalar, or one value per channel.
        high: Largest values, of the same shape.
        bits: Number of bits, 2 to 8.

    Returns:
        The scale as float32 and the zero point as int32, both of the shape of ``low``. The scale of a range that holds
        only 0 is 1.
    """
    grid = affine_grid(low, high, bits)
    return grid.scale, grid.zero_point


def fake_quantize(x: Tensor, low: Tensor, high: Tensor, bits: int) -> Tensor:
    """Values after quantization and dequantization, ``(q - zero_point) * scale``, in one pass.

    Here ``q = clip(round(x / scale) + zero_point)``. The gradient with respect to ``x`` is that of the identity
    (straight-through estimator).

    Args:
        x: Values of any shape.
        low: Lower end of the range: a scalar, or one value per entry of dimension 0 of ``x``.
        high: Upper end of the range, of the same shape.
        bits: Number of bits, 2 to 8.

    Returns:
        A tensor of the shape and dtype of ``x``.
    """
    return round_to_grid(x, affine_grid(low, high, bits))


@dataclasses.dataclass(frozen=True)
class AffineGrid:
    """The values that an affine quantization can represent.

    Attributes:
        scale: Distance between neighbouring values: a scalar, or one per channel.
        zero_point: The integer that stands for 0, as int32, of the shape of ``scale``.
        ends: The smallest and the largest value as multiples of the scale, of its shape.
        bits: Number of bits, 2 to 8.
    """

    scale: Tensor
    zero_point: Tensor
    ends: tuple[Tensor, Tensor]
    bits: int

    def to(self, device: torch.device) -> AffineGrid:
        """The same grid on a device."""
        first, last = self.ends
        ends = (first.to(device), last.to(device))
        return AffineGrid(self.scale.to(device), self.zero_point.to(device), ends, self.bits)


def affine_grid(low: Tensor, high: Tensor, bits: int) -> AffineGrid:
    """The grid of a range of values.

    Args:
        low: Smallest values: a scalar, or one value per channel.
        high: Largest values, of the same shape.
        bits: Number of bits, 2 to 8.
    """
    qmin, qmax = integer_range(bits)
    scale, zero_point, *ends = grids_of_rows(low, high, float(qmin), float(qmax))
    return AffineGrid(scale, zero_point.to(torch.int32), (ends[0], ends[1]), bits)


def grids_of_rows(low: Tensor, high: Tensor, qmin: float | Tensor, qmax: float | Tensor) -> tuple[Tensor, ...]:
    """Scales, zero points as floats, and the ends in multiples of the scale, of ranges of any numbers of bits.

    Args:
        low: Smallest values.
        high: Largest values, of the same shape.
        qmin: The smallest integer: a number, or a tensor of the shape of ``low``.
        qmax: The largest integer, likewise.
    """
    low, high = low.float().clamp(max=0.0), high.float().clamp(min=0.0)
    scale = (high - low) / (qmax - qmin)
    # A scale below float32's smallest normal number has no reciprocal. All values of its range round to 0 anyway.
    scale = torch.where(scale > torch.finfo(torch.float32).tiny, scale, 1.0)
    zero_point = torch.clamp((qmin - low / scale).round(), qmin, qmax)  # type: ignore[arg-type]
    return scale, zero_point, qmin - zero_point, qmax - zero_point


def integers_of_rows(bits: Sequence[int], sizes: Sequence[int], like: Tensor) -> tuple[float | Tensor, float | Tensor]:
    """The smallest and the largest integer of rows, of which ``sizes[i]`` have ``bits[i]`` bits.

    Returns:
        Two numbers where all rows have the same number of bits, or two tensors on the device of ``like``.
    """
    ends = list(map(integer_range, bits))
    if len(set(ends)) == 1:
        return ends[0]
    rows = torch.tensor([end for end, size in zip(ends, sizes, strict=True) for _ in range(size)], dtype=torch.float32)
    # The copy must not wait for the device.
    qmin, qmax = rows.to(like.device, non_blocking=True).unbind(1)
    return qmin, qmax


def affine_grids(ranges: Mapping[str, tuple[Tensor, Tensor]], bits: Mapping[str, int]) -> dict[str, AffineGrid]:
    """The grids of many ranges, computed together for each device.

    On an accelerator, launching each of the dozen operations on a few numbers costs as much as rounding a whole weight.

    Args:
        ranges: Lower and upper ends by name, as :func:`value_range` returns them.
        bits: Number of bits, 2 to 8, by the same names.

    Returns:
        The grids, by the same names.
    """
    groups: dict[torch.device, list[str]] = {}
    for name, (low, _) in ranges.items():
        groups.setdefault(low.device, []).append(name)
    grids = {}
    for names in groups.values():
        lows, highs = zip(*(ranges[name] for name in names), strict=True)
        low, high = (torch.cat([end.reshape(-1) for end in ends]) for ends in (lows, highs))
        sizes = [end.numel() for end in lows]
        scale, zero_point, *ends = grids_of_rows(
            low, high, *integers_of_rows([bits[name] for name in names], sizes, low)
        )
        parts = (torch.split(values, sizes) for values in (scale, zero_point.to(torch.int32), *ends))
        for name, end, *own in zip(names, lows, *parts, strict=True):
            scale, zero_point, first, last = (values.view_as(end) for values in own)
            grids[name] = AffineGrid(scale, zero_point, (first, last), bits[name])
    return grids


def round_to_grid(x: Tensor, grid: AffineGrid) -> Tensor:
    """:func:`fake_quantize` with a grid that was computed before.

    Args:
        x: Values of any shape.
        grid: The grid, with a scalar scale or one scale per entry of dimension 0 of ``x``.
    """
    if not (x.requires_grad and torch.is_grad_enabled()):
        return _round(x, grid)
    result: Tensor = _RoundToGrid.apply(x, grid)
    return result


def _round(x: Tensor, grid: AffineGrid) -> Tensor:
    # In-place passes take a fraction of the time of torch's fake_quantize, which also computes a mask.
    scale, first, last = (_along_first(values, x) for values in (grid.scale, *grid.ends))
    values = torch.div(x.float(), scale).round_()
    if values.device.type == "cpu":
        # clamp with tensors as bounds is not vectorized here, and takes three times as long as this whole function.
        torch.minimum(values, last, out=values)
        torch.maximum(values, first, out=values)
    else:
        values.clamp_(first, last)
    return values.mul_(scale).to(x.dtype)


class _RoundToGrid(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, grid: AffineGrid) -> Tensor:
        if x.is_cuda and grid.scale.ndim == 0:
            # One pass instead of seven takes 0.16 ms instead of 1.2 (51 million entries in bfloat16, H200). It
            # multiplies by the scale's reciprocal, so a tie may round to the other side. It does not pass on NaN in x;
            # but then the scale is NaN too, because the range follows the values.
            return torch.fake_quantize_per_tensor_affine(x, grid.scale, grid.zero_point, *integer_range(grid.bits))
        return _round(x, grid)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


@torch.no_grad()
def value_range(x: Tensor, per_channel: bool = False) -> tuple[Tensor, Tensor]:
    """The smallest and the largest value of a tensor.

    Args:
        x: Values of any shape.
        per_channel: Whether to return one pair per entry of dimension 0. The default is one pair for the whole tensor.

    Returns:
        The smallest and the largest value: two scalars, or two tensors of shape ``(x.shape[0],)``.
    """
    low, high = torch.aminmax(x.detach().flatten(1), dim=1) if per_channel else torch.aminmax(x.detach())
    return low, high


def quantize(x: Tensor, scale: Tensor, zero_point: Tensor, bits: int) -> Tensor:
    """The integers that represent values, ``clip(round(x / scale) + zero_point)``.

    Args:
        x: Values of any shape.
        scale: A scalar, or one value per entry of dimension 0 of ``x``.
        zero_point: The integer that represents 0, of the shape of ``scale``.
        bits: Number of bits, 2 to 8.

    Returns:
        An int8 tensor of the shape of ``x``, with values in ``integer_range(bits)``.
    """
    scale, zero_point = _along_first(scale, x), _along_first(zero_point, x)
    return ((x.float() / scale).round() + zero_point).clamp(*integer_range(bits)).to(torch.int8)


def dequantize(integers: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """The values that integers represent, ``(integers - zero_point) * scale``.

    This is the inverse of :func:`quantize`, up to half of the scale for values within the range.

    Args:
        integers: Integers of any shape.
        scale: A scalar, or one value per entry of dimension 0 of ``integers``.
        zero_point: The integer that represents 0, of the shape of ``scale``.

    Returns:
        A float32 tensor of the shape of ``integers``.
    """
    return (integers.float() - _along_first(zero_point, integers)) * _along_first(scale, integers)


def narrow_bits(master: Tensor, bits: int) -> Tensor:
    """The upper bits of eight-bit integers, by an arithmetic shift to the right.

    One set of eight-bit integers therefore holds every smaller bit width, too.

    Args:
        master: Eight-bit integers of any shape, as int8, such as ``quantize(x, scale, zero_point, 8)`` returns.
        bits: Number of bits to keep, 2 to 8.

    Returns:
        An int8 tensor of the shape of ``master``, with values in ``integer_range(bits)``.

    Raises:
        ValueError: ``bits`` is not in 2..8.

    Example:
        >>> import torch
        >>> from lightning_lcs.functional.quantization import narrow_bits
        >>> narrow_bits(torch.tensor([-128, -1, 0, 16, 127], dtype=torch.int8), bits=4).tolist()
        [-8, -1, 0, 1, 7]
    """
    integer_range(bits)
    return master >> (MAX_BITS - bits)


def dequantize_narrowed(integers: Tensor, scale: Tensor, zero_point: Tensor, bits: int) -> Tensor:
    """The values that the integers of :func:`narrow_bits` represent.

    The shift drops between 0 and ``2^(8 - bits) - 1`` of each eight-bit integer. The middle of that interval is added
    back. With ``r`` the width of the range, the error of a value within the range is then at most
    ``2^(8 - bits) / 2 * r / 255``, plus the rounding of the zero point. Direct quantization to the same number of bits
    has the slightly larger bound ``r / (2 (2^bits - 1))``. Below eight bits, 0 is not represented exactly (direct
    quantization does that), so weights that are exactly zero, such as pruned ones, do not stay zero.

    Args:
        integers: Integers of ``bits`` bits, of any shape.
        scale: The scale of the eight-bit integers: a scalar, or one value per entry of dimension 0 of ``integers``.
        zero_point: The zero point of the eight-bit integers, of the shape of ``scale``.
        bits: Number of bits of ``integers``, 2 to 8.

    Returns:
        A float32 tensor of the shape of ``integers``.

    Example:
        >>> import torch
        >>> from lightning_lcs.functional.quantization import affine_parameters, quantize
        >>> from lightning_lcs.functional.quantization import dequantize_narrowed, narrow_bits
        >>> x = torch.linspace(-1.0, 1.0, 5)
        >>> scale, zero_point = affine_parameters(x.min(), x.max(), bits=8)
        >>> master = quantize(x, scale, zero_point, bits=8)
        >>> values = dequantize_narrowed(narrow_bits(master, bits=4), scale, zero_point, bits=4)
        >>> bool((values - x).abs().max() < 1 / 15)
        True
    """
    shift = MAX_BITS - bits
    middle = ((1 << shift) - 1) / 2.0
    return dequantize(integers.float() * (1 << shift) + middle, scale, zero_point)


def _along_first(values: Tensor, x: Tensor) -> Tensor:
    """One value per entry of dimension 0, shaped so that it broadcasts with ``x``; a scalar stays as it is."""
    return values.view(-1, *[1] * (x.ndim - 1)) if values.ndim else values
