"""Combines two traces of a network, for inputs of different sizes, into one graph for both sizes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from lightning_lcs.graph.channels.plan import ChannelPlan
from lightning_lcs.graph.channels.propagate import SizeArgument
from lightning_lcs.graph.program import Program, replaced
from lightning_lcs.graph.tracing.trace import Trace

Path = tuple[int, ...]


def open_sizes(
    first: Trace, second: Trace, size_arguments: Sequence[SizeArgument], plan: ChannelPlan
) -> Program | None:
    """A program that reads sizes from its input where two traces hold different numbers.

    This works if both traces have the same ops in the same order, and if every number that differs is the size of the
    same tensor in both, such as that of the image to which a result is scaled up. (``torch.export`` can leave the sizes
    open by itself, but then takes minutes for networks with windows.)

    Args:
        first: The trace for one size.
        second: The trace for another size, which is changed in place unless the result is ``None``.
        size_arguments: The size arguments of the second trace; see :func:`propagate`.
        plan: The plan with the dimensions of the second trace.

    Returns:
        The program, which is not checked yet, or ``None`` if the traces differ in something else.
    """
    differences = _differences(first, second)
    dims = {(node, path): dim for node, path, dim in size_arguments}
    if not differences or any(plan.structure.free(dims.get((node, path), ())) for node, path, _, _ in differences):
        return None
    inputs = [node for node in second.graph.nodes if node.op == "placeholder"]
    size_nodes: dict[tuple[fx.Node, int], fx.Node] = {}
    for node, path, tensor, axis in differences:
        if (tensor, axis) not in size_nodes:
            with second.graph.inserting_after(inputs[-1] if tensor.op == "placeholder" else tensor):
                size_nodes[tensor, axis] = second.graph.call_function(torch.ops.aten.sym_size.int, (tensor, axis))
                size_nodes[tensor, axis].meta["val"] = tensor.meta["val"].shape[axis]
        node.args = replaced(node.args, path, size_nodes[tensor, axis])
        dims.pop((node, path), None)
    return Program(second, [(node, path, dim) for (node, path), dim in dims.items()])


def _differences(first: Trace, second: Trace) -> list[tuple[fx.Node, Path, fx.Node, int]]:
    """Arguments of the second trace that differ from the first, each with the tensor and the axis whose size it is.

    The list is empty if there are none, or if the traces differ in something else.
    """
    if len(first.graph.nodes) != len(second.graph.nodes) or not _same_constants(first, second):
        return []
    twins: dict[fx.Node, fx.Node] = {}
    found: list[tuple[fx.Node, Path, fx.Node, int]] = []
    for ours, theirs in zip(second.graph.nodes, first.graph.nodes, strict=True):
        if ours.op != theirs.op or (ours.op == "call_function" and ours.target != theirs.target):
            return []
        for path, number, other in _pairs((ours.args, ours.kwargs), (theirs.args, theirs.kwargs), ()):
            if twins.get(number, number) == other:
                continue
            source = _source(twins, path, number, other)
            if source is None:
                return []
            found.append((ours, path[1:-1], *source))
        twins[ours] = theirs
    return found


def _same_constants(first: Trace, second: Trace) -> bool:
    a, b = list(first.constants.values()), list(second.constants.values())
    return len(a) == len(b) and all(map(torch.equal, a, b))


def _pairs(ours: Any, theirs: Any, path: Path) -> Iterator[tuple[Path, Any, Any]]:
    """Pairs of arguments with their paths, whose last entry is the last position, counted from the end."""
    if isinstance(ours, (list, tuple)) and isinstance(theirs, (list, tuple)) and len(ours) == len(theirs):
        for place, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            inner = [*_pairs(a, b, (*path, place))]
            yield from inner if isinstance(a, (list, tuple)) else [((*path, place, place - len(ours)), a, b)]
    elif isinstance(ours, dict) and isinstance(theirs, dict) and ours.keys() == theirs.keys():
        for a, b in zip(ours.values(), theirs.values(), strict=True):
            if a != b:
                yield path, None, theirs
    else:
        yield path, None, theirs


def _source(twins: dict[fx.Node, fx.Node], path: Path, number: Any, other: Any) -> tuple[fx.Node, int] | None:
    """The first tensor and axis whose sizes the two numbers are; an axis at the numbers' own position is preferred."""
    if type(number) is not int or type(other) is not int or path[0] != 0:
        return None
    values = [(node, node.meta.get("val"), twin.meta.get("val")) for node, twin in twins.items()]
    matches = [
        (node, axis, axis - ours.ndim == path[-1])
        for node, ours, theirs in values
        if isinstance(ours, Tensor) and isinstance(theirs, Tensor)
        for axis, sizes in enumerate(zip(ours.shape, theirs.shape, strict=False))
        if all(isinstance(size, int) for size in sizes) and sizes == (number, other)
    ]
    preferred = [match for match in matches if match[2]] or matches
    return preferred[0][:2] if preferred else None
