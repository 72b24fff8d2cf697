"""A traced forward run without data: what can't run, or would fill the memory, is found before it does."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode

from lightning_lcs.graph.channels.plan import PlanAtWidth
from lightning_lcs.graph.program import Program, resized_arguments
from lightning_lcs.graph.tracing.trace import InputSpec

# Of one tensor on the way, for each entry of the input of one sample; so many are allowed in any case, and no more.
ENTRIES_PER_INPUT = 2**14
MIN_ENTRIES, MAX_ENTRIES = 2**26, 2**31


def run_without_data(
    program: Program, at: PlanAtWidth, dtypes: Mapping[str, torch.dtype], batch: int
) -> list[list[int]]:
    """Run the ops of a forward on tensors that have a shape and no data.

    Args:
        program: the forward.
        at: the width.
        dtypes: of its parameters and buffers, by qualified name.
        batch: number of samples.

    Returns:
        Shapes of the results.

    Raises:
        ValueError: an op can't run on what it is given, or makes a tensor out of all proportion to the input.
    """
    trace = program.trace
    sizes = resized_arguments(program, at)
    made: dict[fx.Node, Any] = {}
    entries = sum(math.prod(size or 1 for size in spec.shape) for spec in trace.specs if isinstance(spec, InputSpec))
    limit = batch * min(MAX_ENTRIES, max(MIN_ENTRIES, ENTRIES_PER_INPUT * entries))
    with FakeTensorMode() as fake, torch.no_grad():
        (leaves, _) = pytree.tree_flatten(program.example_inputs(batch, torch.device("cpu")))
        inputs = dict(zip(trace.inputs, leaves, strict=True))
        _check_extent(leaves, 0, limit)
        for number, node in enumerate(trace.graph.nodes):
            if node.op == "output":
                return [list(made[result].shape) for result in node.args[0] if _is_tensor(made.get(result))]
            try:
                if node.op == "placeholder":
                    made[node] = _given(node.name, program, at, dtypes, inputs, fake)
                else:
                    args = fx.node.map_arg(sizes.get(node, node.args), made.__getitem__)
                    kwargs = fx.node.map_arg(node.kwargs, made.__getitem__)
                    made[node] = node.target(*args, **kwargs)
            except Exception as error:  # whatever an op raises, this network can't run
                first = next(iter(str(error).strip().splitlines()), "")[:200]
                raise ValueError(f"the network can't run: node {number} ({node.target}): {first}") from error
            _check_extent(made[node], number, limit)
    raise ValueError("the network has no output")


def _given(
    name: str,
    program: Program,
    at: PlanAtWidth,
    dtypes: Mapping[str, torch.dtype],
    inputs: Mapping[str, Any],
    fake: FakeTensorMode,
) -> Any:
    trace = program.trace
    if name in trace.state:
        own = trace.state[name]
        return torch.empty(at.shape(own), dtype=dtypes[own])
    return fake.from_tensor(trace.constants[name]) if name in trace.constants else inputs[name]


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


def _check_extent(value: Any, number: int, limit: int) -> None:
    if isinstance(value, Tensor) and math.prod(value.shape) > limit:
        raise ValueError(f"the network can't run: node {number} makes a tensor of shape {list(value.shape)}")
    if isinstance(value, int) and abs(value) >= 2**63:
        raise ValueError(f"the network can't run: node {number} makes a number that is too large")
    if isinstance(value, (list, tuple)):
        for item in value:
            _check_extent(item, number, limit)
