"""Torch's functions with NaN meaning "not there"; for masking.py."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class MaskMismatchError(AssertionError):
    """Two tensors that meet in an op disagree about which channels are there."""


def _contraction(x_gone: Tensor, weight_gone: Tensor, op: str) -> Tensor:
    """Check a sum over input channels, and tell which outputs are absent.

    Args:
        x_gone: absent entries of the input, (rows, groups, channels per group).
        weight_gone: absent entries of the weight, (groups, outputs per group, channels per group).
        op: for the error.

    Returns:
        Absent outputs, (groups, outputs per group).
    """
    row_gone = x_gone.flatten(1).all(1)
    channel_gone = x_gone[~row_gone].all(0)
    if not torch.equal(x_gone[~row_gone], channel_gone.expand(int((~row_gone).sum()), -1, -1)):
        raise MaskMismatchError(f"{op}: its input lacks a channel in some places only")
    output_gone = weight_gone.all(2)
    expected = output_gone[:, :, None] | channel_gone[:, None, :]
    if not torch.equal(weight_gone, expected):
        raise MaskMismatchError(f"{op}: its weight and its input lack different channels")
    return output_gone


def _present(value: Tensor | None) -> Tensor | None:
    return None if value is None else value.masked_fill(value.isnan(), 0.0)


def _check_bias(bias: Tensor | None, gone: Tensor, op: str) -> None:
    if bias is not None and not torch.equal(bias.isnan(), gone):
        raise MaskMismatchError(f"{op}: its bias and its weight lack different channels")


def convolution(
    function: Callable[..., Tensor], x: Tensor, weight: Tensor, bias: Any = None, *rest: Any, **named: Any
) -> Tensor:
    if named:
        defaults = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}
        given = dict(zip(defaults, rest, strict=False))
        rest = tuple({**defaults, **given, **named}.values())
    groups = rest[3] if len(rest) > 3 else 1
    if set(weight.shape[2:]) == {1} and groups == 1 and x.shape[2:] == function(x, weight, None, *rest).shape[2:]:
        # One place at a time: places may be absent themselves.
        return linear(F.linear, x.movedim(1, -1), weight.flatten(1), bias).movedim(-1, 1)
    by_channel = x.transpose(1, 0).flatten(1).isnan()
    if not torch.equal(by_channel, by_channel.all(1, keepdim=True).expand_as(by_channel)):
        raise MaskMismatchError("convolution: a channel of its input is absent in some places only")
    x_gone = by_channel.all(1).view(1, groups, -1)
    kernel_gone = weight.isnan().flatten(2).all(2)
    gone = _contraction(x_gone, kernel_gone.view(groups, -1, kernel_gone.shape[1]), "convolution").flatten()
    _check_bias(bias, gone, "convolution")
    result = function(_present(x), _present(weight), _present(bias), *rest)
    return result.masked_fill(gone.view(-1, *[1] * (result.ndim - 2)), torch.nan)


def transposed_convolution(
    function: Callable[..., Tensor],
    x: Tensor,
    weight: Tensor,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Tensor:
    x_gone = x.transpose(1, 0).flatten(1).isnan().all(1).view(1, groups, -1)
    kernel_gone = weight.isnan().flatten(2).all(2).view(groups, -1, weight.shape[1])
    gone = _contraction(x_gone, kernel_gone.transpose(1, 2), "transposed convolution").flatten()
    _check_bias(bias, gone, "transposed convolution")
    rest = (stride, padding, output_padding, groups, dilation)
    result = function(_present(x), _present(weight), _present(bias), *rest)
    return result.masked_fill(gone.view(-1, *[1] * (result.ndim - 2)), torch.nan)


def linear(function: Callable[..., Tensor], x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    rows = x.isnan().flatten(0, -2)
    gone = _contraction(rows[:, None], weight.isnan()[None], "linear").flatten()
    _check_bias(bias, gone, "linear")
    result = function(_present(x), _present(weight), _present(bias))
    row_gone = rows.all(1).view(*x.shape[:-1], 1)
    return result.masked_fill(gone | row_gone, torch.nan)


def _normalised(x: Tensor, axes: tuple[int, ...], eps: float) -> Tensor:
    mean = x.nanmean(axes, keepdim=True)
    variance = ((x - mean) ** 2).nanmean(axes, keepdim=True)
    return (x - mean) / (variance + eps).sqrt()


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def batch_norm(
    function: Callable[..., Tensor],
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    shape = [-1, *[1] * (x.ndim - 2)]
    if training or running_mean is None or running_var is None:
        x = _normalised(x, tuple(axis for axis in range(x.ndim) if axis != 1), eps)
    else:
        x = (x - running_mean.view(shape)) / (running_var.view(shape) + eps).sqrt()
    return _affine(x, *(None if value is None else value.view(shape) for value in (weight, bias)))


def layer_norm(
    function: Callable[..., Tensor], x: Tensor, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Tensor:
    return _affine(_normalised(x, tuple(range(-len(shape), 0)), eps), weight, bias)


def group_norm(
    function: Callable[..., Tensor], x: Tensor, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Tensor:
    shape = [-1, *[1] * (x.ndim - 2)]
    result = _normalised(x.reshape(x.shape[0], groups, -1), (2,), eps).view(x.shape)
    return _affine(result, *(None if value is None else value.view(shape) for value in (weight, bias)))


def rms_norm(
    function: Callable[..., Tensor], x: Tensor, shape: Any, weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    mean_square = (x**2).nanmean(tuple(range(-len(shape), 0)), keepdim=True)
    return _affine(x / (mean_square + eps).sqrt(), weight, None)


def softmax(function: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return function(x.masked_fill(x.isnan(), -torch.inf), *args, **kwargs).masked_fill(x.isnan(), torch.nan)


def mean(function: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return x.nanmean(*args, **kwargs)


def summed(function: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    gone = x.isnan().float().mean(*args, **kwargs) == 1
    return x.nansum(*args, **kwargs).masked_fill(gone, torch.nan)


def largest(function: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    if not x.is_floating_point():  # whole numbers are all there
        return function(x, *args, **kwargs)
    result = function(x.masked_fill(x.isnan(), -torch.inf), *args, **kwargs)
    return result.masked_fill(result == -torch.inf, torch.nan)


def extreme(function: Callable[..., Any], x: Tensor, *args: Any, **kwargs: Any) -> Any:
    if not x.is_floating_point():
        return function(x, *args, **kwargs)
    values, places = function(x.masked_fill(x.isnan(), -torch.inf), *args, **kwargs)
    return values.masked_fill(values == -torch.inf, torch.nan), places


def product(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """Any sum of products of two tensors: absent where nothing is summed.

    Raises:
        MaskMismatchError: of what is summed up, one has an entry that the other lacks.
    """
    here = [(~tensor.isnan()).to(tensor.dtype) for tensor in tensors]
    both = function(*here)
    for position in range(len(tensors)):
        lacking = [1 - mask if k == position else mask for k, mask in enumerate(here)]
        if bool(((both > 0) & (function(*lacking) > 0)).any()):
            raise MaskMismatchError("product: its tensors lack different channels")
    return function(*map(_present, tensors)).masked_fill(both == 0, torch.nan)


def matrix_product(function: Callable[..., Tensor], a: Tensor, b: Tensor) -> Tensor:
    return product(torch.matmul, a, b)


def einsum(function: Callable[..., Tensor], equation: str, *tensors: Any) -> Tensor:
    tensors = tensors[0] if isinstance(tensors[0], (list, tuple)) else tensors
    return product(lambda *present: torch.einsum(equation, *present), *tensors)


def attention(
    function: Callable[..., Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """By the formula; the default scale is that of the channels which are there."""
    if enable_gqa:
        key, value = (x.repeat_interleave(query.shape[-3] // x.shape[-3], -3) for x in (key, value))
    scores = product(torch.matmul, query, key.transpose(-2, -1))
    channels = int((~query.isnan()).sum(-1).max())
    scores = scores * (channels**-0.5 if scale is None else scale)
    if is_causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:]).tril() == 0, -torch.inf)
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    return product(torch.matmul, softmax(torch.softmax, scores, -1), value)


def lstm(function: Any, x: Tensor, states: Any, weights: Any, biased: bool, layers: int, *rest: Any) -> Any:
    """Step by step; x is (batch, length, channels) if the last argument says so."""
    _, _, bidirectional, batch_first = rest
    x = x.transpose(0, 1) if batch_first else x
    directions, per_cell = 1 + bidirectional, 4 if biased else 2
    for layer in range(layers):
        outputs = []
        for direction in range(directions):
            cell = layer * directions + direction
            into, back, *biases = weights[cell * per_cell : (cell + 1) * per_cell]
            bias_in, bias_back = biases or (None, None)
            hidden = torch.zeros_like(states[0][cell])
            # What a hidden channel starts from is absent where its weights are.
            hidden = hidden.masked_fill(back.chunk(4)[0].isnan().all(1), torch.nan)
            memory, steps = hidden, []
            for step in x.flip(0) if direction else x:
                gates = linear(F.linear, step, into, bias_in) + linear(F.linear, hidden, back, bias_back)
                i, f, g, o = gates.chunk(4, -1)
                memory = f.sigmoid() * memory + i.sigmoid() * g.tanh()
                hidden = o.sigmoid() * memory.tanh()
                steps.append(hidden)
            outputs.append(torch.stack(steps[::-1] if direction else steps))
        x = torch.cat(outputs, -1)
    return x.transpose(0, 1) if batch_first else x, hidden[None], memory[None]


def vector_norm(
    function: Callable[..., Tensor], x: Tensor, ord: Any = 2, dim: Any = None, keepdim: bool = False
) -> Tensor:
    assert ord in (2, 2.0, None)
    return summed(torch.sum, x**2, dim, keepdim=keepdim).sqrt()


def normalize(
    function: Callable[..., Tensor], x: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out: None = None
) -> Tensor:
    assert p == 2
    return x / vector_norm(function, x, 2, dim, True).clamp_min(eps)


def variance(function: Callable[..., Tensor], x: Tensor, dim: Any = None, **options: Any) -> Tensor:
    correction = options.get("correction", float(options.get("unbiased", True)))
    keep = options.get("keepdim", False)
    count = (~x.isnan()).to(x.dtype).sum(dim, keepdim=keep)
    centred = x - x.nanmean(dim, keepdim=True)
    return (centred**2).nansum(dim, keepdim=keep) / (count - correction)


def multi_head_attention(
    function: Callable[..., Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    width: int,
    heads: int,
    *rest: Any,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention over (length, batch, channels), with the projections' weights joined into one."""
    weights, biases, out = rest[0].chunk(3), rest[1].chunk(3), rest[-2:]
    inputs = zip((query, key, value), weights, biases, strict=True)
    q, k, v = (linear(F.linear, *each).unflatten(2, (heads, -1)).permute(1, 2, 0, 3) for each in inputs)
    # With weights asked for, torch scales by hand: by the number of channels in full, which is a constant of its code.
    scale = q.shape[-1] ** -0.5 if options.get("need_weights", True) else None
    attended = attention(F.scaled_dot_product_attention, q, k, v, scale=scale)
    return linear(F.linear, attended.permute(2, 0, 1, 3).flatten(2), *out), None


