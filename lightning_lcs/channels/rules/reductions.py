"""Ops that reduce or normalise along dimensions: the result is taken over the channels that are kept."""

from __future__ import annotations

from lightning_lcs.channels.dims import ONE
from lightning_lcs.channels.rules.call import Call, Dims, Rule


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


def softmax(call: Call) -> Dims:
    """Shape preserved."""
    return call.dims(call.arg(0, "self"))


# Position of the axes among the arguments.
_AXES = {"mean": 1, "sum": 1, "amax": 1, "amin": 1, "var": 1, "std": 1, "linalg_vector_norm": 2}

RULES: dict[str, Rule] = {**dict.fromkeys(_AXES, reduction), **dict.fromkeys(("softmax", "log_softmax"), softmax)}
