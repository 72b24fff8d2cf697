"""A compression mode of your own: each weight keeps its first singular directions.

Import this module before you use ``mode="low_rank"``: ``LCSCallback(mode="low_rank")``, or
``LowRank(min_rank=0.25)`` as the mode.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_lcs.functional.sampling import SamplingDefaults
from lightning_lcs.subspace.axis import Axis
from lightning_lcs.subspace.mode import Level, Mode
from lightning_lcs.subspace.modes.registry import register_mode
from lightning_lcs.subspace.part import Part


@register_mode("low_rank")
@dataclasses.dataclass(frozen=True, kw_only=True)
class LowRank(Mode):
    """The share of singular directions that each weight keeps: ``min_rank`` at alpha = 0, all at alpha = 1."""

    axis: ClassVar[Axis] = Axis("rank", "Share of singular directions")

    min_rank: float = 0.1

    def __post_init__(self) -> None:
        if not 0.0 < self.min_rank <= 1.0:
            raise ValueError(f"min_rank={self.min_rank!r} is not in (0, 1]; use, for example, 0.1")

    def value(self, alpha: float) -> float:
        return self.min_rank + (1.0 - self.min_rank) * self.snap(alpha)

    def sampling(self, subspace: str) -> SamplingDefaults:
        return SamplingDefaults(sampler="sandwich")

    def transform(
        self, part: Part, level: Level, on_line: Callable[[str], Tensor], known: dict[str, Any] | None
    ) -> LowRankWeights:
        return LowRankWeights(level.value, on_line)


class LowRankWeights:
    """The weights of a network at a level; see ``lightning_lcs.subspace.compression.WeightTransform``."""

    def __init__(self, share: float, on_line: Callable[[str], Tensor]) -> None:
        self.share = share
        self.on_line = on_line
        self.projections: dict[str, Tensor] = {}

    def __call__(self, name: str) -> Tensor:
        return self.projected(name, self.on_line(name))

    def gradient(self, name: str, value: Tensor, gradient: Tensor) -> Tensor:
        return self.projected(name, gradient)

    def kept_entries(self, name: str) -> int:
        value = self.on_line(name)
        rows, columns = value.flatten(1).shape
        # The two factors, unless the weight itself is smaller.
        return min(value.numel(), self.rank(value) * (rows + columns))

    def projected(self, name: str, value: Tensor) -> Tensor:
        return (value.flatten(1) @ self.projection(name)).reshape(value.shape)

    def projection(self, name: str) -> Tensor:
        """The projection on the first singular directions of a weight; the backward pass treats it as constant."""
        if name not in self.projections:
            with torch.no_grad():
                value = self.on_line(name)
                directions = torch.linalg.svd(value.flatten(1), full_matrices=False).Vh[: self.rank(value)]
                self.projections[name] = directions.T @ directions
        return self.projections[name]

    def rank(self, value: Tensor) -> int:
        return max(1, round(min(value.flatten(1).shape) * self.share))
