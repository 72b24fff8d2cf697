"""Brings the ops of a traced graph into one form, so that fewer kinds of ops need a rule."""

from __future__ import annotations

import operator

import torch
from torch import fx

# Ops that only check what was traced.
_CHECKS = ("_assert_tensor_metadata", "_assert_scalar", "sym_constrain_range_for_size", "sym_constrain_range")
# Ops that split a dimension; their arguments are the tensor, how to split, and the dimension.
_SPLITS = ("chunk.default", "split.Tensor", "tensor_split.indices", "tensor_split.sections")
# Python functions of sizes. Other functions, such as those that enter autocast, stay even if their result is not used.
_PURE = (operator.getitem, operator.add, operator.sub, operator.mul, operator.floordiv, torch.sym_max, torch.sym_min)


def normalise(graph: fx.Graph) -> None:
    """Remove checks of what was traced, and write every split of a dimension with the sizes of all its parts."""
    split_with_sizes = torch.ops.aten.split_with_sizes.default
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        name = getattr(node.target, "__name__", "")
        if not node.users and any(check in name for check in _CHECKS):
            graph.erase_node(node)
        elif name in _SPLITS:
            dim = node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", 0)
            sizes = [part.shape[dim] for part in node.meta["val"]]
            if all(isinstance(size, int) for size in sizes):
                node.target, node.args, node.kwargs = split_with_sizes, (node.args[0], sizes, dim), {}
        elif name in ("squeeze.default", "squeeze.dim", "squeeze.dims"):
            # A channel dimension must stay where a level reduces it to size 1. So only the dimensions that have size 1
            # in the full network are squeezed.
            node.args, node.kwargs = (node.args[0], _squeezed_dims(node)), {}
            node.target = torch.ops.aten.squeeze.dims
    graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output") or not _is_pure(node))
    for node in reversed(list(graph.nodes)):
        if node.op == "placeholder" and not node.users and node.name.startswith(("p_", "b_", "c_")):
            graph.erase_node(node)


def _squeezed_dims(node: fx.Node) -> list[int]:
    shape = node.args[0].meta["val"].shape  # type: ignore[union-attr]
    given = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", list(range(len(shape))))
    axes = [given] if isinstance(given, int) else list(given)  # type: ignore[arg-type]
    return [axis for axis in axes if isinstance(shape[axis], int) and shape[axis] == 1]


def _is_pure(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return not schema.is_mutable if schema is not None else node.target in _PURE
