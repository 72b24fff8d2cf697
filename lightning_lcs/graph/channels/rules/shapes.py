"""Rules for ops that rearrange, split, join or repeat dimensions without changing values."""

from __future__ import annotations

from math import prod

import torch

from lightning_lcs.graph.channels.dims import ONE, Dim, concatenated
from lightning_lcs.graph.channels.rules.call import Call, Dims
from lightning_lcs.graph.channels.rules.registry import rule

# Of ops that do not say which.
_SWAPPED = {"t": (0, 1), "numpy_T": (0, 1), "matrix_H": (0, 1), "mT": (-2, -1), "mH": (-2, -1), "adjoint": (-2, -1)}


@rule("flatten", "squeeze", in_files=True)
def regroup(call: Call) -> Dims:
    """Any reshape: runs of dimensions with the same number of entries are flattened and then factored anew."""
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


@rule("view", "reshape", "_unsafe_view", in_files=True)
def view(call: Call) -> Dims:
    """A reshape whose sizes are arguments. A view as another dtype has no rule."""
    if not isinstance(call.node.args[1], (list, tuple)):
        call.keep_inputs_whole()
        return call.whole_dims(call.out_shape, call.why)
    out = regroup(call)
    sizes = list(call.node.args[1])
    for position, (size, dim) in enumerate(zip(sizes, out, strict=True)):
        if call.structure.free(dim):
            if not isinstance(size, int) and -1 not in sizes:
                # A size that is computed from the batch, into which channels were moved: it follows from the others.
                sizes[position] = size = -1
                call.node.args = (call.node.args[0], sizes)
            call.resize((1, position), dim)
    return out


@rule("unflatten", in_files=True)
def unflatten(call: Call) -> Dims:
    """One dimension becomes several."""
    out = regroup(call)
    axis = call.arg(1, "dim") % len(call.shape(call.arg(0, "self")))
    for position in range(len(call.arg(2, "sizes"))):
        call.resize((2, position), out[axis + position])
    return out


@rule("reshape_as", "view_as", in_files=True)
def reshape_as(call: Call) -> Dims:
    """A reshape to the sizes of another tensor."""
    out = regroup(call)
    for ours, theirs in zip(out, call.dims(call.arg(1, "other")), strict=True):
        call.unify(ours, theirs)
    return [call.structure.resolve(dim) for dim in out]


@rule("expand", in_files=True)
def expand(call: Call) -> Dims:
    """Size 1 becomes any size: a new dimension, which a later op may unify with channels."""
    x, shape = call.dims(call.arg(0, "self")), call.out_shape
    lead = len(shape) - len(x)
    out: Dims = []
    for axis, size in enumerate(shape):
        dim = x[axis - lead] if axis >= lead else ONE
        if call.structure.size(dim) == 1 and size > 1:
            computed = not isinstance(call.node.args[1][axis], int)  # type: ignore[index]
            dim = call.structure.fresh(size, kept_whole="expanded to a computed size" if computed else None)
        if call.structure.free(dim):
            call.resize((1, axis), dim)
        out.append(dim)
    return out


@rule("permute", in_files=True)
def permute(call: Call) -> Dims:
    """Dimensions in another order."""
    x = call.dims(call.arg(0, "self"))
    return [x[axis % len(x)] for axis in call.arg(1, "dims")]


@rule("transpose", "swapaxes", *_SWAPPED, in_files=True)
def transpose(call: Call) -> Dims:
    """Two dimensions swapped."""
    x = call.dims(call.arg(0, "self"))
    a, b = _SWAPPED.get(call.name) or (call.arg(1, "dim0"), call.arg(2, "dim1"))
    if len(x) > 1:
        x[a], x[b] = x[b], x[a]
    return x


@rule("cat", "concat", in_files=True)
def cat(call: Call) -> Dims:
    """The joined dimension is the sum of those of the tensors; all others agree."""
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


@rule("split_with_sizes", in_files=True)
def split(call: Call) -> list[Dims]:
    """A dimension is split into parts of given sizes."""
    x, sizes = call.dims(call.arg(0, "self")), call.arg(1, "split_sizes")
    axis = call.arg(2, "dim", 0) % len(x)
    parts = call.structure.split(x[axis], sizes, call.why)
    for position, part in enumerate(parts):
        call.resize((1, position), part)
    return [[*x[:axis], part, *x[axis + 1 :]] for part in parts]


