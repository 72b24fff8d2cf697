"""Folds batch norms into the convolutions before them: a graph without these norms, and how to compute its weights."""

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
# The suffix of a new bias's name; the name of a parameter has no colon.
FOLDED_BIAS = ":folded_bias"
# In these dtypes folding changes the result by rounding only.
_EXACT = (torch.float32, torch.float64)


@dataclasses.dataclass(frozen=True)
class FoldedBatchNorm:
    """A convolution with the batch norm after it, by qualified names of tensors.

    With ``s = scale / sqrt(variance + eps)`` the weight becomes ``s * weight``, and the bias
    ``shift + s * (bias - mean)``.

    Attributes:
        weight: Weight of the convolution.
        bias: Bias of the convolution, or None.
        scale: Weight of the norm, or None.
        shift: Bias of the norm, or None.
        mean: Running mean of the norm.
        variance: Running variance of the norm.
        eps: The number that the norm adds to the variance.
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
        """The name of the convolution's bias after folding."""
        return self.weight + FOLDED_BIAS


def fold_batch_norms(program: Program, dtypes: Mapping[str, torch.dtype]) -> tuple[Program, dict[str, FoldedBatchNorm]]:
    """Fold the batch norms of a program where that is exact.

    A norm is folded if it alone reads the result of a convolution, if no other op reads the convolution's weight, and
    if the tensors of both are in float32 or float64. Then the result differs by rounding only.

    Args:
        program: A forward in evaluation.
        dtypes: Dtypes of its parameters and buffers, by qualified name.

    Returns:
        The program without these norms, and the folded norms by the name of the convolution's weight.
    """
    trace = program.trace
    graph = fx.Graph()
    mapping: dict[fx.Node, fx.Node] = {}
    graph.graph_copy(trace.graph, mapping)
    # graph_copy does not copy the output.
    source = next(node for node in trace.graph.nodes if node.op == "output")
    graph.output(fx.node.map_arg(source.args[0], mapping.__getitem__))
    # Placeholders are identified by their names, which may change in the copy.
    renamed = {node.name: mapping[node].name for node in trace.graph.nodes if node.op == "placeholder"}
    state = {renamed[name]: qualified for name, qualified in trace.state.items()}
    folds = _fold_in_graph(graph, state, dtypes)
    remaining = set(graph.nodes)
    sizes = [(mapping[node], path, dim) for node, path, dim in program.size_arguments if mapping[node] in remaining]
    constants = {renamed[name]: value for name, value in trace.constants.items()}
    inputs = tuple([renamed[name] for name in trace.inputs])
    folded = Trace(graph, state, constants, inputs, trace.in_spec, trace.out_spec, trace.specs)
    return Program(folded, sizes), folds


def _fold_in_graph(
    graph: fx.Graph, state: dict[str, str], dtypes: Mapping[str, torch.dtype]
) -> dict[str, FoldedBatchNorm]:
    """Fold the batch norms of a graph, and remove the placeholders that nothing reads any more; both in place."""
    folds: dict[str, FoldedBatchNorm] = {}
    for node in list(graph.nodes):
        fold = _find_fold(node, state, dtypes)
        if fold is not None:
            conv = node.args[0]
            folds[fold.weight] = fold
            with graph.inserting_before(next(iter(graph.nodes))):
                bias = graph.placeholder(f"folded_{len(folds)}")
            state[bias.name] = fold.new_bias
            conv.args = (*conv.args[:2], bias, *conv.args[3:])
            node.replace_all_uses_with(conv)
            graph.erase_node(node)
    for node in reversed(list(graph.nodes)):
        if node.op == "placeholder" and not node.users and node.name in state:
            del state[node.name]
            graph.erase_node(node)
    return folds


def _find_fold(node: fx.Node, state: Mapping[str, str], dtypes: Mapping[str, torch.dtype]) -> FoldedBatchNorm | None:
    """The fold of a node, if the node is a batch norm that can be folded."""
    if node.target is not _BATCH_NORM or node.kwargs or node.args[5] is not False:
        return None
    conv: Any = node.args[0]
    if conv.target not in _CONVOLUTIONS or list(conv.users) != [node] or {"bias", "weight"} & conv.kwargs.keys():
        return None
    weight, bias = conv.args[1], conv.args[2] if len(conv.args) > 2 else None
    nodes: dict[str, Any] = dict(zip(("scale", "shift", "mean", "variance"), node.args[1:5], strict=True))
    nodes |= {"weight": weight, "bias": bias}
    names: dict[str, Any] = {key: None if n is None else state.get(getattr(n, "name", "")) for key, n in nodes.items()}
    computed = any(names[key] is None for key in names if nodes[key] is not None)
    if computed or not (names["mean"] and names["variance"]) or list(weight.users) != [conv]:
        return None
    if any(dtypes[name] not in _EXACT for name in names.values() if name is not None):
        return None
    eps: Any = node.args[7]
    return FoldedBatchNorm(**names, eps=float(eps))
