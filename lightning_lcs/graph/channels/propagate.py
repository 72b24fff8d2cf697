"""Follow channel dimensions through a traced graph."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx

from lightning_lcs.graph.channels.dims import Dim, Structure
from lightning_lcs.graph.channels.plan import ChannelPlan
from lightning_lcs.graph.channels.rules import Call, Dims
from lightning_lcs.graph.channels.rules.call import hint
from lightning_lcs.graph.channels.rules.registry import rule_of
from lightning_lcs.graph.tracing.trace import Trace

SizeArgument = tuple[fx.Node, tuple[int, ...], Dim]


def propagate(trace: Trace, plan: ChannelPlan) -> list[SizeArgument]:
    """Add to a plan what a traced graph says about channels.

    Args:
        trace: the graph.
        plan: the plan so far; changed in place.

    Returns:
        Every integer argument in the graph that is the size of a dimension: node, path into its arguments, dimension.
    """
    structure, tensors = plan.structure, plan.tensors
    known: dict[fx.Node, Any] = {}
    size_arguments: list[SizeArgument] = []
    for node in trace.graph.nodes:
        if node.op == "placeholder":
            known[node] = _placeholder(trace, node, plan)
        elif node.op == "call_function":
            call = Call(node, structure, known)
            known[node] = _apply(call)
            size_arguments.extend((node, path, dim) for path, dim in call.resized.items())
        elif node.op == "output":
            for result in node.all_input_nodes:
                _freeze_all(structure, known.get(result), "output of the network")
    _freeze_loose(structure, tensors)
    structure.settle()
    # A network has few different dimensions once all that was learnt is written into them: a width is quickly set.
    for name, dims in tensors.items():
        tensors[name] = [structure.resolve(dim) for dim in dims]
    structure.round_to(plan.round_to, (dim for dims in tensors.values() for dim in dims))
    return [(node, path, structure.resolve(dim)) for node, path, dim in size_arguments]


def _freeze_loose(structure: Structure, tensors: dict[str, Dims]) -> None:
    """Keep whole what no parameter or buffer shares: sizes of tensors that the code makes and ties to no channels."""
    tied = {atom for dims in tensors.values() for dim in dims for term in structure.resolve(dim) for atom in term}
    for atom in range(len(structure.sizes)):
        if atom not in structure.bound and atom not in tied:
            structure.freeze(((atom,),), "shared by no parameter")


def _placeholder(trace: Trace, node: fx.Node, plan: ChannelPlan) -> Dims | None:
    structure, tensors = plan.structure, plan.tensors
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        return None
    shape = [hint(size) for size in value.shape]
    if node.name in trace.state:
        name = trace.state[node.name]
        if name not in tensors:
            # Integer buffers are tables of positions: their values would have to shrink with their sizes.
            why = kept_by(plan.keep, name) if value.is_floating_point() else "an integer buffer"
            tensors[name] = [structure.fresh(size, frozen=why) for size in shape]
        return tensors[name]
    why = "input of the network" if node.name in trace.inputs else "a constant in the code"
    return [structure.fresh(size, frozen=why) for size in shape]


def kept_by(patterns: Iterable[str], name: str) -> str | None:
    """Why a tensor stays whole: the pattern that its module, or one around it, has the path of."""
    path = name.split(".")[:-1]
    paths = [".".join(path[:depth]) for depth in range(1, len(path) + 1)]
    fits = next((p for p in patterns if any(fnmatch.fnmatchcase(candidate, p) for candidate in paths)), None)
    return None if fits is None else f"keep={fits!r}"


def _apply(call: Call) -> Any:
    value = call.node.meta.get("val")
    if not isinstance(value, (Tensor, list, tuple)):
        return None  # a computed size
    rule = rule_of(call.node)
    if rule is not None and (call.name == "getitem" or _all_known(call)):
        result = rule(call)
        if not isinstance(value, Tensor) or _fits(call, result):
            return result
    call.freeze_inputs()
    return _whole(call, value)


def _all_known(call: Call) -> bool:
    return all(call.known.get(tensor) is not None for tensor in call.tensors())


def _fits(call: Call, dims: Dims) -> bool:
    """A rule whose result contradicts the trace is treated as no rule: its op freezes what it touches."""
    return [call.structure.size(dim) for dim in dims] == call.out_shape


def _whole(call: Call, value: Any) -> Any:
    if isinstance(value, Tensor):
        return call.whole([hint(size) for size in value.shape], call.why)
    if isinstance(value, (list, tuple)):
        return [_whole(call, item) for item in value]
    return None


def _freeze_all(structure: Structure, dims: Any, why: str) -> None:
    for item in dims or []:
        if isinstance(item, list):
            _freeze_all(structure, item, why)
        else:
            structure.freeze(item, why)


def is_batch_statistic(node: fx.Node) -> bool:
    """Whether a placeholder only ever receives the running statistics of batch norms in training."""
    return bool(node.users) and all(
        user.target in _BATCH_NORMS and node in user.args[3:5] and user.args[5] is True for user in node.users
    )


def is_written_statistic(node: fx.Node) -> bool:
    """Whether a normalisation writes running statistics into a placeholder, which its schema does not say."""
    return any(
        user.target in (*_BATCH_NORMS, torch.ops.aten.instance_norm.default)
        and node in user.args[3:5]
        and user.args[5] is True
        for user in node.users
    )


def running_statistics(trace: Trace) -> dict[str, tuple[str, float]]:
    """Batch norms of a graph: name of the running mean -> name of the running variance, momentum."""
    found = {}
    for node in trace.graph.nodes:
        if node.target in _BATCH_NORMS and isinstance(node.args[3], fx.Node) and node.args[3].name in trace.state:
            mean, variance = trace.state[node.args[3].name], trace.state[node.args[4].name]
            found[mean] = (variance, float(node.args[6]))
    return found


_BATCH_NORMS = (torch.ops.aten.batch_norm.default,)
