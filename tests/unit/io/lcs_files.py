"""Files taken apart and put together again, with true checksums or false ones."""

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

Parts = tuple[dict[str, Any], dict[str, Any], bytes]
KEY, DIGEST = "lightning_lcs", "lightning_lcs_blake2b"


def digest(content: bytes) -> str:
    """As in a file."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def taken_apart(path: Path) -> Parts:
    """The list of tensors, the header and the data of a file."""
    content = Path(path).read_bytes()
    (length,) = struct.unpack_from("<Q", content)
    outer = json.loads(content[8 : 8 + length])
    return outer, json.loads(outer.pop("__metadata__")[KEY]), content[8 + length :]


def put_together(outer: Any, header: Any, data: bytes) -> bytes:
    """A file with true checksums of the header."""
    text = json.dumps(header)
    outer = {"__metadata__": {KEY: text, DIGEST: digest(text.encode())}, **outer}
    head = json.dumps(outer).encode()
    head += b" " * (-(len(head) + 8) % 64)
    return struct.pack("<Q", len(head)) + head + data


def rewritten(path: Path, target: Path, change: Any) -> Path:
    """A copy of a file whose header was changed and sealed again."""
    outer, header, data = taken_apart(path)
    change(header)
    target.write_bytes(put_together(outer, header, data))
    return target


def sections(content: bytes) -> dict[str, tuple[int, int]]:
    """Where each section of a file lies: the length, the list of tensors and the header, each tensor."""
    (length,) = struct.unpack_from("<Q", content)
    outer = json.loads(content[8 : 8 + length])
    start = 8 + length
    found = {"length": (0, 8), "header": (8, start)}
    for name, entry in outer.items():
        if name != "__metadata__" and entry["data_offsets"][1] > entry["data_offsets"][0]:
            found[name] = (start + entry["data_offsets"][0], start + entry["data_offsets"][1])
    return found
