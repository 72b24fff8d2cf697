"""What a mode compresses in a network: the weights it selects, what a level does to them, and a description."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Selected:
    """Which weights of a network a mode compresses.

    Attributes:
        weights: Their qualified names.
        pinned: The values of the mode's axis that some of them have at every level, by name.
    """

    weights: tuple[str, ...] = ()
    pinned: Mapping[str, float] = dataclasses.field(default_factory=dict)


class WeightTransform(Protocol):
    """What a level does to the compressed weights of one network, as long as they stay what they are."""

    def __call__(self, name: str) -> Tensor:
        """The weight at the level, of its own shape, differentiable where gradients are recorded."""

    def gradient(self, name: str, value: Tensor, gradient: Tensor) -> Tensor:
        """The gradient of the weight on the line.

        Args:
            name: The qualified name of the weight.
            value: What calling gave for it, detached.
            gradient: The gradient with respect to ``value``.
        """

    def kept_entries(self, name: str) -> int:
        """How many numbers of the weight the level keeps."""


@dataclasses.dataclass(frozen=True)
class Description:
    """What the most compressed level has of the tensors of one network.

    Attributes:
        rows: ``(name, shape, what is left)`` of each tensor that shrinks.
        kept: The number of entries that are left of these tensors, at alpha = 0.
        full: The number of all their entries.
        whole: ``(what, why)`` of what could shrink and does not.
    """

    rows: list[tuple[str, str, str]]
    kept: int
    full: int
    whole: list[tuple[str, str]]


def shape_text(sizes: Sequence[int]) -> str:
    """A shape as text: "8 x 3 x 3" with multiplication signs."""
    return " \N{MULTIPLICATION SIGN} ".join(map(str, sizes)) or "1"
