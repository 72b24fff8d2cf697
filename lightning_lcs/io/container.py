"""Tensors and a JSON header in one safetensors file. Every section has a checksum, and is mapped instead of read.

The safetensors library can read and write these files, too. They are parsed here to validate a file before it is used:
every length, shape and offset is checked against the size of the file before any memory is allocated.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
import stat
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_lcs.utils.files import replacing

KEY = "lightning_lcs"
DIGEST_KEY = "lightning_lcs_blake2b"
_ZIP = b"PK\x03\x04"
MOST_HEADER = 2**25  # bytes; a network of a thousand layers has about one million
MOST_AXES = 16
_ALIGNMENT = 64

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}


def write(path: str | os.PathLike[str], header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write a file, whole or not at all: the old file stays until the last byte is on the disk.

    Args:
        path: The path of the file.
        header: Plain data without NaN and infinities.
        tensors: The tensors by name.

    Raises:
        ValueError: The type of a tensor can't be stored.
        OSError: The disk is full, or the folder can't be written to; no scratch file is left.
    """
    contents = {name: _bytes_of(name, tensors[name]) for name in sorted(tensors, key=lambda n: _order(tensors[n], n))}
    sections = {name: _entry(tensors[name], _digest(content)) for name, content in contents.items()}
    text = json.dumps({**header, "sections": sections}, allow_nan=False, separators=(",", ":"))
    outer: dict[str, Any] = {"__metadata__": {KEY: text, DIGEST_KEY: _digest(text.encode())}}
    end = 0
    for name, content in contents.items():
        begin, end = end, end + len(content)
        dtype, shape = sections[name]["dtype"], sections[name]["shape"]
        outer[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    head = json.dumps(outer, separators=(",", ":")).encode()
    head += b" " * (-(len(head) + 8) % _ALIGNMENT)
    if len(head) > MOST_HEADER:
        raise ValueError(f"the header would have {len(head):,} bytes, and at most {MOST_HEADER:,} are allowed")
    with replacing(path) as scratch, scratch.open("wb") as file:
        file.writelines([struct.pack("<Q", len(head)), head, *contents.values()])


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Open a file, and return its header and its tensors, which are private views of the mapped file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not a file of this kind, or it is damaged; the message says where.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"{os.fspath(path)} does not exist")
    try:
        return _read(path)
    except (ValueError, TypeError, KeyError, RecursionError, OverflowError) as error:
        raise ValueError(f"{os.fspath(path)} is not a lightning-lcs file, or it is damaged: {_said(error)}") from error


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, ValueError) and str(error) else repr(error)


def _read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    with Path(path).open("rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is not a regular file")
        if status.st_size < 10:
            raise ValueError(f"it has only {status.st_size} bytes")
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    if mapped[:4] == _ZIP:
        raise ValueError(
            "it is a zip archive, as torch.save() and Lightning write: open a checkpoint with "
            "SubspaceModel.from_checkpoint(path, module)"
        )
    (length,) = struct.unpack_from("<Q", mapped)
    if length > min(len(mapped) - 8, MOST_HEADER):
        raise ValueError(
            f"its header would have {length:,} bytes, but the file has {len(mapped):,} and {MOST_HEADER:,} are allowed"
        )
    outer = _parsed(mapped[8 : 8 + length], "the list of tensors")
    metadata = outer.pop("__metadata__", None)
    if not isinstance(metadata, dict) or metadata.keys() != {KEY, DIGEST_KEY}:
        raise ValueError(f"it has no header of {KEY!r} with a checksum")
    text = metadata[KEY]
    if not isinstance(text, str) or _digest(text.encode()) != metadata[DIGEST_KEY]:
        raise ValueError("the checksum of the header is wrong")
    header = _parsed(text.encode(), "the header")
    sections = header.pop("sections", None)
    if not isinstance(sections, dict) or sections.keys() != outer.keys():
        raise ValueError("the header and the list of tensors name different tensors")
    _check_extents(outer, len(mapped) - 8 - length)
    tensors = {name: _tensor(mapped, 8 + length, name, outer[name], sections[name]) for name in outer}
    return header, tensors


