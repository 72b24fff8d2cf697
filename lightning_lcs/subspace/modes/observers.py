"""Quantized inputs of layers: the ranges that levels of a bit width need, moving while training, fixed afterwards."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from lightning_lcs.functional.quantization import AffineGrid, affine_grid, fake_quantize, round_to_grid, value_range

# Of the moving ranges (arXiv 2110.04252).
MOMENTUM = 0.1


def range_key(prefix: str, path: str) -> str:
    """The name under which a layer's range is kept among a level's statistics."""
    return f"{prefix}{path}.input_range"


@dataclasses.dataclass(frozen=True)
class LayerBits:
    """Bits of a layer by its path: those that it has at every level, those that it drew, or those of the level."""

    bits: int
    drawn: Mapping[str, int]
    fixed: Mapping[str, int]

    def __call__(self, path: str) -> int:
        """The bits of a layer."""
        return self.fixed.get(path, self.level(path))

    def level(self, path: str) -> int:
        """The bits of the level to which a layer belongs."""
        return self.drawn.get(path, self.bits)


@dataclasses.dataclass
class Observing:
    """Inputs that move a level's ranges, each started from the first batch, and are quantized with them.

    Attributes:
        ranges: by the bits of a level; changed.
        prefix: of the network in names.
        bits: of a layer.
        quantize: whether the inputs are quantized yet.
    """

    ranges: Mapping[int, dict[str, Tensor]]
    prefix: str
    bits: LayerBits
    quantize: bool

    def __call__(self, path: str, x: Tensor) -> Tensor:
        """The input that a layer gets."""
        key = range_key(self.prefix, path)
        ranges = self.ranges[self.bits.level(path)]
        current, held = torch.stack(value_range(x)).float(), ranges.get(key)
        ranges[key] = current if held is None else torch.lerp(held.to(current), current, MOMENTUM)
        low, high = ranges[key].unbind()
        return fake_quantize(x, low, high, self.bits(path)) if self.quantize else x


@dataclasses.dataclass
class Collecting:
    """Inputs that are quantized with each batch's own range, which goes to ``add``; else as :class:`Observing`."""

    add: Callable[[str, Tensor], None]
    prefix: str
    bits: LayerBits

    def __call__(self, path: str, x: Tensor) -> Tensor:
        """The input that a layer gets."""
        current = torch.stack(value_range(x)).float()
        self.add(range_key(self.prefix, path), current)
        low, high = current.unbind()
        return fake_quantize(x, low, high, self.bits(path))


@dataclasses.dataclass
class Reading:
    """Inputs that are quantized with the ranges of a level; else as :class:`Observing`.

    Raises:
        RuntimeError: (when called) the layer has no range yet.
    """

    ranges: Mapping[str, Tensor]
    prefix: str
    bits: LayerBits
    _grids: dict[str, AffineGrid] = dataclasses.field(default_factory=dict)

    def __call__(self, path: str, x: Tensor) -> Tensor:
        """The input that a layer gets."""
        grid = self._grids.get(path)
        if grid is None or grid.scale.device != x.device:
            grid = self._grids[path] = self._grid(path, x.device)
        return round_to_grid(x, grid)

    def _grid(self, path: str, device: torch.device) -> AffineGrid:
        held = self.ranges.get(range_key(self.prefix, path))
        if held is None:
            raise RuntimeError(
                f"the inputs of {path or 'the layer'} were never observed at {self.bits(path)} bits, so that their "
                "range is not known: train the network at this level, or recalibrate() with training images"
            )
        low, high = held.to(device).unbind()
        return affine_grid(low, high, self.bits(path))
