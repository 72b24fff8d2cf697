"""A network of one level, cut out of its subspace.

This file imports nothing of the package: a pickled network carries its text, and opens where the package is missing.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn
from torch.fx.graph_module import _method_from_src

# Run out of a pickle, this text has no file of its own: it is handed over.
TEXT: str = globals().get("TEXT") or Path(__file__).read_text(encoding="utf-8")


class MaterializedModel(fx.GraphModule):
    """A network of one level, with its own small parameters and buffers, for one of training and evaluation.

    Its ``state_dict`` has the names of the network that it was cut from. It can be pickled, copied, exported and
    compiled, and a pickle of it needs torch alone.

    Raises:
        RuntimeError: ``train()`` on one made for evaluation, or ``eval()`` on one made for training: dropout and batch
            norm are part of the graph; or a move to another type of numbers than its code makes tensors of.
    """

    def __init__(self, root: nn.Module, graph: fx.Graph, for_training: bool) -> None:
        super().__init__(root, graph, class_name="MaterializedModel")
        self.__dict__.update({key: value for key, value in vars(root).items() if key in _CONTENTS})
        self.meta["for_training"] = for_training
        super().train(for_training)

    def train(self, mode: bool = True) -> MaterializedModel:
        """Accepts only the mode that the network was made for."""
        if mode != self.meta["for_training"]:
            made, asked = ("evaluation", True) if mode else ("training", False)
            raise RuntimeError(
                f"this network was materialized for {made}; materialize(alpha, train={asked}) makes the other one"
            )
        return self

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> MaterializedModel:
        """What ``.to()``, ``.double()`` and the like do; tensors that the code makes move along."""
        like = next((p for p in self.parameters() if p.is_floating_point()), torch.empty(0))
        first = torch.empty(0, dtype=like.dtype, device=like.device)
        moved = fn(first.clone())
        fixed = [node for node in self.graph.nodes if moved.dtype != first.dtype and _names(node, first.dtype)]
        # More digits harm nothing. With less, a tensor that is made in full precision on purpose would be wrong.
        if fixed and moved.dtype.itemsize <= first.dtype.itemsize:
            raise RuntimeError(
                f"this network was materialized in {first.dtype}, and its code makes tensors of that type "
                f"({fixed[0].name} and {len(fixed) - 1} more operations): move the subspace model, and materialize "
                f"again: model.to({moved.dtype}).materialize(alpha)"
            )
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._exchange(first.dtype, moved.dtype)
        self._exchange(first.device, moved.device)
        return self

    def _exchange(self, old: Any, new: Any) -> None:
        changed = [node for node in self.graph.nodes if old != new and _names(node, old)]
        for node in changed:
            node.args = _exchanged(node.args, old, new)
            node.kwargs = _exchanged(node.kwargs, old, new)
        if changed:
            self.recompile()

    def __deepcopy__(self, memo: dict[int, Any]) -> MaterializedModel:
        nodes, contents = self._as_data()
        return rebuild(nodes, copy.deepcopy(contents, memo))

    def __reduce__(self) -> Any:
        return _Rebuild(), self._as_data()

    def _as_data(self) -> tuple[list[Any], dict[str, Any]]:
        return _graph_to_data(self.graph), {key: value for key, value in vars(self).items() if key in _CONTENTS}


class _Rebuild:
    """:func:`rebuild`, pickled as the text of this file."""

    def __call__(self, *data: Any) -> MaterializedModel:
        return rebuild(*data)

    def __reduce__(self) -> Any:
        return _method_from_src, ("rebuild", TEXT, {"TEXT": TEXT, "__name__": "materialized"})


def rebuild(nodes: list[Any], contents: dict[str, Any]) -> MaterializedModel:
    """A network out of the nodes of its graph and what its module holds."""
    root = nn.Module()
    root.__dict__.update(contents)
    # Where the package is imported anyway, its own class.
    home = sys.modules.get("lightning_lcs.graph.materialized")
    kind: type[MaterializedModel] = getattr(home, "MaterializedModel", MaterializedModel)
    return kind(root, _graph_from_data(nodes), contents["training"])


# What of a module's own state a network keeps: a graph module by itself forgets which buffers are saved.
_CONTENTS = frozenset(vars(nn.Module()))


def _graph_to_data(graph: fx.Graph) -> list[Any]:
    """Nodes as tuples; ``range(i, i + 1)`` stands for node i, and operators for themselves by name."""
    places = {node: range(i, i + 1) for i, node in enumerate(graph.nodes)}
    data = []
    for node in graph.nodes:
        operator = node.target if not isinstance(node.target, torch._ops.OpOverload) else [str(node.target)]
        args, kwargs = fx.map_arg((node.args, node.kwargs), places.__getitem__)
        data.append((node.op, node.name, operator, args, kwargs))
    return data


def _graph_from_data(data: list[Any]) -> fx.Graph:
    graph = fx.Graph()
    made: list[fx.Node] = []
    for op, name, target, args, kwargs in data:
        operator: Any = target
        if isinstance(target, list):
            operator = torch.ops
            for part in target[0].split("."):
                operator = getattr(operator, part)
        args, kwargs = fx.node.map_aggregate((args, kwargs), lambda a: made[a.start] if isinstance(a, range) else a)
        made.append(graph.create_node(op, operator, args, kwargs, name))
    return graph


def _names(node: fx.Node, value: Any) -> bool:
    """Whether a type or a device is among the arguments of a node."""
    found: list[Any] = []
    fx.node.map_aggregate((node.args, node.kwargs), found.append)
    return any(type(item) is type(value) and item == value for item in found)


def _exchanged(arguments: Any, old: Any, new: Any) -> Any:
    return fx.node.map_aggregate(arguments, lambda item: new if type(item) is type(old) and item == old else item)
