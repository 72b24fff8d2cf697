"""The cost of a level that runs the network's own forward with other weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from lightning_lcs.graph.cost import count_module_macs
from lightning_lcs.graph.traced_network import training_flags
from lightning_lcs.subspace.part import Part


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost of a level of one network; see :class:`Efficiency` for the units."""

    params: int
    macs: int
    size_bytes: int


def macs_of(part: Part, density: Mapping[str, float]) -> int:
    """Count the multiply-accumulates of one sample.

    Args:
        part: The network, which runs once.
        density: The share of entries that are not zero, by qualified name of a weight.
    """
    with part.own_forward() as module, training_flags(module, False):
        return count_module_macs(module, *part.network.example_inputs(), density)
