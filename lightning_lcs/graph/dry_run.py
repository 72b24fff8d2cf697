"""Runs a traced forward without data, to find a graph that can't run, or would fill the memory, before it is used."""

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

# The entries that one tensor may have for each entry of the input, and the bounds of this number for each sample.
ENTRIES_PER_INPUT = 2**14
MIN_ENTRIES, MAX_ENTRIES = 2**26, 2**31


def run_without_data(
    program: Program, at: PlanAtWidth, dtypes: Mapping[str, torch.dtype], batch: int
) -> list[list[int]]:
    """Run the ops of a forward on tensors that have a shape but no data.

    Args:
        program: The forward.
        at: The plan at a width.
        dtypes: Dtypes of its parameters and buffers, by qualified name.
        batch: Number of samples.

    Returns:
        The shapes of the results.

    Raises:
        ValueError: An op can't run on its arguments, or returns a tensor that is much too large for the input.
    """
    trace = program.trace
    sizes = resized_arguments(program, at)
    values: dict[fx.Node, Any] = {}
    entries = sum(math.prod(size or 1 for size in spec.shape) for spec in trace.specs if isinstance(spec, InputSpec))
    limit = batch * min(MAX_ENTRIES, max(MIN_ENTRIES, ENTRIES_PER_INPUT * entries))
    with FakeTensorMode() as fake, torch.no_grad():
        (leaves, _) = pytree.tree_flatten(program.example_inputs(batch, torch.device("cpu")))
        inputs = dict(zip(trace.inputs, leaves, strict=True))
        _check_size(leaves, 0, limit)
        for number, node in enumerate(trace.graph.nodes):
            if node.op == "output":
                return [list(values[result].shape) for result in node.args[0] if _is_tensor(values.get(result))]
            try:
                if node.op == "placeholder":
                    values[node] = _placeholder_value(node.name, program, at, dtypes, inputs, fake)
                else:
                    args = fx.node.map_arg(sizes.get(node, node.args), values.__getitem__)
                    kwargs = fx.node.map_arg(node.kwargs, values.__getitem__)
                    values[node] = node.target(*args, **kwargs)
            except Exception as error:  # an op may raise anything
                first = next(iter(str(error).strip().splitlines()), "")[:200]
                raise ValueError(f"the network can't run: node {number} ({node.target}): {first}") from error
            _check_size(values[node], number, limit)
    raise ValueError("the network has no output")


def _placeholder_value(
    name: str,
    program: Program,
    at: PlanAtWidth,
    dtypes: Mapping[str, torch.dtype],
    inputs: Mapping[str, Any],
    fake: FakeTensorMode,
) -> Any:
    trace = program.trace
    if name in trace.state:
        qualified = trace.state[name]
        return torch.empty(at.shape(qualified), dtype=dtypes[qualified])
    return fake.from_tensor(trace.constants[name]) if name in trace.constants else inputs[name]


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


def _check_size(value: Any, number: int, limit: int) -> None:
    if isinstance(value, Tensor) and math.prod(value.shape) > limit:
        raise ValueError(
            f"the network can't run: node {number} makes a tensor of shape {list(value.shape)}, which has more than "
            f"{limit} entries"
        )
    if isinstance(value, int) and abs(value) >= 2**63:
        raise ValueError(f"the network can't run: node {number} makes a number of 64 bits or more")
    if isinstance(value, (list, tuple)):
        for item in value:
            _check_size(item, number, limit)
