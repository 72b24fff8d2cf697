"""The fingerprint of weights, by which statistics and curves know the weights that they belong to."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lightning_lcs.graph.traced_network import ENDPOINT_NAME
from lightning_lcs.subspace.part import Part, endpoint_pairs

_TYPES = 2  # The digits that stand for the types of the weights; the others stand for their bytes.


def fingerprint(parts: Sequence[Part]) -> str:
    """The fingerprint of the weights of networks.

    It is a hash of the bytes of all parameters and second endpoints, in the order of their names. Tied parameters count
    once. It is the same on every device and in every layout in memory. Buffers do not count: running statistics move
    with every forward of training, and leave the statistics of levels as right or wrong as they were.

    Args:
        parts: The networks.

    Returns:
        16 hexadecimal digits; an empty text if parameters have no data (on the "meta" device).

    Example:
        >>> import torch
        >>> from lightning_lcs import SubspaceModel
        >>> from lightning_lcs.subspace.fingerprint import fingerprint
        >>> network = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> model = SubspaceModel(network, torch.randn(2, 4))
        >>> before = fingerprint(model.parts)
        >>> with torch.no_grad():
        ...     bias = network[0].bias.add_(1.0)
        >>> len(before), fingerprint(model.parts) == before
        (16, False)
    """
    tensors = {id(value): value for _, value in sorted(_named(parts), key=lambda named: named[0])}
    return _of(list(tensors.values()))


def of_endpoints(parts: Sequence[Part]) -> tuple[str, str]:
    """The fingerprints of the two ends of a line, each of all parameters on the line.

    Args:
        parts: The networks.

    Returns:
        That of endpoint 0, and that of endpoint 1, the network's own parameters.
    """
    pairs = endpoint_pairs(parts)
    return _of([w0 for w0, _ in pairs]), _of([w1 for _, w1 in pairs])


def _of(tensors: Sequence[Tensor]) -> str:
    if any(value.is_meta for value in tensors):
        return ""
    digest = hashlib.blake2b(digest_size=7)
    for value in tensors:
        digest.update(_bytes_of(value))
    types = ",".join(sorted({str(value.dtype) for value in tensors}))
    return hashlib.blake2b(types.encode(), digest_size=_TYPES // 2).hexdigest() + digest.hexdigest()


def differ(one: str, other: str) -> bool:
    """Whether two fingerprints are known to be of different weights.

    This is false where one of them is empty, and where the types of the weights differ: a cast rounds weights, so that
    its result can't be compared with what was cast.

    Args:
        one: A fingerprint, or an empty text.
        other: Another.

    Example:
        >>> from lightning_lcs.subspace.fingerprint import differ
        >>> differ("0123456789abcdef", "0123456789abcde0"), differ("0123456789abcdef", "")
        (True, False)
    """
    return one != other and one[:_TYPES] == other[:_TYPES]


def _named(parts: Sequence[Part]) -> Iterator[tuple[tuple[str, bool], Tensor]]:
    """All parameters by qualified name, tied ones under each of their names; and second endpoints after them."""
    for part in parts:
        for name, value in part.network.module.named_parameters(remove_duplicate=False):
            if ENDPOINT_NAME not in name.split("."):
                yield (part.prefix + name, False), value
        for name, value in part.endpoints.items():
            yield (part.prefix + name, True), value


def _bytes_of(value: Tensor) -> memoryview:
    return value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
