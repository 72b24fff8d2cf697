"""What a level costs: parameters, multiply-accumulates, bytes."""

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
        alpha: the level that runs; with stored batch-norm statistics, the nearest stored one.
        width: share of channels kept.
        sparsity: share of zeros in the weights that the mode compresses; :meth:`SubspaceModel.report` names the others.
        bit_width: bits of the weights that the mode compresses, without those whose bits are fixed.
        params: number of parameters that are not zero by compression.
        macs: multiply-accumulates of one sample of the shape seen first (1 MAC = 2 FLOPs), over convolutions and matrix
            products. Those with a weight that is zero are not counted: dense kernels run them all the same.
        size_bytes: parameters, and the buffers that evaluation reads, in bytes; a sparse weight as its entries that
            are not zero and one bit per entry, a quantized one as its integers, scales and zero points.
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
    """One level of a curve: its cost (see :class:`Efficiency`) and what was measured there.

    Attributes:
        latency_ms: median time of a forward with one sample on the machine that measured it; NaN if it was not.
        metrics: the user's own validation metrics at this level, by their own names.
    """

    latency_ms: float
    metrics: Mapping[str, float]


def count_macs(program: Program, at: PlanAtWidth, tensor: Callable[[str], Tensor]) -> int:
    """Multiply-accumulates of one sample: the traced ops are run on tensors without data and counted.

    Args:
        program: the forward, traced in evaluation.
        at: the width.
        tensor: gives a parameter or buffer by qualified name.
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
        # Fused attention is not counted on every device.
        with sdpa_kernel(SDPBackend.MATH), counter:
            program.run(tensors, [at.size(dim) for dim in program.sizes], args, kwargs)
    return int(counter.get_total_flops()) // 2


def count_params(at: PlanAtWidth, names: dict[str, Tensor]) -> tuple[int, int]:
    """Number and bytes of the tensors given, each at the width.

    Some networks (timm's coat_tiny: 21 % of it) hold parameters that their forward never reads. They count in the full
    network, which is the user's; a narrow one has none of them.
    """
    count = size_bytes = 0
    for name, value in names.items():
        unread = value.numel() if at.width == 1.0 else 0
        kept = prod(at.shape(name)) if name in at.plan.tensors else unread
        count += kept
        size_bytes += kept * value.element_size()
    return count, size_bytes


def count_module_macs(module: nn.Module, args: Any, kwargs: Any, density: Mapping[str, float]) -> int:
    """Multiply-accumulates of one sample: a network is run as it is, and its ops are counted.

    Args:
        module: the network.
        args: arguments, of which :func:`samples_in` gives the number of samples.
        kwargs: keyword arguments.
        density: share of entries that are not zero, by qualified name of a weight.
    """
    counter = _counter()
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one op that is not counted
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
            continue  # of torch's attention, whose count holds other products than this weight's: counted whole
        path = ".".join([root, *path_of])
        macs -= (1.0 - share) * sum(counts.get(path, {}).values()) / 2
    return round(macs / (samples_in(args, kwargs) or 1))


def _counter() -> Any:
    # Imported here: it brings Triton along, more than half of the time in which a device imports this package.
    from torch.utils.flop_counter import FlopCounterMode

    aten = torch.ops.aten
    return FlopCounterMode(
        display=False, custom_mapping={aten.mkldnn_rnn_layer: _layer_of_steps, aten._cudnn_rnn: _layers_of_steps}
    )


# Kernels of recurrent layers, which torch's counter does not know. Shapes come as sequences of sizes.


def _layer_of_steps(x: Sequence[int], into: Sequence[int], back: Sequence[int], *_: Any, **__: Any) -> int:
    return 2 * prod(x[:2]) * (prod(into) + prod(back))


def _layers_of_steps(x: Sequence[int], weights: Sequence[Sequence[int]], *_: Any, **__: Any) -> int:
    return 2 * prod(x[:2]) * sum(prod(shape) for shape in weights if len(shape) == 2)
