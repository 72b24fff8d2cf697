"""What a compression mode is: the interface that every mode fills, and a level of a mode.

alpha lies in [0, 1] throughout: 1 is the full network, 0 the most compressed one.
"""

# Without annotations as text: jsonargparse evaluates those of a base class with the names that the module of the
# subclass has, and validates no option of a mode of the user's own where one of them is missing.
import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar

from torch import Tensor, nn

from lightning_lcs.functional.sampling import SamplingDefaults
from lightning_lcs.graph.channels.plan import ChannelPlan
from lightning_lcs.subspace.axis import Axis, check_alpha
from lightning_lcs.subspace.compression import Description, Selected, WeightTransform, shape_text
from lightning_lcs.subspace.cost import Cost, macs_of
from lightning_lcs.subspace.coverage import kept_whole, warn_of_whole
from lightning_lcs.subspace.forward import Execution, Inputs, TrainingInputs
from lightning_lcs.subspace.part import FROZEN, Part
from lightning_lcs.subspace.weights.layers import all_weights
from lightning_lcs.subspace.weights.tied import tied_parameters

DEFAULT_ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclasses.dataclass(frozen=True)
class Level:
    """A level of a mode, resolved from an alpha once and handed down.

    Attributes:
        mode: The mode.
        alpha: The level that runs, in [0, 1]; see :meth:`Mode.snap`.
        strength: The share of the compression that applies while a warm-up lasts, in [0, 1]. The default is 1.
        drawn: Values of the mode's axis that single layers drew in place of the level's, by qualified path. The default
            is none.
        statistics: The stored batch-norm statistics, by qualified name. The default is ``None``: the level has none.
        ranges: The ranges of quantized inputs, by qualified name. The default is none.

    Example:
        >>> from lightning_lcs import Structured
        >>> from lightning_lcs.subspace.mode import Level
        >>> level = Level(Structured(min_width=0.25), alpha=0.0)
        >>> level.value, level.is_full
        (0.25, False)
    """

    mode: "Mode"
    alpha: float
    strength: float = 1.0
    drawn: Mapping[str, float] = dataclasses.field(default_factory=dict)
    statistics: Mapping[str, Tensor] | None = None
    ranges: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)

    @property
    def value(self) -> float:
        """The value of the mode's axis."""
        return self.mode.value(self.alpha)

    @property
    def is_full(self) -> bool:
        """Whether the network runs as it is."""
        return self.mode.is_full(self.alpha)


