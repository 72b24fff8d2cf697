"""The compression modes: frozen options, and the map from alpha to what a level of compression means.

Throughout the project alpha lies in [0, 1]; 1 is the full model, 0 the most compressed one.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

from lightning_lcs.subspace.mode import Axis


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Structured:
    """Channel width: every group of coupled channels keeps its first ``round(C * width)`` channels, at least one.

    ``width(alpha) = min_width + (1 - min_width) * alpha`` (arXiv 2110.04252, section 4.1, with ``min_width = 0.25``).

    Args:
        min_width: share of channels kept at alpha = 0, in (0, 1].
        round_to: numbers of channels that shrink are multiples of it, at every width below 1; such as 8 for hardware
            that wants it. Channels per head count with the heads.
        min_channels: channels that every group keeps.
        keep: modules that stay whole at every width, with all that is in them: paths or patterns such as "layer4.*".
        order: "given", or "importance" to sort the channels of every group by the L1 norm of their weights before
            training: the narrow widths of a pretrained network then start from its strongest channels. What the network
            computes in full stays the same, up to rounding. :class:`LCSCallback` does it at the start of the first
            ``fit``; a :class:`SubspaceModel` alone when ``sort_channels()`` is called.
        select: which channels a width keeps: "first" of each group, or those of "scale": with the largest scales of
            their norms in the whole network, at least one of each group, as network slimming does with a network that
            was trained plainly (arXiv 1708.06519). Groups without a norm then stay whole, and ``round_to`` and
            ``min_channels`` have no effect.

    Raises:
        ValueError: an option outside its range.
    """

    axis: ClassVar[Axis] = Axis("width", "Channel width")
    default_subspace: ClassVar[str] = "point"

    min_width: float = 0.25
    round_to: int = 1
    min_channels: int = 1
    keep: tuple[str, ...] = ()
    order: str = "given"
    select: str = "first"

    def __post_init__(self) -> None:
        if not 0.0 < self.min_width <= 1.0:
            raise ValueError(
                f"min_width={self.min_width!r} is not in (0, 1]: it is the share of channels kept at alpha = 0; "
                "use, for example, 0.25"
            )
        for option in ("round_to", "min_channels"):
            value = getattr(self, option)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{option}={value!r} is not a number of channels; use 1 to leave it out, or 8, say")
        for option, known in (("order", ORDERS), ("select", SELECTIONS)):
            if getattr(self, option) not in known:
                raise ValueError(f"{option}={getattr(self, option)!r} is not known; choose one of {known}")
        object.__setattr__(self, "keep", tuple(self.keep))

    def __repr__(self) -> str:
        return _short(self)

    def width(self, alpha: float) -> float:
        """Share of channels kept at ``alpha``, in [min_width, 1]."""
        return self.min_width + (1.0 - self.min_width) * check_alpha(alpha)

    def sparsity(self, alpha: float) -> float:
        """Share of weights that are zero: none."""
        return 0.0

    def bit_width(self, alpha: float) -> int:
        """Bits per weight: those of a float."""
        return 32

    def snap(self, alpha: float) -> float:
        """The level that ``alpha`` stands for: itself."""
        return check_alpha(alpha)

    def is_full(self, alpha: float) -> bool:
        """Whether ``alpha`` is the network as it is."""
        return alpha == 1.0


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Unstructured:
    """Sparsity: every convolution's and linear layer's weight keeps its entries of largest magnitude.

    ``sparsity(alpha) = max_sparsity - (max_sparsity - min_sparsity) * alpha``. By default the share kept runs from
    0.025 to 1 (arXiv 2110.04252, section 4.2); its high-sparsity variant is ``max_sparsity=0.995, min_sparsity=0.95``.

    Args:
        max_sparsity: share of zeros at alpha = 0, in [0, 1).
        min_sparsity: share of zeros at alpha = 1, in [0, max_sparsity].
        dense: layers whose weights are kept whole: any of "first" (the first convolution), "last" (the last linear
            layer, the head) and "depthwise" (convolutions with as many groups as channels), by order of registration.
        scope: among which entries the largest are kept: "layer" (of each weight), "global" (of all weights of the
            network together, at least one of each) or "block" (of each four consecutive inputs, as accelerators want it
            in their 2:4 pattern; both sparsities are then multiples of 0.25, and so is every level's).

    Raises:
        ValueError: an option outside its range.
    """

    axis: ClassVar[Axis] = Axis("sparsity", "Share of zeros", full=0.0)
    default_subspace: ClassVar[str] = "line"

    max_sparsity: float = 0.975
    min_sparsity: float = 0.0
    dense: tuple[str, ...] = ("first", "last")
    scope: str = "layer"

    def __post_init__(self) -> None:
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
                f"dense={self.dense!r} holds something else than {', '.join(map(repr, DENSE_LAYERS))}; give a tuple of "
                "these, () to make every layer sparse"
            )
        if self.scope not in SCOPES:
            raise ValueError(f"scope={self.scope!r} is not known; choose one of {', '.join(map(repr, SCOPES))}")
        if self.scope == "block" and any(value % 0.25 for value in (self.min_sparsity, self.max_sparsity)):
            raise ValueError(
                f"scope='block' with min_sparsity={self.min_sparsity!r} and max_sparsity={self.max_sparsity!r}: of "
                "four entries 0 to 3 become zero, so that both are in {0, 0.25, 0.5, 0.75}; use max_sparsity=0.5 for "
                "the 2:4 pattern"
            )
        object.__setattr__(self, "dense", tuple(self.dense))

    def __repr__(self) -> str:
        return _short(self)

    def width(self, alpha: float) -> float:
        """Share of channels kept: all."""
        return 1.0

    def sparsity(self, alpha: float) -> float:
        """Share of zeros in each compressed weight at ``alpha``; in all together with ``scope="global"``."""
        return self.max_sparsity - (self.max_sparsity - self.min_sparsity) * self.snap(alpha)

    def is_full(self, alpha: float) -> bool:
        """Whether ``alpha`` is the network as it is."""
        return alpha == 1.0 and self.min_sparsity == 0.0

    def bit_width(self, alpha: float) -> int:
        """Bits per weight: those of a float."""
        return 32

    def snap(self, alpha: float) -> float:
        """The level that ``alpha`` stands for: itself; with ``scope="block"`` the nearest that four entries allow."""
        steps = 4 * (self.max_sparsity - self.min_sparsity) if self.scope == "block" else 0
        return math.floor(check_alpha(alpha) * steps + 0.5) / steps if steps else check_alpha(alpha)


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Quantized:
    """Bit width: weights and input activations of convolutions and linear layers are affine-quantized to b bits.

    With ``n = max_bits - min_bits + 1`` bit widths, ``alpha = k / n`` is the k-th of them, and so is every alpha down
    to ``(k - 1) / n``; alpha = 0 is the smallest (arXiv 2110.04252, section 4.3, with 3 to 8 bits). The quantization is
    simulated in floating point. A line is trained at ``k / n`` only, and never at its endpoint 0 itself.

    Args:
        min_bits: at alpha = 0, in 2..8.
        max_bits: at alpha = 1, in min_bits..8.
        edge_bits: of the first convolution and the last linear layer, at every alpha: 2..8, or 32 for full precision,
            as in the paper.
        per_channel: a range per output channel of each weight instead of one per weight.
        layer_bits: bits of single layers at every alpha, by path or pattern: ``{"layer4.*": 8}``; 2..8, or 32. The
            first pattern that fits a layer holds, before ``edge_bits``.

    Raises:
        ValueError: an option outside its range.
    """

    axis: ClassVar[Axis] = Axis("bit_width", "Bits", format=".0f", full=32)
    default_subspace: ClassVar[str] = "point"

    min_bits: int = 3
    max_bits: int = 8
    edge_bits: int = 8
    per_channel: bool = False
    layer_bits: Mapping[str, int] = dataclasses.field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
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
        object.__setattr__(self, "layer_bits", dict(self.layer_bits))

    def __repr__(self) -> str:
        return _short(self)

    def width(self, alpha: float) -> float:
        """Share of channels kept: all."""
        return 1.0

    def sparsity(self, alpha: float) -> float:
        """Share of weights that are zero by compression: none."""
        return 0.0

    def bit_width(self, alpha: float) -> int:
        """Bits per weight and activation at ``alpha``."""
        return self.min_bits - 1 + self._number(alpha)

    def snap(self, alpha: float) -> float:
        """The level that ``alpha`` stands for: ``k / n``."""
        return self.alpha(self.bit_width(alpha))

    def alpha(self, bits: int) -> float:
        """The level of so many bits: the inverse of :meth:`bit_width`."""
        return (bits - self.min_bits + 1) / (self.max_bits - self.min_bits + 1)

    def is_full(self, alpha: float) -> bool:
        """Whether ``alpha`` is the network as it is: never."""
        return False

    def _number(self, alpha: float) -> int:
        count = self.max_bits - self.min_bits + 1
        # k / n as a float may lie a little above k / n.
        return max(1, math.ceil(check_alpha(alpha) * count - 1e-9))


def _short(mode: Mode) -> str:
    return f"{type(mode).__name__}({', '.join(f'{name}={value!r}' for name, value in _options(mode).items())})"


def _options(mode: Mode) -> dict[str, Any]:
    """The first option of a mode, and of the others those that are not at their default."""
    first, *others = dataclasses.fields(mode)
    shown = [first, *(field for field in others if getattr(mode, field.name) != _default(field))]
    return {field.name: getattr(mode, field.name) for field in shown}


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


ORDERS = ("given", "importance")
SELECTIONS = ("first", "scale")
SCOPES = ("layer", "global", "block")
DENSE_LAYERS = ("first", "last", "depthwise")
Mode = Structured | Unstructured | Quantized
MODES: dict[str, type[Structured] | type[Unstructured] | type[Quantized]] = {
    "structured": Structured,
    "unstructured": Unstructured,
    "quantized": Quantized,
}
SUBSPACES = ("line", "point")


def axes() -> dict[str, Axis]:
    """The axis of every mode, by name."""
    return {mode.axis.name: mode.axis for mode in MODES.values()}


def check_alpha(alpha: float) -> float:
    """``alpha`` as a float.

    Raises:
        ValueError: it is not a number in [0, 1] (NaN included).
    """
    try:
        value = float(alpha)
    except (TypeError, ValueError):
        value = math.nan
    if math.isnan(value) or not 0.0 <= value <= 1.0:
        raise ValueError(f"alpha={alpha!r} is not in [0, 1]: 1 is the full model, 0 the most compressed one")
    return value


def check_subspace(subspace: str) -> str:
    """``subspace`` itself.

    Raises:
        ValueError: it is neither "line" nor "point".
    """
    if subspace not in SUBSPACES:
        raise ValueError(f"subspace={subspace!r} is not known; choose one of {', '.join(map(repr, SUBSPACES))}")
    return subspace


def parse_mode(mode: str | Mode | Mapping[str, Any]) -> Mode:
    """The one place where a mode given as text is read.

    Args:
        mode: a name ("structured", "unstructured", "quantized"), a mode object, or a mapping as :func:`mode_to_dict`
            writes it.

    Raises:
        ValueError: the name, or an option, is not known.
    """
    if isinstance(mode, (Structured, Unstructured, Quantized)):
        return mode
    options = dict(mode) if isinstance(mode, Mapping) else {"name": mode}
    name = options.pop("name", "structured")
    if not isinstance(name, str) or name not in MODES:
        raise ValueError(f"mode={name!r} is not known; choose one of {', '.join(map(repr, MODES))}")
    known = [field.name for field in dataclasses.fields(MODES[name])]
    unknown = [option for option in options if option not in known]
    if unknown:
        raise ValueError(f"mode={name!r} has no option {unknown[0]!r}; its options are {', '.join(map(repr, known))}")
    return MODES[name](**options)


def mode_to_dict(mode: Mode) -> dict[str, Any]:
    """Plain data (numbers and text) that :func:`parse_mode` reads back; safe in checkpoints and hyperparameters."""
    name = next(key for key, kind in MODES.items() if isinstance(mode, kind))
    options = _options(mode)
    plain = {key: list(value) if isinstance(value, tuple) else copy.copy(value) for key, value in options.items()}
    return {"name": name, **plain}