@rule("slice", in_files=True)
def cut(call: Call) -> Dims:
    """A range of a dimension; with steps other than 1 the dimension is kept whole."""
    x, shape = call.dims(call.arg(0, "self")), call.shape(call.arg(0, "self"))
    axis = call.arg(1, "dim", 0) % len(x)
    start, end, step = call.arg(2, "start", None), call.arg(3, "end", None), call.arg(4, "step", 1)
    if not call.structure.free(x[axis]) or call.out_shape == shape:
        size = call.out_shape[axis]
        return [
            dim if i != axis or size == shape[i] else call.whole_dims([size], call.why)[0] for i, dim in enumerate(x)
        ]
    if step != 1 or not isinstance(start, int | None) or not isinstance(end, int | None):
        call.structure.keep_whole(x[axis], call.why)
        return [*x[:axis], *call.whole_dims([call.out_shape[axis]], call.why), *x[axis + 1 :]]
    first, last, _ = slice(start, end).indices(shape[axis])
    sizes = [first, last - first, shape[axis] - last]
    parts = iter(call.structure.split(x[axis], [size for size in sizes if size], call.why))
    before, kept = (next(parts) if sizes[0] else ()), next(parts)
    # The range is written with numbers from the front, since a negative end would count channels that a level drops.
    call.node.args = (call.node.args[0], axis, first, last)
    call.node.kwargs = {}
    if before:
        call.resize((2,), before)
    call.resize((3,), before + kept)
    return [*x[:axis], kept, *x[axis + 1 :]]


@rule("expand_as", in_files=True)
def expand_as(call: Call) -> Dims:
    """Dimensions of size 1 are expanded to the sizes of another tensor."""
    return call.broadcast(call.tensors())


@rule("new_empty", "new_zeros", "new_ones", "new_full", "zeros", "ones", "full", "empty", in_files=True)
def filled(call: Call) -> Dims:
    """A new tensor of given sizes, whose dimensions a later op may unify with channels."""
    place = 1 if call.name.startswith("new_") else 0
    sizes = call.arg(place, "size")
    out: Dims = []
    for axis, size in enumerate(call.out_shape):
        dim = call.structure.fresh(size, kept_whole=None if isinstance(sizes[axis], int) else "a computed size")
        call.resize((place, axis), dim)
        out.append(dim)
    return out


@rule("getitem", in_files=True)
def getitem(call: Call) -> Dims:
    """One of several results."""
    dims: Dims = call.known[call.node.args[0]][call.node.args[1]]  # type: ignore[index]
    return [call.structure.resolve(dim) for dim in dims]


@rule("unsqueeze", in_files=True)
def unsqueeze(call: Call) -> Dims:
    """A new dimension of size 1."""
    x = call.dims(call.arg(0, "self"))
    x.insert(call.arg(1, "dim") % (len(x) + 1), ONE)
    return x


@rule("stack", in_files=True)
def stack(call: Call) -> Dims:
    """All dimensions agree, and the new one is kept whole."""
    tensors = call.arg(0, "tensors")
    out = call.dims(tensors[0])
    for other in tensors[1:]:
        for ours, theirs in zip(out, call.dims(other), strict=True):
            call.unify(ours, theirs)
    out = [call.structure.resolve(dim) for dim in out]
    out.insert(call.arg(1, "dim", 0) % (len(out) + 1), call.structure.fresh(len(tensors), kept_whole="stacked tensors"))
    return out


@rule("repeat", "tile", in_files=True)
def repeat(call: Call) -> Dims:
    """Copies of a dimension side by side."""
    x, counts = call.dims(call.arg(0, "self")), call.arg(1, "repeats")
    x = [ONE] * (len(counts) - len(x)) + x
    counts = [1] * (len(x) - len(counts)) + list(counts)
    out: Dims = []
    for dim, count, size in zip(x, counts, call.out_shape, strict=True):
        if isinstance(count, int):
            out.append(call.structure.times(call.structure.fresh(count, kept_whole="copies"), dim, call.why))
        else:
            call.structure.keep_whole(dim, f"a computed size of {call.why}")
            out.append(call.structure.fresh(size, kept_whole=call.why))
    return out


@rule("repeat_interleave", in_files=True)
def repeat_interleave(call: Call) -> Dims:
    """Copies of each entry of a dimension."""
    x, count, axis = call.dims(call.arg(0, "self")), call.arg(1, "repeats"), call.arg(2, "dim")
    if not isinstance(count, int) or axis is None:
        call.keep_inputs_whole()
        return call.whole_dims(call.out_shape, call.why)
    copies = call.structure.fresh(count, kept_whole="copies")
    x[axis] = call.structure.times(x[axis], copies, call.why)
    return x


