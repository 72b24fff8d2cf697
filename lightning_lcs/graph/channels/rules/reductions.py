"""Rules for ops that reduce or normalize along dimensions. At a level they do so over the channels that are kept."""

from __future__ import annotations

from collections.abc import Iterable

from lightning_lcs.graph.channels.dims import ONE
from lightning_lcs.graph.channels.rules.call import Call, Dims
from lightning_lcs.graph.channels.rules.registry import rule

# Position of the axes among the arguments.
_AXES = {"mean": 1, "sum": 1, "amax": 1, "amin": 1, "var": 1, "std": 1, "linalg_vector_norm": 2}


@rule(*_AXES, in_files=True)
def reduction(call: Call) -> Dims:
    """The reduced dimensions disappear, or have size 1 with ``keepdim``."""
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
    """The maximum or minimum of two tensors, of a tensor, or along a dimension: values and their indices.

    Indices of channels differ between levels. So the dimension is kept whole if the indices are used.
    """
    if len(call.tensors()) > 1:
        return call.broadcast(call.tensors())
    x, axis = call.dims(call.arg(0, "self")), call.arg(1, "dim")
    if axis is None:
        return [] if call.name in ("max", "min") else _keep_axes_whole(call, x, range(len(x)))
    axis %= len(x)
    kept = [ONE] if call.arg(2, "keepdim", False) else []
    if call.name not in ("max", "min"):
        _keep_axes_whole(call, x, [axis])
    elif any(user.args[1] == 1 for user in call.node.users):
        call.structure.keep_whole(x[axis], call.why)
    out = [*x[:axis], *kept, *x[axis + 1 :]]
    return [out, out] if call.name in ("max", "min") else out


def _keep_axes_whole(call: Call, x: Dims, axes: Iterable[int]) -> Dims:
    """Keep some dimensions whole; the result has no dimensions."""
    for axis in axes:
        call.structure.keep_whole(x[axis], call.why)
    return []


@rule("softmax", "log_softmax", in_files=True)
def softmax(call: Call) -> Dims:
    """The result has the dimensions of the input."""
    return call.dims(call.arg(0, "self"))
