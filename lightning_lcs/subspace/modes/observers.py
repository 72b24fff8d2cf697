"""Ranges of the quantized inputs of layers. They are moving averages during training, and fixed afterwards."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from lightning_lcs.functional.quantization import RANGES, AffineGrid, affine_grid, fake_quantize, round_to_grid

# The momentum of the moving ranges (arXiv 2110.04252).
MOMENTUM = 0.1


def range_key(prefix: str, path: str) -> str:
    """The name of a layer's range among the stored tensors of a level."""
    return f"{prefix}{path}.input_range"


@dataclasses.dataclass(frozen=True)
class LayerBits:
    """The bits of a layer by its path: its fixed bits, the bits that it drew, or else the bits of the level."""

    bits: int
    drawn: Mapping[str, int]
    fixed: Mapping[str, int]

    def __call__(self, path: str) -> int:
        """The bits of a layer."""
        return self.fixed.get(path, self.level(path))

    def level(self, path: str) -> int:
        """The bits of the level that runs."""
        return self.drawn.get(path, self.bits)


@dataclasses.dataclass
class Observing:
    """Updates the ranges of a level with each input, starting from the first batch, and quantizes the input with them.

    Attributes:
        ranges: The ranges by the bits of a level; they are updated.
        prefix: The prefix of the network in qualified names.
        bits: The bits of each layer by its path.
        quantize: Whether the inputs are already quantized.
        search: How the range of an input is found, a key of :data:`RANGES`.
        moves: Whether the ranges are updated. The default is ``True``.
    """

    ranges: Mapping[int, dict[str, Tensor]]
    prefix: str
    bits: LayerBits
    quantize: bool
    search: str
    moves: bool = True

    def __call__(self, path: str, x: Tensor) -> Tensor:
        """The input that a layer gets."""
        key = range_key(self.prefix, path)
        ranges = self.ranges[self.bits.level(path)]
        if self.moves:
            current, held = torch.stack(RANGES[self.search](x, self.bits(path), False)).float(), ranges.get(key)
            ranges[key] = current if held is None else torch.lerp(held.to(current), current, MOMENTUM)
        low, high = ranges[key].unbind()
        return fake_quantize(x, low, high, self.bits(path)) if self.quantize else x


@dataclasses.dataclass
class Collecting:
    """Quantizes inputs with the range of each batch, and passes the range to ``add``; see also :class:`Observing`."""

    add: Callable[[str, Tensor], None]
    prefix: str
    bits: LayerBits
    search: str

    def __call__(self, path: str, x: Tensor) -> Tensor:
        """The input that a layer gets."""
        current = torch.stack(RANGES[self.search](x, self.bits(path), False)).float()
        self.add(range_key(self.prefix, path), current)
        low, high = current.unbind()
        return fake_quantize(x, low, high, self.bits(path))


@dataclasses.dataclass
class Reading:
    """Quantizes inputs with the stored ranges of a level; see also :class:`Observing`.

    Raises:
        RuntimeError: The layer has no range yet (raised when the object is called).
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