@rule("movedim", "moveaxis", in_files=True)
def movedim(call: Call) -> Dims:
    """Some dimensions move to other positions, and the rest keep their order."""
    x = call.dims(call.arg(0, "self"))
    pairs = [call.arg(1, "source"), call.arg(2, "destination")]
    source, destination = ([axis % len(x) for axis in ([p] if isinstance(p, int) else p)] for p in pairs)
    moved = dict(zip(destination, source, strict=True))
    rest = iter(axis for axis in range(len(x)) if axis not in source)
    return [x[moved[place]] if place in moved else x[next(rest)] for place in range(len(x))]


@rule("narrow", in_files=True)
def narrow(call: Call) -> Dims:
    """A slice that is given by its start and its length."""
    axis, start, length = call.node.args[1:4]
    if not (isinstance(start, int) and isinstance(length, int)):
        call.keep_inputs_whole()
        return call.whole_dims(call.out_shape, call.why)
    call.node.target = torch.ops.aten.slice.Tensor
    call.node.args, call.node.kwargs = (call.node.args[0], axis, start, start + length), {}
    return cut(call)


@rule("glu", in_files=True)
def glu(call: Call) -> Dims:
    """The first half of a dimension, gated by the second."""
    x = call.dims(call.arg(0, "self"))
    axis = call.arg(1, "dim", -1)
    half = call.structure.size(x[axis]) // 2
    first, second = call.structure.split(x[axis], [half, half], call.why)
    call.unify(first, second)
    x[axis] = call.structure.resolve(first)
    return x


@rule("pixel_shuffle", in_files=True)
def pixel_shuffle(call: Call) -> Dims:
    """``(N, C * r * r, H, W) -> (N, C, H * r, W * r)``."""
    x, factor = call.dims(call.arg(0, "self")), int(call.arg(1, "upscale_factor"))
    channels = call.structure.size(x[-3]) // factor**2
    kept, inner = call.structure.factor(x[-3], [channels, factor**2], call.why)
    call.structure.keep_whole(inner, "spatial")
    return [*x[:-3], kept, *call.whole_dims(call.out_shape[-2:], "spatial")]


@rule("pixel_unshuffle", in_files=True)
def pixel_unshuffle(call: Call) -> Dims:
    """``(N, C, H * r, W * r) -> (N, C * r * r, H, W)``."""
    x, factor = call.dims(call.arg(0, "self")), int(call.arg(1, "downscale_factor"))
    for dim in x[-2:]:
        call.structure.keep_whole(dim, call.why)
    places = call.structure.fresh(factor**2, kept_whole="spatial")
    return [*x[:-3], call.structure.times(x[-3], places, call.why), *call.whole_dims(call.out_shape[-2:], "spatial")]


@rule("im2col", in_files=True)
def patches(call: Call) -> Dims:
    """``(N, C, H, W) -> (N, C * k * k, L)``: the patch under a kernel at each position."""
    x, kernel = call.dims(call.arg(0, "self")), call.arg(1, "kernel_size")
    for dim in x[-2:]:
        call.structure.keep_whole(dim, call.why)
    places = call.structure.fresh(prod(kernel), kept_whole="spatial")
    return [*x[:-3], call.structure.times(x[-3], places, call.why), *call.whole_dims(call.out_shape[-1:], "spatial")]


@rule("col2im", in_files=True)
def folded(call: Call) -> Dims:
    """``(N, C * k * k, L) -> (N, C, H, W)``: the transpose of :func:`patches`."""
    x, kernel = call.dims(call.arg(0, "self")), call.arg(2, "kernel_size")
    call.structure.keep_whole(x[-1], call.why)
    kept, inner = call.structure.factor(x[-2], [call.structure.size(x[-2]) // prod(kernel), prod(kernel)], call.why)
    call.structure.keep_whole(inner, "spatial")
    return [*x[:-2], kept, *call.whole_dims(call.out_shape[-2:], "spatial")]


@rule("unfold", in_files=True)
def windows(call: Call) -> Dims:
    """``Tensor.unfold``: a dimension becomes a dimension of windows, and their entries a new last dimension."""
    x = call.dims(call.arg(0, "self"))
    axis = call.arg(1, "dimension") % len(x)
    call.structure.keep_whole(x[axis], call.why)
    new = call.whole_dims([call.out_shape[axis], call.out_shape[-1]], call.why)
    return [*x[:axis], new[0], *x[axis + 1 :], new[1]]
