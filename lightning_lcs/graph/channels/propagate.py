"""Follows channel dimensions through a traced graph."""

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

# An integer argument that is the size of a dimension: the node, the path into its arguments, and the dimension.
SizeArgument = tuple[fx.Node, tuple[int, ...], Dim]
# Where the dimensions of a result are kept in the meta data of its node.
DIMS = "channel_dims"


def propagate(trace: Trace, plan: ChannelPlan) -> list[SizeArgument]:
    """Add to a plan what a traced graph tells about channels.

    Args:
        trace: The traced forward.
        plan: The plan so far, which is changed in place.

    Returns:
        All integer arguments in the graph that are sizes of dimensions.
    """
    structure, tensors = plan.structure, plan.tensors
    known: dict[fx.Node, Any] = {}
    made_of: dict[fx.Node, frozenset[str]] = {}
    size_arguments: list[SizeArgument] = []
    for node in trace.graph.nodes:
        if node.op == "placeholder":
            known[node] = _placeholder(trace, node, plan)
            if node.name in trace.state:
                made_of[node] = frozenset({trace.state[node.name]})
        elif node.op == "call_function":
            call = Call(node, structure, known)
            known[node] = node.meta[DIMS] = _apply(call)
            weights = [made_of[tensor] for tensor in node.all_input_nodes if tensor in made_of]
            if weights and len(weights) == len(node.all_input_nodes):
                made_of[node] = frozenset[str]().union(*weights)
            elif call.name in _PRODUCTS and not _is_depthwise(call):
                plan.multiplied.update(name for names in weights for name in names if len(tensors[name]) > 1)
            size_arguments.extend((node, path, dim) for path, dim in call.resized.items())
        elif node.op == "output":
            for result in node.all_input_nodes:
                _keep_all_whole(structure, known.get(result), "output of the network")
    _keep_unshared_whole(structure, tensors)
    structure.keep_outer_factors_whole()
    # Resolved once, the tensors have few different dimensions, so setting a width is fast.
    for name, dims in tensors.items():
        tensors[name] = [structure.resolve(dim) for dim in dims]
    structure.round_to(plan.round_to, (dim for dims in tensors.values() for dim in dims))
    return [(node, path, structure.resolve(dim)) for node, path, dim in size_arguments]


# Ops of which each result is a sum over the channels of the input, so that all of their weights belong together.
_PRODUCTS = {
    *("linear", "bilinear", "matmul", "bmm", "mm", "mv", "addmm", "baddbmm", "einsum", "scaled_dot_product_attention"),
    *(f"conv{kind}{n}d" for kind in ("", "_transpose") for n in (1, 2, 3)),
    *(f"{kind}{part}" for kind in ("lstm", "gru", "rnn_tanh", "rnn_relu") for part in ("", "_cell")),
}


def _is_depthwise(call: Call) -> bool:
    """Whether each channel of the result comes from one channel of the input, as with a blur or an edge filter."""
    return call.name.startswith("conv") and call.arg(6, "groups", 1) > 1 and call.shape(call.arg(1, "weight"))[1] == 1


def _keep_unshared_whole(structure: Structure, tensors: dict[str, Dims]) -> None:
    """Keep whole the dimensions that no parameter or buffer has, such as those of tensors that the code makes."""
    shared = {atom for dims in tensors.values() for dim in dims for term in structure.resolve(dim) for atom in term}
    for atom in range(len(structure.sizes)):
        if atom not in structure.bound and atom not in shared:
            structure.keep_whole(((atom,),), "shared by no parameter")


def _placeholder(trace: Trace, node: fx.Node, plan: ChannelPlan) -> Dims | None:
    structure, tensors = plan.structure, plan.tensors
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        return None
    shape = [hint(size) for size in value.shape]
    if node.name in trace.state:
        name = trace.state[node.name]
        if name not in tensors:
            # Integer buffers are tables of positions, whose values would have to change with their sizes.
            why = kept_by(plan.keep, name) if value.is_floating_point() else "an integer buffer"
            tensors[name] = [structure.fresh(size, kept_whole=why) for size in shape]
        return tensors[name]
    why = "input of the network" if node.name in trace.inputs else "a constant in the code"
    return [structure.fresh(size, kept_whole=why) for size in shape]


def kept_by(patterns: Iterable[str], name: str) -> str | None:
    """The pattern because of which a tensor is kept whole, as "keep='head'", or ``None``.

    Args:
        patterns: Patterns of module paths, as of :func:`fnmatch.fnmatchcase`.
        name: Qualified name of the tensor. A pattern may match the path of its module, or of one around that.
    """
    path = name.split(".")[:-1]
    paths = [".".join(path[:depth]) for depth in range(1, len(path) + 1)]
    found = next((p for p in patterns if any(fnmatch.fnmatchcase(candidate, p) for candidate in paths)), None)
    return None if found is None else f"keep={found!r}"


def _apply(call: Call) -> Any:
    value = call.node.meta.get("val")
    if not isinstance(value, (Tensor, list, tuple)):
        return None  # a computed size
    rule = rule_of(call.node)
    if rule is not None and (call.name == "getitem" or _all_known(call)):
        result = rule(call)
        if result is not None and (not isinstance(value, Tensor) or _has_traced_sizes(call, result)):
            return result
    call.keep_inputs_whole()
    return _whole_result(call, value)


def _all_known(call: Call) -> bool:
    return all(call.known.get(tensor) is not None for tensor in call.tensors())


def _has_traced_sizes(call: Call, dims: Dims) -> bool:
    """Whether the result of a rule agrees with the trace. Otherwise the op is treated as one without a rule."""
    return [call.structure.size(dim) for dim in dims] == call.out_shape


def _whole_result(call: Call, value: Any) -> Any:
    if isinstance(value, Tensor):
        return call.whole_dims([hint(size) for size in value.shape], call.why)
    if isinstance(value, (list, tuple)):
        return [_whole_result(call, item) for item in value]
    return None


def _keep_all_whole(structure: Structure, dims: Any, why: str) -> None:
    for item in dims or []:
        if isinstance(item, list):
            _keep_all_whole(structure, item, why)
        else:
            structure.keep_whole(item, why)


def is_batch_statistic(node: fx.Node) -> bool:
    """Whether a placeholder is only a running statistic of batch norms in training, which they update."""
    return bool(node.users) and all(
        user.target in _BATCH_NORMS and node in user.args[3:5] and user.args[5] is True for user in node.users
    )


def is_written_statistic(node: fx.Node) -> bool:
    """Whether a norm writes running statistics to a placeholder, which the schema of the op does not tell."""
    return any(
        user.target in (*_BATCH_NORMS, torch.ops.aten.instance_norm.default)
        and node in user.args[3:5]
        and user.args[5] is True
        for user in node.users
    )


def running_statistics(trace: Trace) -> dict[str, tuple[str, float]]:
    """The batch norms of a graph: name of the running variance and momentum, by the name of the running mean."""
    found = {}
    for node in trace.graph.nodes:
        if node.target in _BATCH_NORMS and isinstance(node.args[3], fx.Node) and node.args[3].name in trace.state:
            mean, variance = trace.state[node.args[3].name], trace.state[node.args[4].name]
            found[mean] = (variance, float(node.args[6]))
    return found


_BATCH_NORMS = (torch.ops.aten.batch_norm.default,)
