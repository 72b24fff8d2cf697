"""The cost of a level: parameters, multiply-accumulates and bytes."""

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
    """Multiply-accumulates of one sample, counted while the traced ops run on tensors without data.

    Args:
        program: The forward, traced in evaluation.
        at: The plan at a width.
        tensor: A function that returns the parameter or buffer of a qualified name.
    """
    counter = _counter()
    # Constants of the code, such as a tensor that is a plain attribute, come with their data.
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
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
        density: Share of multiplications by nonzero entries, by the path of a layer; all others count as dense.
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
    for path, share in density.items():
        macs -= (1.0 - share) * sum(counts.get(f"{root}.{path}" if path else root, {}).values()) / 2
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
