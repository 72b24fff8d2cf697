"""What a level does to the tensors of a network."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lightning_lcs.functional.quantization import AffineGrid, affine_grids, fake_quantize, round_to_grid, value_range
from lightning_lcs.functional.sparsity import (
    BLOCK,
    block_mask,
    largest_mask,
    largest_masks,
    magnitude_threshold,
    zero_count,
)
from lightning_lcs.functional.subspace import interpolate
from lightning_lcs.graph.channels.plan import Selection, select
from lightning_lcs.subspace.forward import Execution
from lightning_lcs.subspace.modes.observers import LayerBits
from lightning_lcs.subspace.modes.registry import Mode, Quantized, Unstructured
from lightning_lcs.subspace.network import Part, layer_of


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a level does to tensors.

    Attributes:
        alpha: position on the line.
        sparsity: share of zeros in compressed weights.
        scope: among which entries the largest are kept; see :class:`Unstructured`.
        bits: of compressed weights and of their layers' inputs; ``None`` to leave both.
        per_channel: quantize each output channel of a weight with its own range.
        inputs: whether inputs of layers are quantized already.
    """

    alpha: float
    sparsity: float = 0.0
    scope: str = "layer"
    bits: int | None = None
    per_channel: bool = False
    inputs: bool = True


def setting_of(mode: Mode, alpha: float, strength: float = 1.0) -> Setting:
    """What a mode does at a level, of which a share applies while a warm-up lasts."""
    if isinstance(mode, Quantized):
        return Setting(alpha, bits=mode.bit_width(alpha), per_channel=mode.per_channel, inputs=strength >= 1.0)
    if isinstance(mode, Unstructured):
        return Setting(alpha, strength * mode.sparsity(alpha), mode.scope)
    return Setting(alpha)


class Compression:
    """A level of one network, for as long as its weights stay what they are.

    Args:
        part: the network with its endpoints.
        setting: the level.
        drawn_bits: bits of single layers in place of the setting's, by qualified path.
        thresholds: those of this level and these weights, as far as they are known; more are added. ``None`` to keep
            none, and to read none back from an accelerator.
    """

    def __init__(
        self,
        part: Part,
        setting: Setting,
        drawn_bits: Mapping[str, int] | None = None,
        thresholds: dict[str, float | None] | None = None,
    ) -> None:
        self.part = part
        self.setting = setting
        self.layer_bits = None if setting.bits is None else part.layer_bits(setting.bits, drawn_bits)
        self._thresholds = {} if thresholds is None else thresholds
        self._reads_back = thresholds is not None
        self._masks: dict[str, Tensor] = {}
        self._grids: dict[str, AffineGrid] = {}
        # Weights on the line, from the search for the grids of all of them until each is rounded.
        self._values: dict[str, Tensor] = {}

    def on_line(self, name: str, selection: Selection = ()) -> Tensor:
        """A tensor at the level's place on the line, cut and not compressed yet."""
        value = select(self.part.network.tensor(name), selection)
        if name in self.part.endpoints:
            value = interpolate(select(self.part.endpoints[name], selection), value, self.setting.alpha)
        return value

    def tensor(self, name: str, selection: Selection = ()) -> Tensor:
        """A tensor at the level, differentiable where gradients are recorded."""
        if self.layer_bits is not None and name in self.part.compressed:
            return self._quantized(name, self.layer_bits)
        value = self.on_line(name, selection)
        if name not in self.part.compressed:
            return value
        if self.setting.sparsity == 0.0:
            return value
        threshold = self._threshold(name, value)
        if threshold is not None:
            return nn.functional.hardshrink(value, threshold)  # one pass, a mask takes four
        return value * self._mask(name, value)

    def _quantized(self, name: str, bits: LayerBits) -> Tensor:
        value = self._values.pop(name) if name in self._values else self.on_line(name)
        if value.device.type == "cpu":
            # One by one: the weight is in the cache when it is rounded.
            return fake_quantize(value, *value_range(value, self.setting.per_channel), bits(layer_of(name)))
        if not self._grids:
            self._values = {other: self.on_line(other) for other in self.part.compressed if other != name}
            weights = {name: value, **self._values}
            ranges = {weight: value_range(values, self.setting.per_channel) for weight, values in weights.items()}
            self._grids = affine_grids(ranges, {weight: bits(layer_of(weight)) for weight in weights})
        return round_to_grid(value, self._grids[name])

    def kept(self, name: str, compressed: Tensor) -> Tensor | None:
        """1 where an entry of a tensor that :meth:`tensor` gave is kept; ``None`` where all are."""
        if name not in self.part.compressed or self.setting.sparsity == 0.0:
            return None
        # What exceeds a threshold is not zero; without a threshold a kept entry may be.
        return compressed.ne(0.0) if self._thresholds.get(name) is not None else self._masks[name]

    def kept_entries(self, name: str) -> int:
        """How many entries of a compressed weight are kept."""
        value = self.on_line(name)
        if self.setting.scope == "layer":
            return value.numel() - zero_count(value.numel(), self.setting.sparsity)
        return int(self._mask(name, value).sum(dtype=torch.int64)) if self.setting.sparsity else value.numel()

    def _threshold(self, name: str, value: Tensor) -> float | None:
        """The magnitude up to which entries of a weight become zero; ``None`` where that is decided otherwise."""
        read = self._reads_back or value.device.type == "cpu"
        if self.setting.scope == "layer" and name not in self._thresholds and read:
            zeros = zero_count(value.numel(), self.setting.sparsity)
            self._thresholds[name] = magnitude_threshold(value, zeros) if zeros else None
        return self._thresholds.get(name)

    @torch.no_grad()
    def _mask(self, name: str, value: Tensor) -> Tensor:
        """1 where an entry is kept."""
        if name not in self._masks:
            self._masks.update(self._new_masks(name, value))
        return self._masks[name]

    def _new_masks(self, name: str, value: Tensor) -> dict[str, Tensor]:
        sparsity = self.setting.sparsity
        if self.setting.scope == "layer":
            return {name: largest_mask(value, sparsity)}
        if self.setting.scope == "block":
            return {name: block_mask(value, BLOCK - zero_count(BLOCK, sparsity))}
        return largest_masks({other: self.on_line(other) for other in self.part.compressed}, sparsity)


def level_tensors(
    compression: Compression, execution: Execution, statistics: Mapping[str, Tensor], complete: bool = False
) -> list[Tensor | None]:
    """The parameters and buffers that a forward takes at a level, differentiable where gradients are recorded.

    Args:
        compression: the level.
        execution: the forward.
        statistics: running statistics of this level, which replace the cut ones.
        complete: give tensors for the statistics that the forward would only update, too; else they are ``None``.
    """
    tensors: list[Tensor | None] = []
    untouched = execution.batch_statistics
    for name in execution.names:
        if name in untouched and not complete:
            tensors.append(None)
            continue
        stored = statistics.get(name)
        if stored is None:
            value = compression.tensor(name, execution.cut(name))
        else:
            value = stored.to(compression.part.network.tensor(name))
        if name in execution.updated:
            value = value.detach().clone()
        tensors.append(value.contiguous())
    return tensors
