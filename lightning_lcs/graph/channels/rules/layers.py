"""Rules for layers: convolutions, linear layers, norms, pooling and padding."""

from __future__ import annotations

from torch import fx

from lightning_lcs.graph.channels.dims import Dim
from lightning_lcs.graph.channels.rules.call import Call, Dims
from lightning_lcs.graph.channels.rules.registry import rule

_SPATIAL = {
    f"{kind}{n}d": n
    for n in (1, 2, 3)
    for kind in ("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool", "upsample_nearest")
}
_SPATIAL |= {"upsample_bilinear2d": 2, "upsample_bicubic2d": 2, "upsample_linear1d": 1, "upsample_trilinear3d": 3}
_SPATIAL |= {f"_upsample_nearest_exact{n}d": n for n in (1, 2, 3)}
_SPATIAL |= {f"_upsample_{kind}2d_aa": 2 for kind in ("bilinear", "bicubic", "lanczos")}


@rule("linear", in_files=True)
def linear(call: Call) -> Dims:
    """``(..., in) x (out, in) -> (..., out)``."""
    x, weight, bias = call.dims(call.arg(0, "input")), call.dims(call.arg(1, "weight")), call.arg(2, "bias")
    call.unify(x[-1], weight[1])
    if bias is not None:
        call.unify(call.dims(bias)[0], weight[0])
    return [*x[:-1], weight[0]]


@rule("conv1d", "conv2d", "conv3d", in_files=True)
def convolution(call: Call) -> Dims:
    """``(N, in, *) x (out, in / groups, *) -> (N, out, *)``.

    In a grouped convolution, the channels within each group shrink, and the number of groups stays. In a depthwise
    convolution, whose groups have a single input channel, the number of groups shrinks.
    """
    x, weight, bias = call.dims(call.arg(0, "input")), call.dims(call.arg(1, "weight")), call.arg(2, "bias")
    groups = int(call.arg(6, "groups", 1))
    # A kernel of size 1 mixes channels only, so the other dimensions may shrink, too.
    passed = call.shape(call.arg(0, "input"))[2:] == call.out_shape[2:]
    pointwise = passed and set(call.shape(call.arg(1, "weight"))[2:]) == {1}
    places = x[2:] if pointwise else call.whole_dims(call.out_shape[2:], "spatial")
    if not pointwise:
        _keep_kernel(call, x, weight)
    out = _grouped(call, x[1], weight[0], weight[1], groups)
    if bias is not None:
        call.unify(call.dims(bias)[0], out)
    return [x[0], call.structure.resolve(out), *(call.structure.resolve(dim) for dim in places)]


def _keep_kernel(call: Call, x: Dims, weight: Dims) -> None:
    """Keep the spatial dimensions of the input and of the kernel whole."""
    for dim in x[2:]:
        call.structure.keep_whole(dim, call.why)
    for dim in weight[2:]:
        call.structure.keep_whole(dim, "spatial")


