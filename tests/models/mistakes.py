"""Mistakes planted on purpose: a tensor sliced wrongly, a rule broken. The checks must tell."""

import contextlib
import random
from collections.abc import Callable, Iterator
from math import prod
from typing import Any
from unittest import mock

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from lightning_lcs.graph.channels.dims import Dim, Structure
from lightning_lcs.graph.channels.plan import ChannelPlan, Indices, PlanAtWidth
from lightning_lcs.graph.channels.propagate import propagate
from lightning_lcs.graph.channels.rules import RULES, Call
from lightning_lcs.graph.channels.rules.call import Rule, op_name
from lightning_lcs.graph.program import Program
from lightning_lcs.graph.verify import check_faithful
from lightning_lcs.model import SubspaceModel
from tests.equivalence.masking import MaskMismatchError, masked_forward, survivors
from tests.helpers import relative

HALF, HALF_WIDTH = 1 / 3, 0.5
MISTAKES = 10  # of each kind, planted in each network
NOTICED = 1e-9  # of the largest output, in float64: rounding is far below it


def wrong_slices(
    model: SubspaceModel, x: Tensor, expected: list[Tensor], count: int = MISTAKES, seed: int = 0
) -> list[tuple[str, bool]]:
    """Slice one dimension of one tensor wrongly, its last entries in the place of its first, and so with others.

    Args:
        model: a point subspace.
        x: images.
        expected: of the masked run at width .5.
        count: number of dimensions, drawn at random.
        seed: of the draw.

    Returns:
        Which tensor and dimension, and whether the result differs from the masked run's.
    """
    right, tensor = PlanAtWidth.of, model.parts[0].network.tensor
    at = model.plan.selection(HALF_WIDTH)
    sliced = [
        (name, axis)
        for name in model.plan.tensors
        for axis, kept in enumerate(at.of(name))
        if isinstance(kept, int) and kept < tensor(name).shape[axis]
    ]
    found = []
    for name, axis in random.Random(seed).sample(sliced, min(count, len(sliced))):
        size = tensor(name).shape[axis]

        def wrong(self: PlanAtWidth, asked: str, name: str = name, axis: int = axis, size: int = size) -> Any:
            selection = list(right(self, asked))
            if asked == name:
                selection[axis] = Indices(range(size - selection[axis], size))
            return tuple(selection)

        with mock.patch.object(PlanAtWidth, "of", wrong), torch.no_grad():
            ours = leaves(model.materialize(HALF)(x))
        found.append((f"{name}, dimension {axis}", differ(ours, expected)))
    return found


def sizes_stay(rule: Rule) -> Rule:
    """Sizes among the arguments (of a view, groups, normalized_shape, bounds of a slice) are not recomputed."""

    def broken(call: Call) -> Any:
        result = rule(call)
        call.resized.clear()
        return result

    return broken


def one_block(rule: Rule) -> Rule:
    """What a dimension is made of (segments, heads, groups, ties to others) is forgotten."""

    def broken(call: Call) -> Any:
        def forget(dim: Dim) -> Dim:
            return call.structure.fresh(call.structure.size(dim)) if call.structure.free(dim) else dim

        result = rule(call)
        nested = bool(result) and isinstance(result[0], list)
        return [[forget(dim) for dim in dims] for dims in result] if nested else [forget(dim) for dim in result]

    return broken


def backwards(rule: Rule) -> Rule:
    """Segments and factors are in the wrong order."""

    def broken(call: Call) -> Any:
        result = rule(call)
        nested = bool(result) and isinstance(result[0], list)
        return result[::-1] if nested else [tuple(term[::-1] for term in dim[::-1]) for dim in result]

    return broken


def wrong_axes(rule: Rule) -> Rule:
    """Two dimensions of equal size are taken for each other."""

    def broken(call: Call) -> Any:
        result = list(rule(call))
        if result and isinstance(result[0], list):
            return result
        sizes = [call.structure.size(dim) for dim in result]
        for axis, size in enumerate(sizes):
            if size > 1 and size in sizes[axis + 1 :]:
                other = sizes.index(size, axis + 1)
                result[axis], result[other] = result[other], result[axis]
        return result

    return broken


