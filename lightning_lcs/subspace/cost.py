"""What the levels of a network cost that runs as itself, with other weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from torch import Tensor

from lightning_lcs.graph.cost import count_module_macs
from lightning_lcs.graph.network import training_flags
from lightning_lcs.subspace.network import Part


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a level of one network costs; see :class:`Efficiency` for the units."""

    params: int
    macs: int
    size_bytes: int


def macs_of(part: Part, density: Mapping[str, float]) -> int:
    """The multiply-accumulates of one sample.

    Args:
        part: The network, which runs once.
        density: The share of entries that are not zero, by qualified name of a weight.
    """
    with part.own_forward() as module, training_flags(module, False):
        return count_module_macs(module, *part.network.example_inputs(), density)


def parameter_cost(parameters: Mapping[str, Tensor], kept: Mapping[str, int]) -> tuple[int, int]:
    """The number and the bytes of parameters of which some are stored without their zeros.

    A weight that lost entries is stored as its remaining entries and one bit per entry that says which these are.

    Args:
        parameters: The parameters by qualified name, at full size.
        kept: The number of entries that are kept of those that are sparse.
    """
    count = size_bytes = 0
    for name, value in parameters.items():
        left = kept.get(name, value.numel())
        count += left
        size_bytes += left * value.element_size() + (-(-value.numel() // 8) if left < value.numel() else 0)
    return count, size_bytes
