"""Ranges of the quantized inputs of layers. They are moving averages during training, and fixed afterwards."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from lightning_lcs.functional.quantization import (
    AffineGrid,
    affine_grid,
    affine_grids,
    fake_quantize,
    round_to_grid,
)
from lightning_lcs.functional.ranges import Observed, find_range, find_ranges, observe

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
    """Quantizes the inputs of a level in a training step, and moves the ranges of the level after the step.

    Within a step the ranges stay those of the steps before, so that a forward that is repeated in its backward finds
    the same ones, and so that the search for those of all layers is one. A layer without a range gets that of its first
    input right away.

    Attributes:
        ranges: The ranges by the bits of a level; they are updated.
        prefix: The prefix of the network in qualified names.
        layers: The paths of the layers.
        bits: The bits of each layer by its path.
        quantize: Whether the inputs are already quantized.
        search: How the range of an input is found, one of :data:`SEARCHES`.
        observes: Whether inputs count for the ranges. The default is ``True``.
    """

    ranges: Mapping[int, dict[str, Tensor]]
    prefix: str
    layers: Sequence[str]
    bits: LayerBits
    quantize: bool
    search: str
    observes: bool = True
    _seen: dict[tuple[int, torch.device], dict[str, Observed]] = dataclasses.field(default_factory=dict)
    _grids: dict[str, AffineGrid] = dataclasses.field(default_factory=dict)

    def __call__(self, path: str, x: Tensor) -> Tensor:
        """The input that a layer gets; an empty one, such as of an expert without samples, as it is."""
        if x.numel() == 0:
            return x
        if self.observes:
            self._observe(path, x)
        return round_to_grid(x, self._grid(path, x.device)) if self.quantize else x

    def _observe(self, path: str, x: Tensor) -> None:
        seen = observe(x, self.bits(path), False, self.search)
        if self._held(path) is None:
            self._hold(path, torch.stack(find_ranges([seen])[0]).float())
            return
        # A layer that runs several times in a step moves its range several times.
        times = next(times for times in itertools.count() if path not in self._seen.get((times, x.device), {}))
        self._seen.setdefault((times, x.device), {})[path] = seen.copied()

    def repeated(self) -> Observing:
        """Quantizes as before, and observes nothing."""
        return dataclasses.replace(self, observes=False)

    def finish(self) -> None:
        """Move the ranges by the inputs that were seen."""
        for (_, device), seen in self._seen.items():
            lows, highs = zip(*find_ranges(list(seen.values())), strict=True)
            current = torch.stack([torch.stack(lows), torch.stack(highs)], 1).float()
            held = torch.stack([ends.to(device) for path in seen if (ends := self._held(path)) is not None])
            moved = torch.lerp(held, current, MOMENTUM)
            # A batch with values that are not finite, whose step may be skipped, must not stay in the ranges for good.
            moved = torch.where(moved.isfinite(), moved, torch.where(current.isfinite(), current, held))
            for path, ends in zip(seen, moved.unbind(), strict=True):
                self._hold(path, ends)
        self._seen.clear()

    def _held(self, path: str) -> Tensor | None:
        return self.ranges[self.bits.level(path)].get(range_key(self.prefix, path))

    def _hold(self, path: str, ends: Tensor) -> None:
        self.ranges[self.bits.level(path)][range_key(self.prefix, path)] = ends

    def _grid(self, path: str, device: torch.device) -> AffineGrid:
        if path not in self._grids:
            held = {other: self._held(other) for other in self.layers if other not in self._grids}
            known = {other: (ends[0], ends[1]) for other, ends in held.items() if ends is not None}
            self._grids.update(affine_grids(known, {other: self.bits(other) for other in known}))
        grid = self._grids[path]
        if grid.scale.device != device:  # the range is from a checkpoint
            grid = self._grids[path] = grid.to(device)
        return grid


@dataclasses.dataclass
class Collecting:
    """Quantizes inputs with the range of each batch, and passes the range to ``add``; see also :class:`Observing`."""

    add: Callable[[str, Tensor], None]
    prefix: str
    bits: LayerBits
    search: str

    def __call__(self, path: str, x: Tensor) -> Tensor:
        """The input that a layer gets; an empty one as it is."""
        if x.numel() == 0:
            return x
        current = torch.stack(find_range(x, self.bits(path), False, self.search)).float()
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
        """The input that a layer gets; an empty one as it is."""
        if x.numel() == 0:
            return x
        grid = self._grids.get(path)
        if grid is None or grid.scale.device != x.device:
            grid = self._grids[path] = self._grid(path, x.device)
        return round_to_grid(x, grid)

    def _grid(self, path: str, device: torch.device) -> AffineGrid:
        held = self.ranges.get(range_key(self.prefix, path))
        if held is None:
            raise RuntimeError(
                f"the inputs of {path or 'the layer'} were never observed at {self.bits(path)} bits, so that their "
                "range is not known: train the network at this level, or recalibrate() with training images; a layer "
                f"that training never runs stays whole with Quantized(layer_bits={{{path!r}: 32}})"
            )
        low, high = held.to(device).unbind()
        return affine_grid(low, high, self.bits(path))
