"""Unstructured mode: sparsity, the entries of smallest magnitude set to zero."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lightning_lcs.functional.channels import swap_channels
from lightning_lcs.functional.sampling import SamplingDefaults
from lightning_lcs.functional.sparsity import (
    BLOCK,
    LAYER_SPARSITIES,
    block_mask,
    largest_mask,
    largest_masks,
    magnitude_threshold,
    zero_count,
)
from lightning_lcs.subspace.axis import Axis, check_alpha
from lightning_lcs.subspace.compression import Selected
from lightning_lcs.subspace.mode import Level, Mode
from lightning_lcs.subspace.modes.registry import register_mode
from lightning_lcs.subspace.part import Part
from lightning_lcs.subspace.weights.layers import all_weights, layer_inputs
from lightning_lcs.subspace.weights.tied import CROSSWISE, tied_crosswise
from lightning_lcs.utils.options import check_types

SCOPES = ("layer", "global", "block")
DENSE_LAYERS = ("first", "last", "depthwise")


@register_mode("unstructured")
@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Unstructured(Mode):
    """Sparsity: every weight of a layer keeps its entries of largest magnitude, small weights a larger share of them.

    Layers are convolutions, linear and recurrent layers, and torch's attention.

    ``sparsity(alpha) = max_sparsity - (max_sparsity - min_sparsity) * alpha``. By default the share kept runs from
    0.025 to 1 (arXiv 2110.04252, section 4.2); its high-sparsity variant is ``max_sparsity=0.995, min_sparsity=0.95``.

    Args:
        max_sparsity: The share of zeros at alpha = 0, in [0, 1). The default is 0.975.
        min_sparsity: The share of zeros at alpha = 1, in [0, max_sparsity]. The default is 0.
        dense: The layers whose weights are kept whole: any of "first" (the first convolution), "last" (the last linear
            layer, the head) and "depthwise" (convolutions with as many groups as channels), by order of registration.
            The default is "first" and "last".
        scope: The entries among which the largest are kept: "layer" (of each weight), "global" (of all weights of the
            network together, at least one of each) or "block" (of each four consecutive inputs, as accelerators need it
            for their 2:4 pattern; both sparsities are then multiples of 0.25, and so is that of every level). The
            default is "layer".
        layer_density: How the entries that are kept are divided among the weights with ``scope="layer"``: "uniform"
            (each keeps the same share) or "erk" (small weights keep more; see :func:`erdos_renyi_sparsities`). The
            default is "erk".

    Raises:
        ValueError: An option is outside its range.
        TypeError: An option has another type.

    Example:
        >>> from lightning_lcs import Unstructured
        >>> mode = Unstructured(max_sparsity=0.9, dense=())
        >>> mode.sparsity(0.0), mode.sparsity(0.5), mode.sparsity(1.0)
        (0.9, 0.45, 0.0)
    """

    axis: ClassVar[Axis] = Axis("sparsity", "Share of zeros", full=0.0)
    keeping_options: ClassVar[tuple[str, ...]] = ("dense",)
    former_defaults: ClassVar[dict[str, object]] = {"layer_density": "uniform"}

    max_sparsity: float = 0.975
    min_sparsity: float = 0.0
    dense: tuple[str, ...] = ("first", "last")
    scope: str = "layer"
    layer_density: str = "erk"

    def __post_init__(self) -> None:
        check_types(self)
        if not 0.0 <= self.max_sparsity < 1.0:
            raise ValueError(
                f"max_sparsity={self.max_sparsity!r} is not in [0, 1): it is the share of zeros at alpha = 0, and 1 "
                "would leave nothing; use, for example, 0.975"
            )
        if not 0.0 <= self.min_sparsity <= self.max_sparsity:
            raise ValueError(
                f"min_sparsity={self.min_sparsity!r} is not in [0, max_sparsity={self.max_sparsity!r}]: it is the "
                "share of zeros at alpha = 1; use 0 for the full network there"
            )
        if not set(self.dense) <= set(DENSE_LAYERS):
            raise ValueError(
                f"dense={self.dense!r} may only hold {', '.join(map(repr, DENSE_LAYERS))}; give a tuple of these, "
                "or () to make every layer sparse"
            )
        if self.scope not in SCOPES:
            raise ValueError(f"scope={self.scope!r} is not known; choose one of {', '.join(map(repr, SCOPES))}")
        if self.layer_density not in LAYER_SPARSITIES:
            raise ValueError(
                f"layer_density={self.layer_density!r} is not known; choose one of "
                f"{', '.join(map(repr, LAYER_SPARSITIES))}"
            )
        if self.scope == "block" and any(value % 0.25 for value in (self.min_sparsity, self.max_sparsity)):
            raise ValueError(
                f"scope='block' with min_sparsity={self.min_sparsity!r} and max_sparsity={self.max_sparsity!r}: 0 to "
                "3 of four entries become zero, so that both are in {0, 0.25, 0.5, 0.75}; use max_sparsity=0.5 for "
                "the 2:4 pattern"
            )
        object.__setattr__(self, "dense", tuple(self.dense))

    def sparsity(self, alpha: float) -> float:
        """The share of zeros in all compressed weights together at a level.

        With ``layer_density="uniform"`` or ``scope="block"``, it is the share in each of them.

        Args:
            alpha: The level, in [0, 1].

        Returns:
            The sparsity, in [min_sparsity, max_sparsity].

        Raises:
            ValueError: ``alpha`` is not in [0, 1].
        """
        return self.max_sparsity - (self.max_sparsity - self.min_sparsity) * self.snap(alpha)

    def is_full(self, alpha: float) -> bool:
        """Whether ``alpha`` is the network as it is."""
        return alpha == 1.0 and self.min_sparsity == 0.0

    def snap(self, alpha: float) -> float:
        """The level that ``alpha`` stands for: itself; with ``scope="block"`` the nearest that four entries allow."""
        steps = 4 * (self.max_sparsity - self.min_sparsity) if self.scope == "block" else 0
        return math.floor(check_alpha(alpha) * steps + 0.5) / steps if steps else check_alpha(alpha)

    def value(self, alpha: float) -> float:
        """The sparsity at ``alpha``."""
        return self.sparsity(alpha)

    def sampling(self, subspace: str) -> SamplingDefaults:
        """One level per step, with sparse ones more often (examples/settings/compare.py), and a linear warm-up."""
        return SamplingDefaults("weighted_draws", warmup=0.5, warmup_schedule="linear")

    def weighted(self, draw: float) -> float:
        """The logarithm of the share that is kept is drawn evenly, so that every factor of it has as many steps."""
        least, most = 1.0 - self.max_sparsity, 1.0 - self.min_sparsity
        return (least * (most / least) ** draw - least) / (most - least) if most > least else draw

    def select_weights(self, module: nn.Module) -> Selected:
        """The weights of all layers, without those of ``dense``.

        Raises:
            ValueError: ``scope`` is "block", and no weight has whole blocks.
        """
        names = all_weights(module, self.dense)
        if self.scope != "block":
            return Selected(names)
        inputs = layer_inputs(module, names)
        if all(count % BLOCK for count in inputs.values()):
            raise ValueError(f"scope='block': no layer of {type(module).__name__} has a multiple of {BLOCK} inputs")
        whole = _without_blocks(module, names)
        return Selected(tuple(name for name in names if name not in whole))

    def reasons(self, part: Part) -> dict[str, str]:
        """Why weights have no blocks."""
        module = part.network.module
        return _without_blocks(module, all_weights(module, self.dense)) if self.scope == "block" else {}

    def transform(
        self, part: Part, level: Level, on_line: Callable[[str], Tensor], known: dict[str, Any] | None
    ) -> SparseWeights:
        """The largest entries of each weight, and zeros."""
        divide = LAYER_SPARSITIES[self.layer_density if self.scope == "layer" else "uniform"]
        sparsities = divide(part.shapes, level.strength * self.sparsity(level.alpha))
        return SparseWeights(sparsities, self.scope, on_line, part.transposed, known)

    def weight_bytes(self, part: Part, level: Level, name: str, value: Tensor, kept: int) -> int:
        """The entries that are kept, and one bit per entry that says which these are."""
        mask_bytes = -(-value.numel() // 8) if kept < value.numel() else 0
        return kept * value.element_size() + mask_bytes


def _without_blocks(module: nn.Module, names: Sequence[str]) -> dict[str, str]:
    """Those weights of a network that can't be sparse in blocks, each with the reason."""
    inputs = layer_inputs(module, names)
    odd = {name: f"its {count} inputs are not a multiple of {BLOCK}" for name, count in inputs.items() if count % BLOCK}
    return {**dict.fromkeys(tied_crosswise(module, names), CROSSWISE), **odd}


