"""What a level costs: parameters, multiply-accumulates, bytes."""

from __future__ import annotations

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


def count_sparse_params(parameters: Mapping[str, Tensor], kept: Mapping[str, int]) -> tuple[int, int]:
    """Number and bytes of parameters of which some are sparse.

    Args:
        parameters: by qualified name, at full size.
        kept: number of entries that are kept of those that are sparse.
    """
    count = size_bytes = 0
    for name, value in parameters.items():
        left = kept.get(name, value.numel())
        count += left
        size_bytes += left * value.element_size() + (-(-value.numel() // 8) if left < value.numel() else 0)
    return count, size_bytes


def count_quantized_params(
    parameters: Mapping[str, Tensor], bits: Mapping[str, int], per_channel: bool
) -> tuple[int, int]:
    """Number and bytes of parameters of which some are quantized, with a scale and a zero point for each range.

    Args:
        parameters: by qualified name.
        bits: of those that are quantized.
        per_channel: a range for each entry of dimension 0.
    """
    count = size_bytes = 0
    for name, value in parameters.items():
        count += value.numel()
        if name in bits:
            # A float32 scale and an int8 zero point.
            size_bytes += -(-value.numel() * bits[name] // 8) + 5 * (value.shape[0] if per_channel else 1)
        else:
            size_bytes += value.numel() * value.element_size()
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
