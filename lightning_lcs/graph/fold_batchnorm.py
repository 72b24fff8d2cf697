"""Batch norms after convolutions become part of them: a graph without them, and what its new tensors are made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from lightning_lcs.graph.program import Program
from lightning_lcs.graph.tracing.trace import Trace

_CONVOLUTIONS = tuple(getattr(torch.ops.aten, name).default for name in ("conv1d", "conv2d", "conv3d"))
_BATCH_NORM = torch.ops.aten.batch_norm.default
# Of a name that no parameter has.
FOLDED_BIAS = ":folded_bias"
_EXACT = (torch.float32, torch.float64)


@dataclasses.dataclass(frozen=True)
class FoldedBatchNorm:
    """A convolution with the batch norm after it, by qualified names of tensors.

    With ``s = scale / sqrt(variance + eps)`` the weight becomes ``s * weight``, and the bias
    ``shift + s * (bias - mean)``.

    Attributes:
        weight: of the convolution.
        bias: of the convolution, if it has one.
        scale: of the norm, if it has one.
        shift: of the norm, if it has one.
        mean: running mean.
        variance: running variance.
        eps: of the norm.
    """

    weight: str
    bias: str | None
    scale: str | None
    shift: str | None
    mean: str
    variance: str
    eps: float

    @property
    def new_bias(self) -> str:
        """The name of the bias that the convolution gets."""
        return self.weight + FOLDED_BIAS


def fold_batch_norms(program: Program, dtypes: Mapping[str, torch.dtype]) -> tuple[Program, dict[str, FoldedBatchNorm]]:
    """The program without the batch norms that can be folded, and the folds by name of the convolution's weight.

    A norm is folded where a convolution's result goes to it alone, where both have tensors of their own (no weight that
    another op reads, too), and in float32 or wider: there the result differs by rounding only.

    Args:
        program: a forward in evaluation.
        dtypes: of its parameters and buffers, by qualified name.
    """
    trace = program.trace
    graph = fx.Graph()
    mapping: dict[fx.Node, fx.Node] = {}
    graph.graph_copy(trace.graph, mapping)
    # graph_copy leaves the output out.
    source = next(node for node in trace.graph.nodes if node.op == "output")
    graph.output(fx.node.map_arg(source.args[0], mapping.__getitem__))
    # Copies may have other names, and everything about a placeholder goes by its name.
    renamed = {node.name: mapping[node].name for node in trace.graph.nodes if node.op == "placeholder"}
    state = {renamed[name]: own for name, own in trace.state.items()}
    folds: dict[str, FoldedBatchNorm] = {}
    for node in list(graph.nodes):
        found = _find_fold(node, state, dtypes)
        if found is not None:
            conv = node.args[0]
            folds[found.weight] = found
            with graph.inserting_before(next(iter(graph.nodes))):
                bias = graph.placeholder(f"folded_{len(folds)}")
            state[bias.name] = found.new_bias
            conv.args = (*conv.args[:2], bias, *conv.args[3:])
            node.replace_all_uses_with(conv)
            graph.erase_node(node)
    for node in reversed(list(graph.nodes)):
        if node.op == "placeholder" and not node.users and node.name in state:
            del state[node.name]
            graph.erase_node(node)
    alive = set(graph.nodes)
    sizes = [(mapping[node], path, dim) for node, path, dim in program.size_arguments if mapping[node] in alive]
    constants = {renamed[name]: value for name, value in trace.constants.items()}
    inputs = tuple([renamed[name] for name in trace.inputs])
    folded = Trace(graph, state, constants, inputs, trace.in_spec, trace.out_spec, trace.specs)
    return Program(folded, sizes), folds


def _find_fold(node: fx.Node, state: Mapping[str, str], dtypes: Mapping[str, torch.dtype]) -> FoldedBatchNorm | None:
    if node.target is not _BATCH_NORM or node.kwargs or node.args[5] is not False:
        return None
    conv: Any = node.args[0]
    if conv.target not in _CONVOLUTIONS or list(conv.users) != [node] or {"bias", "weight"} & conv.kwargs.keys():
        return None
    weight, bias = conv.args[1], conv.args[2] if len(conv.args) > 2 else None
    read: dict[str, Any] = dict(zip(("scale", "shift", "mean", "variance"), node.args[1:5], strict=True))
    read |= {"weight": weight, "bias": bias}
    names: dict[str, Any] = {key: None if v is None else state.get(getattr(v, "name", "")) for key, v in read.items()}
    unknown = any(names[key] is None for key in names if read[key] is not None)
    if unknown or not (names["mean"] and names["variance"]) or list(weight.users) != [conv]:
        return None
    if any(dtypes[name] not in _EXACT for name in names.values() if name is not None):
        return None
    eps: Any = node.args[7]
    return FoldedBatchNorm(**names, eps=float(eps))
