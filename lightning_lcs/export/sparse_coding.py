"""Codes the positions of the entries of a sparse tensor in few bytes, and their values."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_lcs.export.packing import pack_bits, packed_size, unpack_bits

Array = npt.NDArray[Any]
VALUES = ("float32", "float16", "int8")
_WIDTHS = range(2, 9)


@dataclasses.dataclass(frozen=True)
class Packed:
    """A tensor as its nonzero entries, or as it is if that is smaller.

    Attributes:
        coding: "bitmask" (a bit per entry), "gap" (the distances between entries, of ``bits`` bits each) or "dense".
        shape: The shape of the tensor.
        index: The bytes of the coded positions; empty if the tensor is dense.
        values: The stored values of the entries, in order; the tensor itself if it is dense.
        bits: The bits of a distance.
        codes: The number of codes of distances; a distance that is too large for one code takes several.
        scale: The scale of values that are stored as int8; else 1.
    """

    coding: str
    shape: tuple[int, ...]
    index: Tensor
    values: Tensor
    bits: int = 0
    codes: int = 0
    scale: float = 1.0

    @property
    def size_bytes(self) -> int:
        """The bytes of the index and the values."""
        return self.index.numel() + self.values.numel() * self.values.element_size()


def pack(tensor: Tensor, values: str) -> Packed:
    """Pack a tensor with the coding that takes the fewest bytes.

    Args:
        tensor: The tensor. A tensor that is not float32 stays dense.
        values: "float32" (exact except for the sign of zeros), "float16" or "int8" (with one scale, and an error of at
            most half a step).

    Raises:
        ValueError: ``values`` is not known, or the tensor has a value that this type can't hold.
    """
    if values not in VALUES:
        raise ValueError(f"values={values!r} is not known; choose one of {', '.join(map(repr, VALUES))}")
    tensor = tensor.detach().cpu().contiguous()
    shape, nothing = tuple(tensor.shape), torch.empty(0, dtype=torch.uint8)
    dense = Packed("dense", shape, nothing, tensor.clone())
    if tensor.dtype != torch.float32 or tensor.numel() == 0:
        return dense
    entry = tensor.reshape(-1).numpy() != 0
    places = np.flatnonzero(entry)
    mask_size = -(-entry.size // 8)
    gap_size, bits = min((_gap_size(places, width), width) for width in _WIDTHS)
    # A tensor that does not shrink, such as a bias, is not rounded either.
    if min(mask_size, gap_size) + places.size * 4 >= tensor.numel() * 4:
        return dense
    stored, scale = _stored(tensor.reshape(-1)[torch.from_numpy(places)], values)
    if gap_size < mask_size:
        codes = _gap_codes(places, bits)
        index = pack_bits((codes - (1 << (bits - 1))).astype(np.int8), bits)
        return Packed("gap", shape, torch.from_numpy(index), stored, bits, codes.size, scale)
    return Packed("bitmask", shape, torch.from_numpy(np.packbits(entry, bitorder="little")), stored, scale=scale)


def unpack(packed: Packed) -> Tensor:
    """Unpack a tensor that :func:`pack` packed.

    Raises:
        ValueError: The parts do not fit each other.
    """
    numel = int(np.prod(packed.shape, dtype=np.int64))
    if packed.coding == "dense":
        if tuple(packed.values.shape) != packed.shape:
            raise ValueError(f"a dense tensor of shape {packed.shape} has values of {tuple(packed.values.shape)}")
        return packed.values.clone()
    if packed.coding == "bitmask":
        if packed.index.numel() != -(-numel // 8):
            raise ValueError(f"the mask of {numel} entries has {packed.index.numel()} bytes")
        places = np.flatnonzero(np.unpackbits(packed.index.numpy(), count=numel, bitorder="little"))
    elif packed.coding == "gap":
        unsigned = unpack_bits(packed.index.numpy(), packed.bits, packed.codes).astype(np.int64)
        places = _places(unsigned + (1 << (packed.bits - 1)), packed.bits)
    else:
        raise ValueError(f"the coding {packed.coding!r} is not known")
    if places.size != packed.values.numel() or (places.size and places[-1] >= numel):
        raise ValueError(f"{places.size} places among {numel} entries have {packed.values.numel()} values")
    flat = torch.zeros(numel)
    flat[torch.from_numpy(places)] = (
        packed.values.float() * packed.scale if packed.scale != 1.0 else packed.values.float()
    )
    return flat.view(packed.shape)


def pack_all(tensors: Mapping[str, Tensor], values: str) -> dict[str, Packed]:
    """Pack tensors by name."""
    return {name: pack(tensor, values) for name, tensor in tensors.items()}


def _stored(entries: Tensor, values: str) -> tuple[Tensor, float]:
    if values == "float32":
        return entries.clone(), 1.0
    if not bool(entries.isfinite().all()):
        raise ValueError(f"the tensor holds infinity or NaN, which values={values!r} can't hold: use 'float32'")
    largest = float(entries.abs().max()) if entries.numel() else 0.0
    if values == "float16":
        if largest > torch.finfo(torch.float16).max:
            raise ValueError(f"the tensor holds {largest:g}, which values='float16' can't hold: use 'float32'")
        return entries.to(torch.float16), 1.0
    scale = largest / 127 or 1.0
    return (entries.double() / scale).round().to(torch.int8), scale


def _gaps(places: Array) -> Array:
    return np.diff(places, prepend=-1) - 1


def _gap_size(places: Array, bits: int) -> int:
    """The bytes of all distances, with ``bits`` bits for each code."""
    longest = (1 << bits) - 1
    return packed_size(int((_gaps(places) // longest).sum()) + places.size, bits)


def _gap_codes(places: Array, bits: int) -> Array:
    """Distances as codes. The largest code skips as many entries as its value, without an entry at the end."""
    longest = (1 << bits) - 1
    gaps = _gaps(places)
    ends = np.cumsum(gaps // longest + 1)
    codes = np.full(int(ends[-1]) if ends.size else 0, longest)
    codes[ends - 1] = gaps % longest
    return codes


def _places(codes: Array, bits: int) -> Array:
    longest = (1 << bits) - 1
    kept = codes != longest
    found: Array = np.cumsum(np.where(kept, codes + 1, longest))[kept] - 1
    return found