class Mode:
    """A way to compress a network: options, the map from alpha to a level, and what a level does to weights.

    A mode is a frozen dataclass whose fields are its options. The methods here are those of a mode that replaces
    weights by compressed ones of the same shape in the network's own forward; such a mode defines :meth:`value` and
    :meth:`transform`, and overrides what else differs. Register it with
    :func:`lightning_lcs.subspace.modes.registry.register_mode`.

    Attributes:
        axis: The quantity that its levels change.
        default_subspace: "point" or "line": what is trained unless the user says otherwise.
        runs_as_graph: Whether levels below the full one run as the traced graph of the network; their ``model.lcs``
            holds the network itself.
        observes_inputs: Whether levels need ranges of the inputs of layers.
        has_discrete_levels: Whether there are so few levels that draws of a training step are not rounded.
        draws_per_layer: Whether single layers may draw levels of their own (on a point).
        warms_up: Whether the compression may grow over the first steps of the training.
        former_defaults: The defaults of options that files do not hold which were written before these changed.
        keeping_options: The names of the options that keep layers as they are.
        sorts_channels: Whether the channels are sorted before the first training.
        pins_layers: Whether the options name layers that have one level; all of them may be named.

    Example:
        >>> import dataclasses
        >>> from lightning_lcs.subspace.axis import Axis
        >>> from lightning_lcs.subspace.mode import Level, Mode
        >>> @dataclasses.dataclass(frozen=True, repr=False)
        ... class LowRank(Mode):
        ...     axis = Axis("rank", "Share of ranks")
        ...     smallest: float = 0.25
        ...     def value(self, alpha):
        ...         return self.smallest + (1.0 - self.smallest) * alpha
        >>> LowRank(), Level(LowRank(), alpha=0.5).value
        (LowRank(smallest=0.25), 0.625)
    """

    axis: ClassVar[Axis]
    default_subspace: ClassVar[str] = "point"
    runs_as_graph: ClassVar[bool] = False
    observes_inputs: ClassVar[bool] = False
    has_discrete_levels: ClassVar[bool] = False
    draws_per_layer: ClassVar[bool] = False
    warms_up: ClassVar[bool] = True
    former_defaults: ClassVar[dict[str, object]] = {}
    keeping_options: ClassVar[tuple[str, ...]] = ()

    @property
    def sorts_channels(self) -> bool:
        """Whether the channels are sorted before the first training."""
        return False

    @property
    def pins_layers(self) -> bool:
        """Whether the options name layers that have one level; all of them may be named."""
        return False

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in shown_options(self).items())
        return f"{type(self).__name__}({options})"

    # -- levels -----------------------------------------------------------------------------------------------------

    def value(self, alpha: float) -> float:
        """The value of the mode's axis at a level.

        Args:
            alpha: The level, in [0, 1].
        """
        raise NotImplementedError

    def snap(self, alpha: float) -> float:
        """The level that ``alpha`` stands for; by default itself.

        Args:
            alpha: The level asked for.

        Raises:
            ValueError: ``alpha`` is not in [0, 1].
        """
        return check_alpha(alpha)

    def is_full(self, alpha: float) -> bool:
        """Whether a level is the network as it is; by default alpha = 1 alone.

        Args:
            alpha: The level, in [0, 1].
        """
        return alpha == 1.0

    def default_alphas(self) -> list[float]:
        """The levels of a level table unless the user gives others."""
        return list(DEFAULT_ALPHAS)

    def sampling(self, subspace: str) -> SamplingDefaults:
        """How a training step visits the levels unless the user says otherwise.

        Args:
            subspace: "line" or "point".
        """
        return SamplingDefaults()

    def weighted(self, draw: float) -> float:
        """The level for a uniform draw in (0, 1), ascending with it, for samplers whose names begin with "weighted".

        Levels that are hard to train are to be drawn more often. By default all levels are drawn evenly.
        """
        return draw

    # -- a network --------------------------------------------------------------------------------------------------

    def select_weights(self, module: nn.Module) -> Selected:
        """Which weights of a network it compresses; by default those of all layers.

        Args:
            module: The network.

        Raises:
            ValueError: The options don't fit the network.
        """
        return Selected(all_weights(module))

    def plan(self, module: nn.Module) -> ChannelPlan:
        """An empty channel plan with the options of the mode.

        Args:
            module: The network.

        Raises:
            ValueError: The options don't fit the network, or it is of a kind that can't be sliced.
        """
        return ChannelPlan()

    def warn_of_whole(self, part: Part) -> None:
        """Warn where much of a new network stays whole without having been asked for.

        Args:
            part: The network.
        """
        warn_of_whole(part.network.module, self.kept_whole(part))

    def kept_whole(self, part: Part) -> dict[str, str]:
        """What could be compressed and stays whole, each with the reason.

        Args:
            part: The network.
        """
        reasons = {**dict.fromkeys(part.frozen(part.selected), FROZEN), **self.reasons(part)}
        return kept_whole(part.network.module, part.compressed, reasons)

    def reasons(self, part: Part) -> Mapping[str, str]:
        """Why it leaves weights of layers out where its options do not name them, by the name; by default none.

        Args:
            part: The network.
        """
        return {}

    def execution(self, part: Part, level: Level, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Execution:
        """How the network runs at a level, for this call and the current training flags.

        Args:
            part: The network.
            level: The level.
            args: The arguments of the call.
            kwargs: The keyword arguments of the call.
        """
        part.network.remember(args, kwargs)
        return part.replaced()

    def example_execution(self, part: Part, level: Level, training: bool) -> Execution:
        """How the network runs at a level for the call seen first, wholly in training or in evaluation.

        Args:
            part: The network.
            level: The level.
            training: Whether all modules are in training, instead of evaluation.

        Raises:
            RuntimeError: The mode traces the network, which was never called: its input is not known.
        """
        return part.replaced()

    def transform(
        self, part: Part, level: Level, on_line: Callable[[str], Tensor], known: dict[str, Any] | None
    ) -> WeightTransform:
        """What a level does to the compressed weights of a network.

        Args:
            part: The network.
            level: The level.
            on_line: Gives a weight at the level's place on the line, by qualified name, not compressed yet.
            known: What was computed before for this level and these weights, by name; more may be added. ``None`` to
                keep nothing, and to read nothing back from an accelerator.
        """
        raise NotImplementedError

    # -- inputs of layers -------------------------------------------------------------------------------------------

    def evaluation_inputs(self, part: Part, level: Level) -> Inputs | None:
        """What changes the inputs of layers in evaluation; by default nothing.

        Args:
            part: The network.
            level: The level.
        """
        return None

    def training_inputs(
        self, part: Part, level: Level, ranges: dict[float, dict[str, Tensor]]
    ) -> TrainingInputs | None:
        """The same in a training step, for all forwards of a level.

        Args:
            part: The network.
            level: The level.
            ranges: The ranges of inputs, by alpha and qualified name, which may be updated in place.
        """
        return None

    def calibration_inputs(self, part: Part, level: Level, add: Callable[[str, Tensor], None]) -> Inputs | None:
        """The same while statistics are collected.

        Args:
            part: The network.
            level: The level.
            add: Takes each range, by qualified name.
        """
        return None

    # -- what a level is --------------------------------------------------------------------------------------------

    def cost(self, part: Part, level: Level) -> Cost:
        """What a level of a network costs; by default a compressed weight has as many numbers as the level keeps.

        Args:
            part: The network.
            level: The level.
        """
        transform = self.transform(part, level, partial(part.on_line, alpha=level.alpha), None)
        tied = tied_parameters(part.network.module)
        density: dict[str, float] = {}
        params = size_bytes = 0
        for name, value in part.level_parameters(level.alpha, level.is_full):
            kept, weight_bytes = value.numel(), value.numel() * value.element_size()
            if name in part.compressed:
                kept = transform.kept_entries(name)
                weight_bytes = self.weight_bytes(part, level, name, value, kept)
                density.update(dict.fromkeys(tied.get(name, (name,)), kept / value.numel()))
            params, size_bytes = params + kept, size_bytes + weight_bytes
        return Cost(params, macs_of(part, density), size_bytes + part.buffer_bytes(level.is_full))

    def weight_bytes(self, part: Part, level: Level, name: str, value: Tensor, kept: int) -> int:
        """The bytes of a compressed weight at a level; by default those of the numbers that it keeps.

        Args:
            part: The network.
            level: The level.
            name: The qualified name of the weight.
            value: The weight in full.
            kept: How many numbers the level keeps of it.
        """
        return kept * value.element_size()

    def describe(self, part: Part) -> Description:
        """What the most compressed level (alpha = 0) has of the tensors of a network.

        Args:
            part: The network.
        """
        level = Level(self, 0.0)
        transform = self.transform(part, level, partial(part.on_line, alpha=level.alpha), None)
        rows, kept, full = [], 0, 0
        for name in part.compressed:
            value = part.on_line(name, level.alpha)
            left = transform.kept_entries(name)
            kept, full = kept + left, full + value.numel()
            rows.append((part.prefix + name, shape_text(value.shape), self.left(part, name, left, value.numel())))
        return Description(rows, kept, full, list(self.kept_whole(part).items()))

    def left(self, part: Part, name: str, kept: int, numbers: int) -> str:
        """What the most compressed level leaves of a weight, in words.

        Args:
            part: The network.
            name: The qualified name of the weight.
            kept: How many numbers the level keeps of it.
            numbers: How many numbers the weight has in full.
        """
        return f"{kept:,} of {numbers:,} entries"

    def report(self, part: Part, alpha: float) -> list[str]:
        """What is compressed in a network at a level, and what stays whole and why, a line each.

        Args:
            part: The network.
            alpha: The level, in [0, 1].
        """
        sizes = {name: parameter.numel() for name, parameter in part.user_parameters()}
        inside = sum(size for name, size in sizes.items() if part.sources.get(name, name) in part.compressed)
        count = len(part.compressed)
        lines = [f"{inside:,} of {sum(sizes.values()):,} parameters are in the {count} compressed weights"]
        whole = self.kept_whole(part)
        lines.extend(f"  kept whole: {name}, {sizes[name]:,} parameters ({why})" for name, why in whole.items())
        return lines

    def sort_channels(self, part: Part) -> None:
        """Sort the channels of a network, the strongest first.

        Args:
            part: The network.

        Raises:
            RuntimeError: The mode keeps all channels, or the input of the network is not known.
        """
        raise RuntimeError(f"sort_channels() is for structured mode: {self} keeps all channels")


def shown_options(mode: Mode) -> dict[str, Any]:
    """The first option of a mode, and of the others those that are not at their default."""
    first, *others = dataclasses.fields(mode)  # type: ignore[arg-type]
    shown = [first, *(field for field in others if getattr(mode, field.name) != _default(field))]
    return {field.name: getattr(mode, field.name) for field in shown}


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
