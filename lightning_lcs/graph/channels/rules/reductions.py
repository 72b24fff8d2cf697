"""Ops that reduce or normalise along dimensions: the result is taken over the channels that are kept."""

from __future__ import annotations

from collections.abc import Iterable

from lightning_lcs.graph.channels.dims import ONE
from lightning_lcs.graph.channels.rules.call import Call, Dims
from lightning_lcs.graph.channels.rules.registry import rule

# Position of the axes among the arguments.
_AXES = {"mean": 1, "sum": 1, "amax": 1, "amin": 1, "var": 1, "std": 1, "linalg_vector_norm": 2}


@rule(*_AXES, in_files=True)
def reduction(call: Call) -> Dims:
    """The reduced dimensions go, or stay with size 1 under ``keepdim``."""
    source = call.arg(0, "self")
    x, shape = call.dims(source), call.out_shape
    reduced = _reduced(call, len(x))
    if len(shape) == len(x):
        return [ONE if axis in reduced else dim for axis, dim in enumerate(x)]
    return [dim for axis, dim in enumerate(x) if axis not in reduced]


def _reduced(call: Call, rank: int) -> set[int]:
    axes = call.arg(_AXES[call.name], "dim")
    if axes is None or axes == []:
        return set(range(rank))
    return {axis % rank for axis in ([axes] if isinstance(axes, int) else axes)}


@rule("max", "min", "argmax", "argmin", in_files=True)
def extreme(call: Call) -> Dims | list[Dims]:
    """The largest or the smallest of two tensors, of a whole one, or along a dimension: values and their places.

    Places among channels would be other ones at a level: where they are used, the dimension stays whole.
    """
    if len(call.tensors()) > 1:
        return call.broadcast(call.tensors())
    x, axis = call.dims(call.arg(0, "self")), call.arg(1, "dim")
    if axis is None:
        return [] if call.name in ("max", "min") else _placed(call, x, range(len(x)))
    axis %= len(x)
    kept = [ONE] if call.arg(2, "keepdim", False) else []
    if call.name not in ("max", "min"):
        _placed(call, x, [axis])
    elif any(user.args[1] == 1 for user in call.node.users):
        call.structure.freeze(x[axis], call.why)
    out = [*x[:axis], *kept, *x[axis + 1 :]]
    return [out, out] if call.name in ("max", "min") else out


def _placed(call: Call, x: Dims, axes: Iterable[int]) -> Dims:
    for axis in axes:
        call.structure.freeze(x[axis], call.why)
    return []


@rule("softmax", "log_softmax", in_files=True)
def softmax(call: Call) -> Dims:
    """Shape preserved."""
    return call.dims(call.arg(0, "self"))
