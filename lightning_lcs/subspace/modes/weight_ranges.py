"""Ranges of quantized weights: one for a whole weight, or one for each output channel."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from torch import Tensor

from lightning_lcs.functional.channels import swap_channels
from lightning_lcs.functional.ranges import find_ranges, observe


@dataclasses.dataclass(frozen=True)
class WeightRanges:
    """How the ranges of the weights of a network are found.

    Attributes:
        by_channel: The names of the weights whose output channels have ranges of their own.
        groups: The number of groups of those among them that are of transposed convolutions, by name.
        search: How a range is found, one of :data:`SEARCHES`.
    """

    by_channel: frozenset[str]
    groups: Mapping[str, int]
    search: str

    def find(self, weights: Mapping[str, Tensor], bits: Callable[[str], int]) -> dict[str, tuple[Tensor, Tensor]]:
        """The ends of the ranges of weights, which are found together.

        Args:
            weights: The weights by name, with their outputs in dimension 0; see :meth:`swapped`.
            bits: The number of bits of a weight by its name, 2 to 8.

        Returns:
            For each weight two scalars, or two tensors with an entry for each output.
        """
        seen = [observe(value, bits(name), name in self.by_channel, self.search) for name, value in weights.items()]
        return dict(zip(weights, find_ranges(seen), strict=True))

    def swapped(self, name: str, value: Tensor) -> Tensor:
        """A weight with its outputs in dimension 0 if these have ranges, or such a weight as its layer holds it."""
        return swap_channels(value, self.groups[name]) if name in self.groups else value

    def count(self, name: str, value: Tensor) -> int:
        """The number of ranges of a weight as its layer holds it."""
        return len(self.swapped(name, value)) if name in self.by_channel else 1