class SparseWeights:
    """The weights of a network at a sparsity.

    Args:
        sparsities: The share of zeros of each compressed weight by its name, in [0, 1).
        scope: Among which entries the largest are kept; see :class:`Unstructured`.
        on_line: Gives a weight that is not compressed yet, by its name.
        transposed: The number of groups of each transposed convolution, by the name of its weight.
        known: The known thresholds of this level and these weights; further ones are added. ``None`` keeps no
            thresholds, and reads none back from an accelerator.
    """

    def __init__(
        self,
        sparsities: Mapping[str, float],
        scope: str,
        on_line: Callable[[str], Tensor],
        transposed: Mapping[str, int],
        known: dict[str, Any] | None = None,
    ) -> None:
        self._sparsities = sparsities
        self._scope = scope
        self._on_line = on_line
        self._transposed = transposed
        self._thresholds: dict[str, float | None] = {} if known is None else known
        self._reads_back = known is not None
        self._masks: dict[str, Tensor] = {}

    def __call__(self, name: str) -> Tensor:
        """The weight with its smallest entries set to zero."""
        value = self._on_line(name)
        if self._sparsities[name] == 0.0:
            return value
        threshold = self._threshold(name, value)
        if threshold is not None:
            return nn.functional.hardshrink(value, threshold)  # One pass over memory; a mask takes four.
        return value * self._mask(name, value)

    def gradient(self, name: str, value: Tensor, gradient: Tensor) -> Tensor:
        """The gradient of the kept entries; zero for all others."""
        if self._sparsities[name] == 0.0:
            return gradient
        # Entries above a threshold are not zero. Without a threshold, a kept entry may be zero.
        return gradient * (value.ne(0.0) if self._thresholds.get(name) is not None else self._masks[name])

    def kept_entries(self, name: str) -> int:
        """How many entries of a weight are kept."""
        value = self._on_line(name)
        if self._scope == "layer":
            return value.numel() - zero_count(value.numel(), self._sparsities[name])
        return int(self._mask(name, value).sum(dtype=torch.int64)) if self._sparsities[name] else value.numel()

    def _threshold(self, name: str, value: Tensor) -> float | None:
        """The magnitude up to which entries of a weight become zero; ``None`` if a mask decides instead."""
        read = self._reads_back or value.device.type == "cpu"
        if self._scope == "layer" and name not in self._thresholds and read:
            zeros = zero_count(value.numel(), self._sparsities[name])
            self._thresholds[name] = magnitude_threshold(value, zeros) if zeros else None
        return self._thresholds.get(name)

    @torch.no_grad()
    def _mask(self, name: str, value: Tensor) -> Tensor:
        """1 where an entry is kept."""
        if name not in self._masks:
            self._masks.update(self._new_masks(name, value))
        return self._masks[name]

    def _new_masks(self, name: str, value: Tensor) -> dict[str, Tensor]:
        if self._scope == "layer":
            return {name: largest_mask(value, self._sparsities[name])}
        if self._scope == "block":
            return {name: self._block_mask(name, value)}
        return largest_masks({other: self._on_line(other) for other in self._sparsities}, self._sparsities[name])

    def _block_mask(self, name: str, value: Tensor) -> Tensor:
        """The mask of a weight whose blocks lie along its inputs."""
        kept, groups = BLOCK - zero_count(BLOCK, self._sparsities[name]), self._transposed.get(name)
        if groups is None:
            return block_mask(value, kept)
        return swap_channels(block_mask(swap_channels(value, groups), kept), groups)