def other_inputs(rule: Rule) -> Rule:
    """Inputs and outputs of a weight are taken for each other."""

    def broken(call: Call) -> Any:
        right = call.dims

        def swapped(arg: Any) -> Any:
            dims = right(arg)
            is_weight = arg in call.node.args[1:2] and len(dims) > 1
            return [dims[1], dims[0], *dims[2:]] if is_weight else dims

        call.dims = swapped  # type: ignore[method-assign]
        return rule(call)

    return broken


KINDS: tuple[Callable[[Rule], Rule], ...] = (sizes_stay, one_block, backwards, wrong_axes, other_inputs)


def broken_rules(model: SubspaceModel, x: Tensor, count: int = MISTAKES, seed: int = 0) -> list[tuple[str, bool]]:
    """Break one rule, for all ops of its name, and plan the network anew.

    Args:
        model: a point subspace.
        x: images.
        count: number of breakages, drawn at random among those that change what is sliced or how sizes are computed.
        seed: of the draw.

    Returns:
        Which breakage, and whether it is told: by an error, by a difference from the masked run, or by a larger share
        of numbers left in the report.
    """
    graph = model.parts[0].network.in_mode(False).trace.graph
    names = {op_name(node) for node in graph.nodes if node.op == "call_function"}
    keys = sorted({name if name in RULES else name.rstrip("_") for name in names} & RULES.keys())
    candidates = [(key, kind) for key in keys for kind in KINDS]
    random.Random(seed).shuffle(candidates)
    with planned(model, {}) as right:
        usual = _outline(*right)
    found: list[tuple[str, bool]] = []
    for key, kind in candidates:
        if len(found) == count:
            break
        told = _told(model, x, {key: kind(RULES[key])}, usual)
        if told is not None:
            found.append((f"{key}: {kind.__name__}", told))
    return found


# What a plan that is wrong may come to; nothing is left of the channels of a head, say.
_TOLD = (
    *(MaskMismatchError, NotImplementedError, RuntimeError, ValueError, IndexError, TypeError, KeyError),
    ZeroDivisionError,
)


def _told(model: SubspaceModel, x: Tensor, rules: dict[str, Rule], usual: Any) -> bool | None:
    """Whether broken rules are noticed; ``None`` where they change nothing."""
    network = model.parts[0].network
    try:
        with planned(model, rules) as (plan, program), torch.no_grad():
            outline = _outline(plan, program)
            if outline == usual:
                return None
            if outline[2] > usual[2]:
                return True
            full = [plan.structure.size(dim) for dim in program.sizes]
            check_faithful(network.module, program, full, (x,), {})
            ours = leaves(model.materialize(HALF)(x))
            return differ(ours, leaves(masked_forward(model.module, survivors(model, HALF), x)))
    except _TOLD:
        return True


@contextlib.contextmanager
def planned(model: SubspaceModel, rules: dict[str, Rule]) -> Iterator[tuple[ChannelPlan, Program]]:
    """A network planned anew from its trace for evaluation, with other rules."""
    network = model.parts[0].network
    program, before = network.in_mode(False), (network.plan, network._programs)
    plan = ChannelPlan(Structure())
    with mock.patch.dict(RULES, rules):
        made = Program(program.trace, propagate(program.trace, plan))
    network.plan = plan
    network._programs = {key: made if known is program else known for key, known in network._programs.items()}
    try:
        yield plan, made
    finally:
        network.plan, network._programs = before


def _outline(plan: ChannelPlan, program: Program) -> tuple[Any, Any, int]:
    """What a plan comes to at width .5: slices, sizes, and how many numbers are left."""
    at = plan.selection(HALF_WIDTH)
    sizes = {
        (node, path): at.size(dim)
        for node, path, dim in program.size_arguments
        if at.size(dim) != plan.structure.size(dim)
    }
    return {name: at.of(name) for name in plan.tensors}, sizes, sum(prod(at.shape(name)) for name in plan.tensors)


def leaves(output: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]


def differ(ours: list[Tensor], expected: list[Tensor]) -> bool:
    return any(a.shape != b.shape or relative(a, b) > NOTICED for a, b in zip(ours, expected, strict=True))
