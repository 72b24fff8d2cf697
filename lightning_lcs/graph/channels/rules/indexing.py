"""Rules for ops that pick entries of a dimension by position: that dimension is kept whole, and the others pass."""

from __future__ import annotations

from torch import fx

from lightning_lcs.graph.channels.rules.call import Call, Dims, hint
from lightning_lcs.graph.channels.rules.registry import rule

_ALONG = {"roll": 2, "flip": 1, "cumsum": 1, "cumprod": 1}
_ORDERED = {"sort": 1, "topk": 2}


def _axis(call: Call, position: int, rank: int, default: int = 0) -> int:
    return int(call.arg(position, "dim", default)) % rank


@rule("select", in_files=True)
def select(call: Call) -> Dims:
    """One entry of a dimension, which the result does not have."""
    x = call.dims(call.arg(0, "self"))
    axis = _axis(call, 1, len(x))
    call.structure.keep_whole(x[axis], call.why)
    return [*x[:axis], *x[axis + 1 :]]


@rule("unbind", in_files=True)
def unbind(call: Call) -> list[Dims]:
    """All entries of a dimension, which the results do not have."""
    x = call.dims(call.arg(0, "self"))
    axis = _axis(call, 1, len(x))
    call.structure.keep_whole(x[axis], call.why)
    return [[*x[:axis], *x[axis + 1 :]] for _ in call.node.meta["val"]]


@rule("index", in_files=True)
def index(call: Call) -> Dims:
    """Indexing with tensors: the indexed dimensions are replaced by those of the indices."""
    x, indices = call.dims(call.arg(0, "self")), list(call.arg(1, "indices"))
    indexed = [axis for axis, item in enumerate(indices) if item is not None]
    tensors = [indices[axis] for axis in indexed]
    if any(str(tensor.meta["val"].dtype) == "torch.bool" for tensor in tensors):
        call.keep_inputs_whole()
        return call.whole_dims(call.out_shape, call.why)
    for tensor in tensors:
        for dim in call.dims(tensor):
            call.structure.keep_whole(dim, call.why)
    for axis in indexed:
        call.structure.keep_whole(x[axis], call.why)
    rank = max(len(call.dims(tensor)) for tensor in tensors)
    adjacent = indexed == list(range(indexed[0], indexed[-1] + 1))
    at = indexed[0] if adjacent else 0
    out = [dim for axis, dim in enumerate(x) if axis not in indexed]
    picked = call.whole_dims(call.out_shape[at : at + rank], "picked by index")
    return [*out[:at], *picked, *out[at:]]


@rule("index_select", in_files=True)
def index_select(call: Call) -> Dims:
    """Entries of one dimension at the positions in a list."""
    x = call.dims(call.arg(0, "self"))
    axis = _axis(call, 1, len(x))
    call.structure.keep_whole(x[axis], call.why)
    return [*x[:axis], *call.whole_dims([call.out_shape[axis]], call.why), *x[axis + 1 :]]


@rule("embedding", in_files=True)
def embedding(call: Call) -> Dims:
    """The row of a table for each index."""
    weight, indices = call.dims(call.arg(0, "weight")), call.arg(1, "indices")
    call.structure.keep_whole(weight[0], "entries of a table")
    return [*call.dims(indices), weight[1]]


@rule(*_ALONG, in_files=True)
def along(call: Call) -> Dims:
    """Entries change places, or are accumulated, along dimensions."""
    x = call.dims(call.arg(0, "self"))
    axes = call.arg(_ALONG[call.name], "dims", call.arg(_ALONG[call.name], "dim"))
    for axis in range(len(x)) if axes in (None, []) else [axes] if isinstance(axes, int) else axes:
        call.structure.keep_whole(x[axis], call.why)
    return x


@rule(*_ORDERED, in_files=True)
def ordered(call: Call) -> list[Dims]:
    """All entries of a dimension in sorted order, or the first of them: values and indices."""
    x = call.dims(call.arg(0, "self"))
    axis = _axis(call, _ORDERED[call.name], len(x), -1)
    call.structure.keep_whole(x[axis], call.why)
    picked = call.whole_dims([hint(call.node.meta["val"][0].shape[axis])], call.why)
    return [[*x[:axis], *picked, *x[axis + 1 :]] for _ in range(2)]


@rule("gather", in_files=True)
def gather(call: Call) -> Dims:
    """Entries picked along one dimension, separately for each entry of the other dimensions."""
    x, picked = call.dims(call.arg(0, "self")), call.arg(2, "index")
    axis = _axis(call, 1, len(x))
    call.structure.keep_whole(x[axis], call.why)
    out = call.dims(picked) if isinstance(picked, fx.Node) else x
    for position, (ours, theirs) in enumerate(zip(x, out, strict=True)):
        if position == axis:
            call.structure.keep_whole(theirs, call.why)
        else:
            call.unify(ours, theirs)
    return [call.structure.resolve(dim) for dim in out]
