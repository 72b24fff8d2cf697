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
    """Pack integers into a stream of bits, in two's complement, the lowest bit first.

    The last byte is filled up with zeros.

    Args:
        integers: The integers, int8 of any shape, in ``[-2^(bits-1), 2^(bits-1) - 1]``.
        bits: The bits of each integer, 2 to 8.

    Returns:
        The bytes, uint8 of shape ``(ceil(integers.size * bits / 8),)``.

    Raises:
        ValueError: An integer does not fit into ``bits``, or ``bits`` is not in 2 to 8.

    Example:
        >>> import numpy as np
        >>> from lightning_lcs.export import pack_bits
        >>> pack_bits(np.array([1, -1, 0, -4], dtype=np.int8), bits=3).tolist()
        [57, 8]
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
    """Unpack the integers that :func:`pack_bits` packed.

    Args:
        packed: The bytes, uint8 of shape ``(ceil(count * bits / 8),)``.
        bits: The bits of each integer, 2 to 8.
        count: The number of integers.

    Returns:
        The integers, int8 of shape ``(count,)``.

    Raises:
        ValueError: The number of bytes does not fit ``count`` and ``bits``, or ``bits`` is not in 2 to 8.

    Example:
        >>> import numpy as np
        >>> from lightning_lcs.export import pack_bits, unpack_bits
        >>> packed = pack_bits(np.array([1, -1, 0, -4], dtype=np.int8), bits=3)
        >>> unpack_bits(packed, bits=3, count=4).tolist()
        [1, -1, 0, -4]
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
