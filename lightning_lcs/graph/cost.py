"""The cost of a level: parameters, multiply-accumulates and bytes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_lcs.graph.channels.plan import PlanAtWidth
from lightning_lcs.graph.program import Program
from lightning_lcs.graph.tracing.example_inputs import samples_in


@dataclasses.dataclass(frozen=True, kw_only=True)
class Efficiency:
    """The cost of one level.

    Attributes:
        alpha: The level that runs, in [0, 1]. With stored batch-norm statistics, it is the nearest stored level.
        width: Share of channels kept, in (0, 1].
        sparsity: Share of zeros in the weights that the mode compresses, in [0, 1). :meth:`SubspaceModel.report` names
            the other weights.
        bit_width: Number of bits of the weights that the mode compresses, except for those whose number is fixed.
        params: Number of parameters, without those that compression sets to zero.
        macs: Multiply-accumulates of convolutions and matrix products for one sample of the shape seen first (1 MAC is
            2 FLOPs). Those with a zero weight are not counted, although dense kernels compute them.
        size_bytes: Size of the parameters and of the buffers that evaluation reads, in bytes. A sparse weight counts
            with its nonzero entries and one bit per entry, a quantized weight with its integers, scales and zero
            points.

    Example:
        >>> import torch
        >>> from lightning_lcs import SubspaceModel
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3))
        >>> x = torch.zeros(1, 3, 8, 8)
        >>> model = SubspaceModel(net, mode="structured", subspace="point", example_inputs=x).eval()
        >>> model.efficiency(1.0)
        Efficiency(alpha=1.0, width=1.0, sparsity=0.0, bit_width=32, params=516, macs=12384, size_bytes=2064)
    """

    alpha: float
    width: float
    sparsity: float
    bit_width: int
    params: int
    macs: int
    size_bytes: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class CurvePoint(Efficiency):
    """One level of a curve: its cost, and what was measured there.

    Attributes:
        alpha: The level, in [0, 1].
        width: Share of channels kept; see :class:`Efficiency` for this and the following.
        sparsity: Share of zeros in the weights that the mode compresses.
        bit_width: Number of bits of the weights that the mode compresses.
        params: Number of parameters, without those that compression sets to zero.
        macs: Multiply-accumulates for one sample.
        size_bytes: Size in bytes.
        latency_ms: Median time of a forward with one sample, in milliseconds, on the machine that measured it. NaN
            means that it was not measured.
        metrics: The user's own validation metrics at this level, by name.

    Example:
        >>> from lightning_lcs.graph.cost import CurvePoint
        >>> point = CurvePoint(
        ...     alpha=0.0, width=0.25, sparsity=0.0, bit_width=32, params=131, macs=3144, size_bytes=524,
        ...     latency_ms=0.8, metrics={"val_acc": 0.91},
        ... )
        >>> point.metrics["val_acc"]
        0.91
    """

    latency_ms: float
    metrics: Mapping[str, float]


def count_macs(program: Program, at: PlanAtWidth, tensor: Callable[[str], Tensor]) -> int:
    """Multiply-accumulates of one sample, counted while the traced ops run on tensors without data.

    Args:
        program: The forward, traced in evaluation.
        at: The plan at a width.
        tensor: A function that returns the parameter or buffer of a qualified name.
    """
    counter = _counter()
    with FakeTensorMode(), torch.no_grad():
        tensors = [
            torch.empty(at.shape(name), dtype=tensor(name).dtype, device=tensor(name).device)
            if name in at.plan.tensors
            else None
            for name in program.names
        ]
        args, kwargs = program.example_inputs(1, next(t.device for t in tensors if t is not None))
        # Fused attention is not counted on every device, so it is not used here.
        with sdpa_kernel(SDPBackend.MATH), counter:
            program.run(tensors, [at.size(dim) for dim in program.sizes], args, kwargs)
    return int(counter.get_total_flops()) // 2


def count_params(at: PlanAtWidth, names: dict[str, Tensor]) -> tuple[int, int]:
    """Number and bytes of the entries of tensors at a width.

    Some networks have parameters that their forward never reads (21 % of timm's coat_tiny). They count in the full
    network, which is the user's own, but not in a narrower one, which does not contain them.

    Args:
        at: The plan at a width.
        names: Parameters and buffers at full width, by qualified name.
    """
    count = size_bytes = 0
    for name, value in names.items():
        unread = value.numel() if at.width == 1.0 else 0
        kept = prod(at.shape(name)) if name in at.plan.tensors else unread
        count += kept
        size_bytes += kept * value.element_size()
    return count, size_bytes


def count_module_macs(module: nn.Module, args: Any, kwargs: Any, density: Mapping[str, float]) -> int:
    """Multiply-accumulates of one sample, counted while the network runs as it is.

    Args:
        module: The network.
        args: Its arguments; :func:`samples_in` counts their samples.
        kwargs: Its keyword arguments.
        density: Share of nonzero entries, by qualified name of a weight.
    """
    counter = _counter()
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # it is a single op, which is not counted
    try:
        with sdpa_kernel(SDPBackend.MATH), counter, torch.no_grad(), torch.random.fork_rng(devices=[]):
            module(*args, **kwargs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    macs = float(counter.get_total_flops() // 2)
    counts = counter.get_flop_counts()
    root = type(module).__name__
    for name, share in density.items():
        *path_of, leaf = name.split(".")
        if leaf != "weight":
            continue  # a weight of torch's attention, whose count includes other products: it counts as dense
        path = ".".join([root, *path_of])
        macs -= (1.0 - share) * sum(counts.get(path, {}).values()) / 2
    return round(macs / (samples_in(args, kwargs) or 1))


def _counter() -> Any:
    # The import loads Triton, which would take more than half of the time that importing this package takes.
    from torch.utils.flop_counter import FlopCounterMode

    aten = torch.ops.aten
    return FlopCounterMode(
        display=False,
        custom_mapping={aten.mkldnn_rnn_layer: _count_recurrent_layer, aten._cudnn_rnn: _count_recurrent_layers},
    )


# FLOPs of recurrent layers' kernels, which torch's counter does not know. Arguments are shapes.


def _count_recurrent_layer(x: Sequence[int], into: Sequence[int], back: Sequence[int], *_: Any, **__: Any) -> int:
    return 2 * prod(x[:2]) * (prod(into) + prod(back))


def _count_recurrent_layers(x: Sequence[int], weights: Sequence[Sequence[int]], *_: Any, **__: Any) -> int:
    return 2 * prod(x[:2]) * sum(prod(shape) for shape in weights if len(shape) == 2)