def _grouped(call: Call, x: Dim, into: Dim, per_group: Dim, groups: int) -> Dim:
    structure = call.structure
    if groups == 1:
        call.unify(x, per_group)
        return into
    if structure.size(per_group) == 1:
        multiplier = structure.fresh(
            structure.size(into) // groups, kept_whole="the multiplier of a depthwise convolution"
        )
        call.unify(into, structure.times(x, multiplier, call.why))
        call.resize((6,), x)
        return into
    kept_groups = structure.fresh(groups, kept_whole="groups of a convolution")
    call.unify(x, structure.times(kept_groups, per_group, call.why))
    if structure.size(into) > groups:
        structure.keep_whole(structure.factor(into, [groups, structure.size(into) // groups], call.why)[0], "groups")
    else:
        structure.keep_whole(into, call.why)
    return into


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d", in_files=True)
def conv_transpose(call: Call) -> Dims:
    """``(N, in, *) x (in, out / groups, *) -> (N, out, *)``, with groups as in :func:`convolution`."""
    x, weight, bias = call.dims(call.arg(0, "input")), call.dims(call.arg(1, "weight")), call.arg(2, "bias")
    groups = int(call.arg(6, "groups", 1))
    _keep_kernel(call, x, weight)
    call.unify(x[1], weight[0])
    out, into = weight[1], call.structure.size(x[1])
    if groups == into > 1 == call.structure.size(out):
        out = call.structure.resolve(x[1])
        call.resize((6,), out)
    elif groups > 1:
        kept_groups, _ = call.structure.factor(x[1], [groups, into // groups], call.why)
        call.structure.keep_whole(kept_groups, "groups of a convolution")
        out = call.structure.times(kept_groups, out, call.why)
    if bias is not None:
        call.unify(call.dims(bias)[0], out)
    return [x[0], call.structure.resolve(out), *call.whole_dims(call.out_shape[2:], "spatial")]


@rule("batch_norm", in_files=True)
def batch_norm(call: Call) -> Dims:
    """All tensors have one entry per channel, dimension 1."""
    x = call.dims(call.arg(0, "input"))
    for tensor in call.node.args[1:5]:
        if isinstance(tensor, fx.Node):
            call.unify(x[1], call.dims(tensor)[0])
    return [call.structure.resolve(dim) for dim in x]


@rule("instance_norm", in_files=True)
def instance_norm(call: Call) -> Dims:
    """The same as batch norm."""
    return batch_norm(call)


@rule("group_norm", in_files=True)
def group_norm(call: Call) -> Dims:
    """The channels within each group shrink, and the number of groups stays; with one channel per group it shrinks."""
    x = call.dims(call.arg(0, "input"))
    groups, size = int(call.arg(1, "num_groups")), call.structure.size(x[1])
    for tensor in (call.arg(2, "weight"), call.arg(3, "bias")):
        if tensor is not None:
            call.unify(x[1], call.dims(tensor)[0])
    if groups == size:
        call.resize((1,), x[1])
    elif groups > 1:
        call.structure.keep_whole(
            call.structure.factor(x[1], [groups, size // groups], call.why)[0], "groups of a norm"
        )
    return [call.structure.resolve(dim) for dim in x]


@rule("layer_norm", "rms_norm", in_files=True)
def layer_norm(call: Call) -> Dims:
    """Statistics over the last dimensions, of the channels that are kept; RMS norm has no bias."""
    x = call.dims(call.arg(0, "input"))
    shape = call.arg(1, "normalized_shape")
    for tensor in (call.arg(2, "weight"), call.arg(3, "bias")):
        if isinstance(tensor, fx.Node):
            for ours, theirs in zip(x[-len(shape) :], call.dims(tensor), strict=True):
                call.unify(ours, theirs)
    for position, dim in enumerate(x[-len(shape) :]):
        call.resize((1, position), dim)
    return [call.structure.resolve(dim) for dim in x]


@rule(*_SPATIAL, in_files=True)
def pool(call: Call) -> Dims:
    """Batch and channels pass, and the spatial dimensions are new."""
    x = call.dims(call.arg(0, "self"))
    spatial = _SPATIAL[call.name]
    for dim in x[-spatial:]:
        call.structure.keep_whole(dim, call.why)
    return [*x[:-spatial], *call.whole_dims(call.out_shape[-spatial:], "spatial")]


@rule("grid_sampler", "grid_sampler_2d", "grid_sampler_3d", in_files=True)
def sampled(call: Call) -> Dims:
    """Values of an image at the positions in a grid: batch and channels pass."""
    x, grid = call.dims(call.arg(0, "input")), call.dims(call.arg(1, "grid"))
    for dim in (*x[2:], *grid):
        call.structure.keep_whole(dim, call.why)
    return [*x[:2], *call.whole_dims(call.out_shape[2:], "spatial")]


@rule("pad", "constant_pad_nd", in_files=True)
def pad(call: Call) -> Dims:
    """Padding of a channel dimension, as in a shortcut into a wider stage, adds channels that are kept whole."""
    x, amounts = call.dims(call.arg(0, "self")), call.arg(1, "pad")
    out = []
    for axis, dim in enumerate(x):
        last = len(x) - 1 - axis
        before, after = amounts[2 * last : 2 * last + 2] if 2 * last < len(amounts) else (0, 0)
        if before == after == 0:
            out.append(dim)
        elif (
            call.structure.free(dim) and isinstance(before, int) and isinstance(after, int) and min(before, after) >= 0
        ):
            padding = [call.structure.fresh(n, kept_whole="padded channels") if n else () for n in (before, after)]
            out.append(padding[0] + dim + padding[1])
        else:
            call.structure.keep_whole(dim, call.why)
            out.append(call.structure.fresh(call.out_shape[axis], kept_whole="padded"))
    return out


@rule("_weight_norm", in_files=True)
def weight_norm(call: Call) -> Dims:
    """A weight that is divided by its norms along all dimensions but one, and multiplied by a length for each entry."""
    weight, length = call.dims(call.arg(0, "v")), call.dims(call.arg(1, "g"))
    for ours, theirs in zip(weight, length, strict=True):
        if call.structure.size(theirs) > 1:
            call.unify(ours, theirs)
    return [call.structure.resolve(dim) for dim in weight]
