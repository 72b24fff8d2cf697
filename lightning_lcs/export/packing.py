"""Integers of 2 to 8 bits without gaps between them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from lightning_lcs.functional.quantization import integer_range

Bytes = npt.NDArray[np.uint8]
# Unpacked bits take eight times the memory of the values, so that values are packed in parts. The size of a part is a
# multiple of 8, so that each part ends at a byte.
_PART = 1 << 20


def packed_size(count: int, bits: int) -> int:
    """The number of bytes that ``count`` integers of ``bits`` bits take."""
    integer_range(bits)
    return -(-count * bits // 8)


def pack_bits(integers: npt.NDArray[np.int8], bits: int) -> Bytes:
    """Integers as a stream of bits, in two's complement, the lowest bit first; the last byte is filled up with zeros.

    Args:
        integers: int8, any shape, in ``[-2^(bits-1), 2^(bits-1) - 1]``.
        bits: 2 to 8.

    Returns:
        ``packed_size(integers.size, bits)`` bytes.

    Raises:
        ValueError: an integer that does not fit.
    """
    low, high = integer_range(bits)
    flat = np.ascontiguousarray(integers, dtype=np.int8).reshape(-1)
    if flat.size and (flat.min() < low or flat.max() > high):
        raise ValueError(
            f"integers hold {flat.min()} to {flat.max()}, and {bits} bits hold {low} to {high}: use more bits"
        )
    packed = np.empty(packed_size(flat.size, bits), np.uint8)
    for start in range(0, flat.size, _PART):
        part = flat[start : start + _PART].view(np.uint8)
        digits = np.unpackbits(part[:, None], axis=1, count=bits, bitorder="little")
        first = start * bits // 8
        packed[first : first + packed_size(part.size, bits)] = np.packbits(digits.reshape(-1), bitorder="little")
    return packed


def unpack_bits(packed: Bytes, bits: int, count: int) -> npt.NDArray[np.int8]:
    """The integers that :func:`pack_bits` packed.

    Args:
        packed: bytes.
        bits: 2 to 8.
        count: how many integers there are.

    Returns:
        int8 of shape ``(count,)``.

    Raises:
        ValueError: the number of bytes does not fit.
    """
    if packed.size != packed_size(count, bits):
        raise ValueError(
            f"{count} integers of {bits} bits take {packed_size(count, bits)} bytes, and there are {packed.size}"
        )
    integers = np.empty(count, np.int8)
    for start in range(0, count, _PART):
        size = min(_PART, count - start)
        first = start * bits // 8
        digits = np.unpackbits(
            packed[first : first + packed_size(size, bits)], count=size * bits, bitorder="little"
        ).reshape(size, bits)
        # The sign is extended to the upper bits.
        filled = np.concatenate([digits, np.repeat(digits[:, -1:], 8 - bits, axis=1)], axis=1)
        integers[start : start + size] = np.packbits(filled, axis=1, bitorder="little")[:, 0].view(np.int8)
    return integers
