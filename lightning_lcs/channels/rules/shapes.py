"""Ops that rearrange dimensions without touching values."""

from __future__ import annotations

from math import prod

from lightning_lcs.channels.dims import ONE, Dim, concatenated
from lightning_lcs.channels.rules.call import Call, Dims, Rule


def regroup(call: Call) -> Dims:
    """Any reshape: runs of dimensions with equal products are flattened, then factored anew."""
    source = call.arg(0, "self")
    dims, old, new = call.dims(source), call.shape(source), call.out_shape
    out: Dims = []
    i = j = 0
    while i < len(old) or j < len(new):
        group_old: list[int] = []
        group_new: list[int] = []
        while True:
            if not group_old and i < len(old):
                group_old.append(i)
                i += 1
            if not group_new and j < len(new):
                group_new.append(j)
                j += 1
            a, b = prod(old[k] for k in group_old), prod(new[k] for k in group_new)
            if a == b:
                break
            if a < b:
                group_old.append(i)
                i += 1
            else:
                group_new.append(j)
                j += 1
        out.extend(_regroup(call, [dims[k] for k in group_old], [new[k] for k in group_new]))
    return out


def _regroup(call: Call, dims: Dims, sizes: list[int]) -> Dims:
    if len(dims) == len(sizes) == 1:
        return dims
    merged: Dim = ONE
    for dim in dims:
        merged = call.structure.times(merged, dim, call.why)
    if len(sizes) == 1:
        return [merged]
    return call.structure.factor(merged, sizes, call.why) if sizes else []


def view(call: Call) -> Dims:
    """A reshape whose sizes are arguments; a view as another type is none."""
    if not isinstance(call.node.args[1], (list, tuple)):
        call.freeze_inputs()
        return call.whole(call.out_shape, call.why)
    out = regroup(call)
    first_size = len(out) - len(call.node.args[1])
    if call.name != "unflatten":
        for position, dim in enumerate(out):
            if call.structure.free(dim):
                call.resize((1, position - first_size), dim)
    return out


def unflatten(call: Call) -> Dims:
    """One dimension becomes several."""
    out = regroup(call)
    axis = call.arg(1, "dim") % len(call.shape(call.arg(0, "self")))
    for position in range(len(call.arg(2, "sizes"))):
        call.resize((2, position), out[axis + position])
    return out


def reshape_as(call: Call) -> Dims:
    """The sizes are those of another tensor."""
    out = regroup(call)
    for ours, theirs in zip(out, call.dims(call.arg(1, "other")), strict=True):
        call.unify(ours, theirs)
    return [call.structure.resolve(dim) for dim in out]


def expand(call: Call) -> Dims:
    """Size 1 becomes any size: a new dimension, which whatever it meets later may tie to channels."""
    x, shape = call.dims(call.arg(0, "self")), call.out_shape
    lead = len(shape) - len(x)
    out: Dims = []
    for axis, size in enumerate(shape):
        dim = x[axis - lead] if axis >= lead else ONE
        if call.structure.size(dim) == 1 and size > 1:
            computed = not isinstance(call.node.args[1][axis], int)  # type: ignore[index]
            dim = call.structure.fresh(size, frozen="expanded to a computed size" if computed else None)
        if call.structure.free(dim):
            call.resize((1, axis), dim)
        out.append(dim)
    return out


def permute(call: Call) -> Dims:
    """Dimensions in another order."""
    x = call.dims(call.arg(0, "self"))
    return [x[axis % len(x)] for axis in call.arg(1, "dims")]


def transpose(call: Call) -> Dims:
    """Two dimensions swapped."""
    x = call.dims(call.arg(0, "self"))
    a, b = (0, 1) if call.name == "t" else (call.arg(1, "dim0"), call.arg(2, "dim1"))
    if len(x) > 1:
        x[a], x[b] = x[b], x[a]
    return x


