"""What a level costs: parameters, multiply-accumulates, bytes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from math import prod

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from lightning_lcs.channels.plan import PlanAtWidth
from lightning_lcs.channels.program import Program


@dataclasses.dataclass(frozen=True, kw_only=True)
class Efficiency:
    """The cost of one level.

    Attributes:
        alpha: the level that runs; with stored batch-norm statistics, the nearest stored one.
        width: share of channels kept.
        sparsity: share of weights that are zero.
        bit_width: bits per weight.
        params: number of parameters.
        macs: multiply-accumulates of one sample of the traced shape (1 MAC = 2 FLOPs), over convolutions and matrix
            products.
        size_bytes: parameters, and the buffers that evaluation reads, in bytes.
    """

    alpha: float
    width: float
    sparsity: float
    bit_width: int
    params: int
    macs: int
    size_bytes: int


def count_macs(program: Program, at: PlanAtWidth, tensor: Callable[[str], Tensor]) -> int:
    """Multiply-accumulates of one sample: the traced ops are run on tensors without data and counted.

    Args:
        program: the forward, traced in evaluation.
        at: the width.
        tensor: gives a parameter or buffer by qualified name.
    """
    tensors = [
        torch.empty(at.shape(name), dtype=tensor(name).dtype, device="meta") if name in at.plan.tensors else None
        for name in program.names
    ]
    args, kwargs = program.example_inputs(batch=1)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        program.run(tensors, [at.size(dim) for dim in program.sizes], args, kwargs)
    return counter.get_total_flops() // 2


def count_params(at: PlanAtWidth, names: dict[str, Tensor]) -> tuple[int, int]:
    """Number and bytes of the tensors given, each at the width; those that no trace reads are counted whole."""
    count = size_bytes = 0
    for name, value in names.items():
        kept = prod(at.shape(name)) if name in at.plan.tensors else value.numel()
        count += kept
        size_bytes += kept * value.element_size()
    return count, size_bytes
