"""Quantized mode: weights and inputs of layers at a bit width, simulated in floating point."""

from __future__ import annotations

import dataclasses
import fnmatch
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from lightning_lcs.functional.quantization import AffineGrid, affine_grids, fake_quantize, round_to_grid
from lightning_lcs.functional.ranges import SEARCHES
from lightning_lcs.functional.sampling import SamplingDefaults
from lightning_lcs.subspace.axis import Axis, check_alpha
from lightning_lcs.subspace.compression import Selected
from lightning_lcs.subspace.mode import Level, Mode
from lightning_lcs.subspace.modes.observers import Collecting, LayerBits, Observing, Reading
from lightning_lcs.subspace.modes.registry import register_mode
from lightning_lcs.subspace.modes.weight_ranges import WeightRanges
from lightning_lcs.subspace.part import Part
from lightning_lcs.subspace.weights.layers import all_weights, layer_of
from lightning_lcs.subspace.weights.tied import tied_parameters
from lightning_lcs.utils.options import check_types


@register_mode("quantized")
@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Quantized(Mode):
    """Bit width: weights and input activations of layers are affine-quantized to b bits.

    Layers are convolutions and linear layers. Of recurrent layers and of torch's attention the weights are quantized,
    and their inputs stay float.

    With ``n = max_bits - min_bits + 1`` bit widths, ``alpha = k / n`` is the k-th of them, and so is every alpha down
    to ``(k - 1) / n``; alpha = 0 is the smallest (arXiv 2110.04252, section 4.3, with 3 to 8 bits). The quantization is
    simulated in floating point. A line is trained at ``k / n`` only, and never at its endpoint 0 itself.

    Args:
        min_bits: The bit width at alpha = 0, in 2..8. The default is 3.
        max_bits: The bit width at alpha = 1, in min_bits..8. The default is 8.
        edge_bits: The bit width of the first convolution and the last linear layer at every alpha: 2..8, or 32 for full
            precision, as in the paper. The default is 8.
        per_channel: Whether each output channel of a weight has a range of its own, instead of one range per weight.
            Weights that layers hold in different orders, as a convolution and a transposed one may, have one range.
            The default is true.
        weight_range: How the range of a weight is found: "minmax" (from its smallest to its largest value) or "mse"
            (the range whose grid has the least squared error, which clips values; see :func:`least_error_range`). The
            default is "mse".
        input_range: The same of the inputs of layers, whose ranges are averages over batches. The default is "mse".
        layer_bits: The bit widths of single layers at every alpha, by path or pattern, such as ``{"layer4.*": 8}``;
            each is in 2..8, or 32. The first pattern that fits a layer holds, before ``edge_bits``. Layers that share
            a weight have the most bits that any of them is given. The default is none.

    Raises:
        ValueError: An option is outside its range.
        TypeError: An option has another type.

    Example:
        >>> from lightning_lcs import Quantized
        >>> mode = Quantized(min_bits=4)
        >>> mode.bit_width(0.0), mode.bit_width(1.0), mode.alpha(6)
        (4, 8, 0.6)
    """

    axis: ClassVar[Axis] = Axis("bit_width", "Bits", format=".0f", full=32)
    observes_inputs: ClassVar[bool] = True
    has_discrete_levels: ClassVar[bool] = True
    draws_per_layer: ClassVar[bool] = True
    keeping_options: ClassVar[tuple[str, ...]] = ("edge_bits", "layer_bits")
    former_defaults: ClassVar[dict[str, object]] = {
        "per_channel": False,
        "weight_range": "minmax",
        "input_range": "minmax",
    }

    min_bits: int = 3
    max_bits: int = 8
    edge_bits: int = 8
    per_channel: bool = True
    weight_range: str = "mse"
    input_range: str = "mse"
    layer_bits: Mapping[str, int] = dataclasses.field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        check_types(self)
        if not 2 <= self.min_bits <= self.max_bits <= 8:
            raise ValueError(
                f"min_bits={self.min_bits!r} and max_bits={self.max_bits!r} are not in order in 2..8; use, for "
                "example, 3 and 8"
            )
        pinned = {
            "edge_bits": self.edge_bits,
            **{f"layer_bits[{key!r}]": bits for key, bits in self.layer_bits.items()},
        }
        for option, bits in pinned.items():
            if bits not in (*range(2, 9), 32):
                raise ValueError(f"{option}={bits!r} is neither in 2..8 nor 32, which is full precision")
        for option in ("weight_range", "input_range"):
            if getattr(self, option) not in SEARCHES:
                raise ValueError(
                    f"{option}={getattr(self, option)!r} is not known; choose one of {', '.join(map(repr, SEARCHES))}"
                )
        object.__setattr__(self, "layer_bits", dict(self.layer_bits))

    def bit_width(self, alpha: float) -> int:
        """The bits of each weight and activation at a level.

        Args:
            alpha: The level, in [0, 1].

        Returns:
            The bit width, in min_bits..max_bits.

        Raises:
            ValueError: ``alpha`` is not in [0, 1].
        """
        return self.min_bits - 1 + self._number(alpha)

    def snap(self, alpha: float) -> float:
        """The level that ``alpha`` stands for: ``k / n``."""
        return self.alpha(self.bit_width(alpha))

    def alpha(self, bits: int) -> float:
        """The level of a bit width: the inverse of :meth:`bit_width`.

        Args:
            bits: The bit width, in min_bits..max_bits.

        Returns:
            The level, in (0, 1].
        """
        return (bits - self.min_bits + 1) / (self.max_bits - self.min_bits + 1)

    def is_full(self, alpha: float) -> bool:
        """Whether ``alpha`` is the network as it is: never."""
        return False

    def _number(self, alpha: float) -> int:
        count = self.max_bits - self.min_bits + 1
        # k / n as a float may lie a little above k / n.
        return max(1, math.ceil(check_alpha(alpha) * count - 1e-9))

    @property
    def pins_layers(self) -> bool:
        """Whether ``layer_bits`` names layers; whoever pins all layers has asked for it."""
        return bool(self.layer_bits)

    def value(self, alpha: float) -> int:
        """The bit width at ``alpha``."""
        return self.bit_width(alpha)

    def default_alphas(self) -> list[float]:
        """Every bit width."""
        return [self.alpha(bits) for bits in range(self.min_bits, self.max_bits + 1)]

    def sampling(self, subspace: str) -> SamplingDefaults:
        """Even draws; the inputs of layers are quantized in the second half of the training.

        The paper quantizes them in the last fifth (arXiv 2110.04252), when the learning rate is low: a network at 3
        bits then ends 6 points lower after 20 epochs (docs/results.md).
        """
        return SamplingDefaults("uniform_draws", warmup=0.5, warmup_schedule="delayed")

    def weighted(self, draw: float) -> float:
        """The two lowest bit widths are drawn twice as often as the others."""
        widths = range(self.min_bits, self.max_bits + 1)
        tickets = [bits for bits in widths for _ in range(2 if bits < self.min_bits + 2 else 1)]
        return self.alpha(tickets[int(draw * len(tickets))])

    def select_weights(self, module: nn.Module) -> Selected:
        """The weights of all layers, of which some have the same bits at every level.

        Raises:
            ValueError: ``layer_bits`` names layers that do not exist.
        """
        every = all_weights(module)
        inner = all_weights(module, ("first", "last"))
        edges = {name: self.edge_bits for name in every if name not in inner}
        fixed: dict[str, int] = {}
        unused = set(self.layer_bits)
        for name in every:
            fits = [pattern for pattern in self.layer_bits if fnmatch.fnmatchcase(layer_of(name), pattern)]
            if fits:
                fixed[name] = self.layer_bits[fits[0]]
                unused.difference_update(fits)
        if unused:
            layers = dict.fromkeys(map(layer_of, every))
            raise ValueError(
                f"layer_bits names {', '.join(map(repr, sorted(unused)))}, which fits no layer of "
                f"{type(module).__name__}; its layers are {', '.join(map(repr, layers))}"
            )
        tied = tied_parameters(module).values()
        fixed = {**_shared(edges, tied), **_shared(fixed, tied)}
        whole = {name for name, bits in fixed.items() if bits == 32}
        compressed = tuple(name for name in every if name not in whole)
        return Selected(compressed, {name: bits for name, bits in fixed.items() if name not in whole})

    def transform(
        self, part: Part, level: Level, on_line: Callable[[str], Tensor], known: dict[str, Any] | None
    ) -> QuantizedWeights:
        """Each weight rounded to the numbers that its bits can represent."""
        return QuantizedWeights(part.compressed, layer_bits(part, level), self.weight_ranges(part), on_line, known)

    def weight_ranges(self, part: Part) -> WeightRanges:
        """How the ranges of the weights of a network are found."""
        by_channel = frozenset(part.compressed) - part.crosswise if self.per_channel else frozenset()
        groups = {name: groups for name, groups in part.transposed.items() if name in by_channel}
        return WeightRanges(by_channel, groups, self.weight_range)

    def evaluation_inputs(self, part: Part, level: Level) -> Reading:
        """The inputs quantized with the stored ranges of the level."""
        # A copy, because training goes on to update the ranges.
        ranges = {**level.ranges, **(level.statistics or {})}
        return Reading(ranges, part.prefix, layer_bits(part, level))

    def training_inputs(self, part: Part, level: Level, ranges: dict[float, dict[str, Tensor]]) -> Observing:
        """The inputs quantized with moving ranges, once the warm-up is over."""
        visited = {self.bit_width(level.alpha), *map(int, level.drawn.values())}
        moving = {bits: ranges.setdefault(self.alpha(bits), {}) for bits in visited}
        quantize = level.strength >= 1.0
        return Observing(moving, part.prefix, part.layers, layer_bits(part, level), quantize, self.input_range)

    def calibration_inputs(self, part: Part, level: Level, add: Callable[[str, Tensor], None]) -> Collecting:
        """The inputs quantized with the range of each batch."""
        return Collecting(add, part.prefix, layer_bits(part, level), self.input_range)

    def weight_bytes(self, part: Part, level: Level, name: str, value: Tensor, kept: int) -> int:
        """The integers, and for each range a float32 scale and an int8 zero point."""
        ranges = self.weight_ranges(part).count(name, value)
        return -(-kept * layer_bits(part, level)(layer_of(name)) // 8) + 5 * ranges

    def report(self, part: Part, alpha: float) -> list[str]:
        """What is compressed, what stays whole and why, and which weights have inputs that stay float."""
        lines = super().report(part, alpha)
        alone = [name for name in part.compressed if layer_of(name) not in part.layers]
        return [*lines, *(f"  quantized, with inputs that stay float: {name}" for name in alone)]

    def left(self, part: Part, name: str, kept: int, numbers: int) -> str:
        """The bits of a weight at alpha = 0, in words."""
        return f"{int(part.pinned.get(name, self.min_bits))} bits"


def _shared(bits: Mapping[str, int], tied: Iterable[Sequence[str]]) -> dict[str, int]:
    """The bits of weights, where all names of one parameter have the most that any of them is given."""
    shared = dict(bits)
    for names in tied:
        given = [bits[name] for name in names if name in bits]
        shared.update(dict.fromkeys(names, max(given)) if given else {})
    return shared


def layer_bits(part: Part, level: Level) -> LayerBits:
    """The bits of each layer of a network at a level of quantized mode."""
    drawn = {path: int(bits) for path, bits in part.own(level.drawn).items()}
    return LayerBits(int(level.value), drawn, {layer_of(name): int(bits) for name, bits in part.pinned.items()})


class QuantizedWeights:
    """The weights of a network at a bit width.

    Args:
        names: The names of the compressed weights.
        bits: The bits of each layer, by its path.
        ranges: How the ranges of the weights are found.
        on_line: Gives a weight that is not compressed yet, by its name.
        known: The known ranges of this level and these weights, by name; further ones are added. ``None`` keeps none.
    """

    def __init__(
        self,
        names: tuple[str, ...],
        bits: LayerBits,
        ranges: WeightRanges,
        on_line: Callable[[str], Tensor],
        known: dict[str, Any] | None = None,
    ) -> None:
        self._names = names
        self._bits = bits
        self._ranges = ranges
        self._on_line = on_line
        self._known: dict[str, tuple[Tensor, Tensor]] = {} if known is None else known
        self._grids: dict[str, AffineGrid] = {}
        # The weights on the line, kept between the search for all their grids and the rounding of each.
        self._values: dict[str, Tensor] = {}

    def __call__(self, name: str) -> Tensor:
        """The weight rounded to its bits; gradients pass straight through."""
        return self._ranges.swapped(name, self._rounded(name))

    def _rounded(self, name: str) -> Tensor:
        """The rounded weight with its outputs in dimension 0."""
        value = self._values.pop(name) if name in self._values else self._outputs_first(name)
        if value.device.type == "cpu":
            # One weight at a time, so that it is still in the processor's cache when it is rounded.
            return fake_quantize(value, *self._find({name: value})[name], self._bits_of(name))
        if not self._grids:
            self._values = {other: self._outputs_first(other) for other in self._names if other != name}
            weights = {name: value, **self._values}
            self._grids = affine_grids(self._find(weights), {weight: self._bits_of(weight) for weight in weights})
        return round_to_grid(value, self._grids[name])

    def _find(self, weights: Mapping[str, Tensor]) -> Mapping[str, tuple[Tensor, Tensor]]:
        """The ranges of weights, of which those that are not known yet are found together."""
        unknown = {name: value for name, value in weights.items() if name not in self._known}
        self._known.update(self._ranges.find(unknown, self._bits_of))
        return {name: self._known[name] for name in weights}

    def _bits_of(self, name: str) -> int:
        return self._bits(layer_of(name))

    def _outputs_first(self, name: str) -> Tensor:
        return self._ranges.swapped(name, self._on_line(name))

    def gradient(self, name: str, value: Tensor, gradient: Tensor) -> Tensor:
        """The gradient as it is."""
        return gradient

    def kept_entries(self, name: str) -> int:
        """The number of entries; all of them are kept, with fewer bits."""
        return self._on_line(name).numel()