def _parsed(content: bytes, what: str) -> dict[str, Any]:
    try:
        value = json.loads(content.decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise ValueError(f"{what} is not text") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{what} is not JSON: {error}") from error
    except RecursionError as error:
        raise ValueError(f"{what} is nested too deeply") from error
    if not isinstance(value, dict):
        raise ValueError(f"{what} is not a mapping")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a mapping in it has the same key twice")
    return found


def _no_constant(name: str) -> float:
    raise ValueError(f"it holds the number {name}")


def _check_extents(entries: Mapping[str, Any], size: int) -> None:
    """Check that the tensors lie in the file without gaps or overlaps, and that their lengths fit their shapes."""
    extents = []
    for name, entry in entries.items():
        if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
            raise ValueError(f"the tensor {name!r} is described wrongly")
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str) or dtype not in _DTYPES:
            raise ValueError(f"the tensor {name!r} has the type {dtype!r}, which is not allowed")
        if not isinstance(shape, list) or len(shape) > MOST_AXES or not all(_is_size(n) for n in shape):
            raise ValueError(f"the tensor {name!r} has the shape {str(shape)[:100]}, which is not allowed")
        if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_size(n) for n in offsets):
            raise ValueError(f"the tensor {name!r} has the place {str(offsets)[:100]}, which is not allowed")
        begin, end = offsets
        if begin > end or end > size or end - begin != math.prod(shape) * _DTYPES[dtype].itemsize:
            raise ValueError(
                f"the tensor {name!r} of shape {shape} and type {dtype} lies at {begin} to {end} of {size} bytes: the "
                "file is truncated or damaged"
            )
        extents.append((begin, end))
    reached = 0
    for begin, end in sorted(extents):
        if begin != reached:
            raise ValueError(f"its tensors overlap or leave a gap at byte {reached}")
        reached = end
    if reached != size:
        raise ValueError(f"{size - reached} bytes follow its last tensor")


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**48


def _tensor(mapped: mmap.mmap, start: int, name: str, entry: Mapping[str, Any], section: Any) -> Tensor:
    begin, end = (start + offset for offset in entry["data_offsets"])
    dtype = _DTYPES[entry["dtype"]]
    if begin % dtype.itemsize:
        raise ValueError(f"the tensor {name!r} is not aligned to its type")
    if not isinstance(section, dict) or section.keys() != {"dtype", "shape", "digest"}:
        raise ValueError(f"the header describes the tensor {name!r} wrongly")
    if (section["dtype"], section["shape"]) != (entry["dtype"], entry["shape"]):
        raise ValueError(f"the header and the list of tensors disagree about the tensor {name!r}")
    with memoryview(mapped) as view, view[begin:end] as content:
        if _digest(content) != section["digest"]:
            raise ValueError(f"the checksum of the tensor {name!r} is wrong")
    if begin == end:
        return torch.empty(entry["shape"], dtype=dtype)
    flat = torch.frombuffer(mapped, dtype=dtype, count=(end - begin) // dtype.itemsize, offset=begin)
    return flat.reshape(entry["shape"])


def _digest(content: bytes | memoryview) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _entry(tensor: Tensor, digest: str) -> dict[str, Any]:
    return {"dtype": _CODES[tensor.dtype], "shape": list(tensor.shape), "digest": digest}


def _order(tensor: Tensor, name: str) -> tuple[int, str]:
    # Writing the widest types first keeps every tensor aligned without gaps, which safetensors does not allow.
    return -tensor.element_size(), name


def _bytes_of(name: str, tensor: Tensor) -> memoryview:
    if tensor.dtype not in _CODES:
        raise ValueError(f"the tensor {name!r} has the type {tensor.dtype}, which a file can't hold")
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    if not flat.numel():
        return memoryview(b"")
    # The plain bytes of any type, including types that numpy does not know.
    return memoryview(flat.view(torch.uint8).numpy())  # type: ignore[arg-type]