def cat(call: Call) -> Dims:
    """The dimension joined is a sum; all others agree."""
    tensors = call.arg(0, "tensors")
    parts = [call.dims(tensor) for tensor in tensors]
    axis = call.arg(1, "dim", 0) % len(parts[0])
    out = list(parts[0])
    for other in parts[1:]:
        for position, (ours, theirs) in enumerate(zip(out, other, strict=True)):
            if position != axis:
                call.unify(ours, theirs)
    out[axis] = concatenated(part[axis] for part in parts)
    return [call.structure.resolve(dim) for dim in out]


def split(call: Call) -> list[Dims]:
    """A dimension cut into parts of given sizes."""
    x, sizes = call.dims(call.arg(0, "self")), call.arg(1, "split_sizes")
    axis = call.arg(2, "dim", 0) % len(x)
    parts = call.structure.split(x[axis], sizes, call.why)
    for position, part in enumerate(parts):
        call.resize((1, position), part)
    return [[*x[:axis], part, *x[axis + 1 :]] for part in parts]


def cut(call: Call) -> Dims:
    """A range of a dimension, in steps of 1."""
    x, shape = call.dims(call.arg(0, "self")), call.shape(call.arg(0, "self"))
    axis = call.arg(1, "dim", 0) % len(x)
    start, end, step = call.arg(2, "start", None), call.arg(3, "end", None), call.arg(4, "step", 1)
    if not call.structure.free(x[axis]) or call.out_shape == shape:
        size = call.out_shape[axis]
        return [dim if i != axis or size == shape[i] else call.whole([size], call.why)[0] for i, dim in enumerate(x)]
    if step != 1 or not isinstance(start, int | None) or not isinstance(end, int | None):
        call.structure.freeze(x[axis], call.why)
        return [*x[:axis], *call.whole([call.out_shape[axis]], call.why), *x[axis + 1 :]]
    first, last, _ = slice(start, end).indices(shape[axis])
    sizes = [first, last - first, shape[axis] - last]
    parts = iter(call.structure.split(x[axis], [size for size in sizes if size], call.why))
    before, kept = (next(parts) if sizes[0] else ()), next(parts)
    # As numbers from the front: a negative end would count channels that a level has dropped.
    call.node.args = (call.node.args[0], axis, first, last)
    call.node.kwargs = {}
    if before:
        call.resize((2,), before)
    call.resize((3,), before + kept)
    return [*x[:axis], kept, *x[axis + 1 :]]


def expand_as(call: Call) -> Dims:
    """The sizes are those of another tensor."""
    return call.broadcast(call.tensors())


def filled(call: Call) -> Dims:
    """A new tensor of a given size: whatever it meets later may tie it to channels."""
    sizes = call.arg(1, "size")
    out: Dims = []
    for axis, size in enumerate(call.out_shape):
        dim = call.structure.fresh(size, frozen=None if isinstance(sizes[axis], int) else "a computed size")
        call.resize((1, axis), dim)
        out.append(dim)
    return out


def getitem(call: Call) -> Dims:
    """One of several results."""
    dims: Dims = call.known[call.node.args[0]][call.node.args[1]]  # type: ignore[index]
    return [call.structure.resolve(dim) for dim in dims]


def unsqueeze(call: Call) -> Dims:
    """A dimension of size 1 more."""
    x = call.dims(call.arg(0, "self"))
    x.insert(call.arg(1, "dim") % (len(x) + 1), ONE)
    return x


RULES: dict[str, Rule] = {
    **dict.fromkeys(("view", "reshape", "_unsafe_view"), view),
    "unflatten": unflatten,
    **dict.fromkeys(("flatten", "squeeze"), regroup),
    **dict.fromkeys(("reshape_as", "view_as"), reshape_as),
    "expand": expand,
    "permute": permute,
    **dict.fromkeys(("transpose", "t", "swapaxes"), transpose),
    **dict.fromkeys(("cat", "concat"), cat),
    "split_with_sizes": split,
    "slice": cut,
    "expand_as": expand_as,
    **dict.fromkeys(("new_empty", "new_zeros", "new_ones", "new_full"), filled),
    "getitem": getitem,
    "unsqueeze": unsqueeze,
}
