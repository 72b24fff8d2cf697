"""Structured mode: the channel width of a network, which below the full one runs as its traced graph."""

from __future__ import annotations

import dataclasses
import fnmatch
from math import prod
from typing import Any, ClassVar

from torch import nn

from lightning_lcs.functional.sampling import SamplingDefaults
from lightning_lcs.graph.channels.dims import Structure
from lightning_lcs.graph.channels.importance import importances, largest_scales, reorder, sorted_orders
from lightning_lcs.graph.channels.plan import ChannelPlan, PlanAtWidth
from lightning_lcs.graph.cost import count_macs, count_params
from lightning_lcs.graph.traced_network import training_flags
from lightning_lcs.graph.tracing.errors import check_kinds
from lightning_lcs.subspace.axis import Axis, check_alpha
from lightning_lcs.subspace.compression import Description, Selected, shape_text
from lightning_lcs.subspace.cost import Cost
from lightning_lcs.subspace.coverage import issue_pending_warnings, warn_of_whole
from lightning_lcs.subspace.forward import Traced
from lightning_lcs.subspace.mode import Level, Mode
from lightning_lcs.subspace.modes.registry import register_mode
from lightning_lcs.subspace.part import Part
from lightning_lcs.utils.options import check_types

ORDERS = ("given", "importance")
SELECTIONS = ("first", "scale")
MOST_WIDTHS = 64  # The number of widths whose selections are kept; it is limited because training may draw any width.


