"""Rules for elementwise ops, with broadcasting."""

from __future__ import annotations

from lightning_lcs.graph.channels.rules.call import Call, Dims
from lightning_lcs.graph.channels.rules.registry import rule

NAMES = (
    # activations
    "relu relu6 gelu silu mish elu celu selu leaky_relu hardtanh hardswish hardsigmoid sigmoid tanh softplus "
    "log_sigmoid hardshrink softshrink threshold "
    # arithmetic
    "add sub rsub mul div addcmul addcdiv pow neg abs sign exp expm1 log log1p sqrt rsqrt reciprocal square sin cos "
    "erf floor ceil round trunc frac clamp clamp_min clamp_max maximum minimum fmod remainder lerp where "
    "eq ne lt le gt ge logical_and logical_or logical_not bitwise_and bitwise_or bitwise_not __and__ __or__ "
    "isnan isinf nan_to_num masked_fill "
    # the same values or the same shape
    "clone copy contiguous detach alias to _to_copy dropout feature_dropout alpha_dropout lift_fresh_copy "
    "zeros_like ones_like rand_like randn_like full_like bernoulli fill zero"
).split()


@rule(*NAMES, in_files=True)
def elementwise(call: Call) -> Dims:
    """All tensors broadcast together."""
    return call.broadcast(call.tensors())


@rule("prelu", in_files=True)
def prelu(call: Call) -> Dims:
    """One slope for all, or one per channel (dimension 1)."""
    x, weight = call.dims(call.arg(0, "self")), call.dims(call.arg(1, "weight"))
    if call.structure.size(weight[0]) > 1:
        call.unify(x[1], weight[0])
    return x


@rule("type_as", in_files=True)
def first(call: Call) -> Dims:
    """The dimensions of the first tensor, whatever those of the others are."""
    return call.dims(call.arg(0, "self"))
