"""Two traces of one network, for inputs of different sizes, as one graph for both."""

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
    """A program that reads from its input what differs between two traces, in place of the numbers that they hold.

    Both have the same ops in the same order, and wherever a number differs it is the size of the same tensor in both,
    such as the image that a result is scaled up to. (``torch.export`` could leave the sizes open by itself; for
    networks with windows it then reasons for minutes.)

    Args:
        first: for one size.
        second: for another; changed in place where the result is not ``None``.
        size_arguments: of the second; see :func:`propagate`.
        plan: what is known of its dimensions.

    Returns:
        The program, not yet tried; ``None`` where the traces differ in something else.
    """
    found = _differences(first, second)
    dims = {(node, path): dim for node, path, dim in size_arguments}
    if not found or any(plan.structure.free(dims.get((node, path), ())) for node, path, _, _ in found):
        return None
    inputs = [node for node in second.graph.nodes if node.op == "placeholder"]
    made: dict[tuple[fx.Node, int], fx.Node] = {}
    for node, path, tensor, axis in found:
        if (tensor, axis) not in made:
            with second.graph.inserting_after(inputs[-1] if tensor.op == "placeholder" else tensor):
                made[tensor, axis] = second.graph.call_function(torch.ops.aten.sym_size.int, (tensor, axis))
                made[tensor, axis].meta["val"] = tensor.meta["val"].shape[axis]
        node.args = replaced(node.args, path, made[tensor, axis])
        dims.pop((node, path), None)
    return Program(second, [(node, path, dim) for (node, path), dim in dims.items()])


def _differences(first: Trace, second: Trace) -> list[tuple[fx.Node, Path, fx.Node, int]]:
    """Arguments of the second that differ from the first, each with the tensor and the axis whose size it is.

    Nothing where there is none, or something else differs.
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
    """Arguments by their places; the last entry of a path is the place counted from the end."""
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
    """The first tensor of which these are the sizes of one axis; best the axis in the place of the number itself."""
    if type(number) is not int or type(other) is not int or path[0] != 0:
        return None
    known = [(node, node.meta.get("val"), twin.meta.get("val")) for node, twin in twins.items()]
    fitting = [
        (node, axis, axis - value.ndim == path[-1])
        for node, value, its in known
        if isinstance(value, Tensor) and isinstance(its, Tensor)
        for axis, sizes in enumerate(zip(value.shape, its.shape, strict=False))
        if all(isinstance(size, int) for size in sizes) and sizes == (number, other)
    ]
    best = [entry for entry in fitting if entry[2]] or fitting
    return best[0][:2] if best else None