def pad(function: Callable[..., Tensor], x: Tensor, amounts: Any, *args: Any, **kwargs: Any) -> Tensor:
    """What is put around an absent channel is absent, too."""
    axes = tuple(-1 - k for k in range(len(amounts) // 2) if any(amounts[2 * k : 2 * k + 2]))
    result = function(x, amounts, *args, **kwargs)
    gone = x.isnan()
    for axis in axes:
        gone = gone.all(axis, keepdim=True)
    return result.masked_fill(gone, torch.nan) if axes and not gone.all() else result


def patches(function: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """What a kernel sees around an absent channel is absent, too."""
    result = function(x, *args, **kwargs)
    gone = x.isnan().flatten(2).all(2).repeat_interleave(result.shape[1] // x.shape[1], 1)
    return result.masked_fill(gone[:, :, None], torch.nan)


def zeroed(function: Callable[..., Tensor], x: Tensor) -> Tensor:
    """What is absent stays so."""
    return x.masked_fill_(~x.isnan(), 0.0)


HANDLERS: dict[Any, Callable[..., Tensor]] = {
    **dict.fromkeys((torch.conv1d, torch.conv2d, torch.conv3d), convolution),
    **dict.fromkeys((torch.conv_transpose1d, torch.conv_transpose2d), transposed_convolution),
    F.linear: linear,
    F.batch_norm: batch_norm,
    F.layer_norm: layer_norm,
    F.group_norm: group_norm,
    F.rms_norm: rms_norm,
    **dict.fromkeys((F.softmax, torch.softmax, Tensor.softmax), softmax),
    **dict.fromkeys((torch.mean, Tensor.mean), mean),
    **dict.fromkeys((torch.sum, Tensor.sum), summed),
    **dict.fromkeys((torch.amax, Tensor.amax), largest),
    **dict.fromkeys((torch.max, Tensor.max), extreme),
    F.multi_head_attention_forward: multi_head_attention,
    F.scaled_dot_product_attention: attention,
    **dict.fromkeys((torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm), matrix_product),
    torch.einsum: einsum,
    torch.lstm: lstm,
    F.normalize: normalize,
    Tensor.zero_: zeroed,
    F.pad: pad,
    F.unfold: patches,
    torch.linalg.vector_norm: vector_norm,
    **dict.fromkeys((torch.var, Tensor.var), variance),
}


class Absent(TorchFunctionMode):
    """Run torch functions with NaN meaning "not there"."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        handler = HANDLERS.get(function)
        if handler is None:
            return function(*args, **(kwargs or {}))
        return handler(function, *args, **(kwargs or {}))