@register_mode("structured")
@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Structured(Mode):
    """Channel width: every group of coupled channels keeps its first ``round(C * width)`` channels, at least one.

    ``width(alpha) = min_width + (1 - min_width) * alpha`` (arXiv 2110.04252, section 4.1, with ``min_width = 0.25``).

    Args:
        min_width: The share of channels kept at alpha = 0, in (0, 1]. The default is 0.25.
        round_to: The number of channels that shrink is a multiple of this number at every width below 1, such as 8 for
            hardware that needs it. Channels per head count with the heads. The default is 1.
        min_channels: The number of channels that every group keeps, at least 1. The default is 1.
        keep: The modules that stay whole at every width, with all that is in them: paths or patterns such as
            "layer4.*". The default is none.
        order: "given", or "importance" to sort the channels of every group by the L1 norm of their weights before
            training: the narrow widths of a pretrained network then start from its strongest channels. What the network
            computes in full stays the same, up to rounding. :class:`LCSCallback` does it at the start of the first
            ``fit``; a :class:`SubspaceModel` alone does it when ``sort_channels()`` is called. The default is "given".
        select: Which channels a width keeps: "first" keeps the first of each group; "scale" keeps those with the
            largest scales of their norms in the whole network, at least one of each group, as network slimming does
            with a network that was trained plainly (arXiv 1708.06519). Groups without a norm then stay whole, and
            ``round_to`` and ``min_channels`` have no effect. The default is "first".

    Raises:
        ValueError: An option is outside its range.
        TypeError: An option has another type.

    Example:
        >>> from lightning_lcs import Structured
        >>> mode = Structured(min_width=0.5, keep=("head",))
        >>> mode.width(0.0), mode.width(0.5), mode.width(1.0)
        (0.5, 0.75, 1.0)
    """

    axis: ClassVar[Axis] = Axis("width", "Channel width")
    runs_as_graph: ClassVar[bool] = True
    warms_up: ClassVar[bool] = False

    min_width: float = 0.25
    round_to: int = 1
    min_channels: int = 1
    keep: tuple[str, ...] = ()
    order: str = "given"
    select: str = "first"

    def __post_init__(self) -> None:
        check_types(self)
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

    def width(self, alpha: float) -> float:
        """The share of channels kept at a level.

        Args:
            alpha: The level, in [0, 1].

        Returns:
            The width, in [min_width, 1].

        Raises:
            ValueError: ``alpha`` is not in [0, 1].
        """
        return self.min_width + (1.0 - self.min_width) * check_alpha(alpha)

    @property
    def sorts_channels(self) -> bool:
        """Whether the channels are sorted before the first training."""
        return self.order == "importance"

    def value(self, alpha: float) -> float:
        """The width at ``alpha``."""
        return self.width(alpha)

    def sampling(self, subspace: str) -> SamplingDefaults:
        """The sandwich rule (arXiv 2110.04252, Algorithm 1), from the first step."""
        return SamplingDefaults(sampler="sandwich")

    def select_weights(self, module: nn.Module) -> Selected:
        """No weight is replaced: the graph takes slices of all."""
        return Selected()

    def plan(self, module: nn.Module) -> ChannelPlan:
        """An empty plan with these options.

        Raises:
            ValueError: ``keep`` names modules that do not exist, or the network is of a kind that can't be sliced.
        """
        check_kinds(module)
        for pattern in self.keep:
            if not any(fnmatch.fnmatchcase(path, pattern) for path, _ in module.named_modules()):
                raise ValueError(f"keep={pattern!r} fits the path of no module of {type(module).__name__}")
        return ChannelPlan(Structure(min_channels=self.min_channels), keep=self.keep, round_to=self.round_to)

    def warn_of_whole(self, part: Part) -> None:
        """Nothing yet: what stays whole is known once the network was traced."""

    def kept_whole(self, part: Part) -> dict[str, str]:
        """The tensors of which nothing shrinks because of an op, each with the op."""
        return part.plan.tensors_kept_whole()

    def execution(self, part: Part, level: Level, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Traced:
        """The traced graph with sliced tensors."""
        program = part.network.program(args, kwargs)
        if not part.warned:
            part.warned = True
            warn_of_whole(part.network.module, self.kept_whole(part))
        issue_pending_warnings(part.network.pending_warnings)
        return Traced(program, self.selection(part, level.alpha), part.features)

    def example_execution(self, part: Part, level: Level, training: bool) -> Traced:
        """The traced graph of the call seen first.

        Raises:
            RuntimeError: The network was never called: its input is not known.
        """
        part.network.in_mode(training)  # Raises an error if the network can't be traced in this mode.
        with training_flags(part.network.module, training):
            return self.execution(part, level, *part.network.example_inputs())

    def selection(self, part: Part, alpha: float) -> PlanAtWidth:
        """What a level keeps of the network as it is now."""
        width, plan = self.width(alpha), part.plan
        if self.select == "first" or width == 1.0:
            return _first_channels(part, width)
        known = {name: part.network.tensor(name) for name in part.scale_names()}
        return plan.selection(width, largest_scales(plan, known, width))

    def cost(self, part: Part, level: Level) -> Cost:
        """The sliced parameters and buffers, and the operations of the graph at the width."""
        execution = self.example_execution(part, level, False)
        at, program, tensor = execution.at, execution.program, part.network.tensor
        parameters = dict(part.user_parameters())
        count, parameter_bytes = count_params(at, dict(parameters))
        buffers = {name: tensor(name) for name in program.names if name not in parameters}
        _, buffer_bytes = count_params(at, {k: v for k, v in buffers.items() if not isinstance(v, nn.Parameter)})
        return Cost(count, count_macs(program, at, tensor), parameter_bytes + buffer_bytes)

    def describe(self, part: Part) -> Description:
        """The shapes of the sliced tensors, in full and at alpha = 0."""
        part.network.in_mode(False)
        plan, at = part.plan, self.selection(part, 0.0)
        shapes = {name: [plan.structure.size(dim) for dim in dims] for name, dims in plan.tensors.items()}
        rows = [
            (part.prefix + name, shape_text(shapes[name]), shape_text(at.shape(name)))
            for name, sliced in plan.sliced().items()
            if sliced
        ]
        whole = [
            (f"{name}, dimension {axis}", why)
            for name, dims in plan.dimensions_kept_whole().items()
            for axis, why in dict.fromkeys(dims)
        ]
        return Description(rows, sum(prod(at.shape(name)) for name in shapes), sum(map(prod, shapes.values())), whole)

    def report(self, part: Part, alpha: float) -> list[str]:
        """The report of the channel plan."""
        part.network.in_mode(False)
        return part.plan.report(self.width(alpha)).splitlines()

    def sort_channels(self, part: Part) -> None:
        """Put the channels of every group in the order of their importance, also of those that nothing trains yet."""
        part.network.in_mode(False)
        plan, names = part.network.plan, part.network.plan.tensors
        tensors = {name: [part.network.tensor(name)] for name in names}
        orders = sorted_orders(importances(plan, {name: values[0] for name, values in tensors.items()}))
        for name, endpoint in part.endpoints.items():
            if name in tensors:
                tensors[name].append(endpoint)
        reorder(plan, tensors, orders)


def _first_channels(part: Part, width: float) -> PlanAtWidth:
    """The selection of the first channels, cached for the widths that were used last."""
    held: PlanAtWidth | None = part.cache.get(width)
    plan = part.plan
    if held is None or held.plan is not plan:
        if len(part.cache) >= MOST_WIDTHS:
            del part.cache[next(iter(part.cache))]
        held = part.cache[width] = plan.selection(width)
    return held
