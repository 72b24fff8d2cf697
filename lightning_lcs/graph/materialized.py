"""A network of one level, with its own parameters.

This file imports nothing of the package. A pickled network holds its text, so it can be loaded without the package.
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

# The text of this file. A pickle passes it on, because the text that it runs has no file.
TEXT: str = globals().get("TEXT") or Path(__file__).read_text(encoding="utf-8")


class MaterializedModel(fx.GraphModule):
    """A network of one level, with its own small parameters and buffers.

    :meth:`SubspaceModel.materialize` makes it. It works in either training or evaluation mode, because dropout and
    batch norm are part of its graph. Its ``state_dict`` has the names of the original network. It can be pickled,
    copied, exported and compiled, and loading a pickle of it needs torch only.

    Args:
        root: A module that holds the parameters and buffers.
        graph: The graph of the forward.
        for_training: Whether the graph is for training mode.

    Raises:
        RuntimeError: ``train()`` was called on a network for evaluation, or ``eval()`` on a network for training; or
            the network was moved to a dtype with fewer bits, while its code makes tensors of the original dtype.

    Example:
        >>> import torch
        >>> from lightning_lcs import SubspaceModel
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3))
        >>> x = torch.zeros(1, 3, 8, 8)
        >>> model = SubspaceModel(net, mode="structured", subspace="point", example_inputs=x).eval()
        >>> small = model.materialize(0.0)
        >>> {name: tuple(value.shape) for name, value in small.state_dict().items()}
        {'0.weight': (2, 3, 3, 3), '0.bias': (2,), '2.weight': (4, 2, 3, 3), '2.bias': (4,)}
    """

    def __init__(self, root: nn.Module, graph: fx.Graph, for_training: bool) -> None:
        super().__init__(root, graph, class_name="MaterializedModel")
        self.__dict__.update({key: value for key, value in vars(root).items() if key in _CONTENTS})
        self.meta["for_training"] = for_training
        super().train(for_training)

    def train(self, mode: bool = True) -> MaterializedModel:
        """Check that the network is for this mode.

        Args:
            mode: True for training mode, False for evaluation mode. The default is True.

        Raises:
            RuntimeError: The network is for the other mode.
        """
        if mode != self.meta["for_training"]:
            own, other = ("evaluation", True) if mode else ("training", False)
            raise RuntimeError(
                f"this network was materialized for {own}; use materialize(alpha, train={other}) for the other mode"
            )
        return self

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> MaterializedModel:
        """Do what ``.to()``, ``.double()`` and similar methods do, also for the tensors that the code makes."""
        like = next((p for p in self.parameters() if p.is_floating_point()), torch.empty(0))
        before = torch.empty(0, dtype=like.dtype, device=like.device)
        after = fn(before.clone())
        typed = [node for node in self.graph.nodes if after.dtype != before.dtype and _has_argument(node, before.dtype)]
        # More bits do no harm. With fewer bits, a tensor that is made in full precision on purpose would be wrong.
        if typed and after.dtype.itemsize <= before.dtype.itemsize:
            raise RuntimeError(
                f"this network was materialized in {before.dtype}, and its code makes tensors of that dtype "
                f"({typed[0].name} and {len(typed) - 1} more operations): move the subspace model and materialize it "
                f"again, model.to({after.dtype}).materialize(alpha)"
            )
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._replace_arguments(before.dtype, after.dtype)
        self._replace_arguments(before.device, after.device)
        return self

    def _replace_arguments(self, old: Any, new: Any) -> None:
        """Replace a dtype or a device in the arguments of all nodes."""
        changed = [node for node in self.graph.nodes if old != new and _has_argument(node, old)]
        for node in changed:
            node.args = _replaced(node.args, old, new)
            node.kwargs = _replaced(node.kwargs, old, new)
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
    """Calls :func:`rebuild`, and is pickled as the text of this file."""

    def __call__(self, *data: Any) -> MaterializedModel:
        return rebuild(*data)

    def __reduce__(self) -> Any:
        return _method_from_src, ("rebuild", TEXT, {"TEXT": TEXT, "__name__": "materialized"})


def rebuild(nodes: list[Any], contents: dict[str, Any]) -> MaterializedModel:
    """Rebuild a network that was pickled.

    Args:
        nodes: The nodes of its graph as plain data.
        contents: The contents of its module: parameters, buffers, submodules, hooks and flags.
    """
    root = nn.Module()
    root.__dict__.update(contents)
    # If the package is imported, the network is of the package's class, and not of the one in this text.
    home = sys.modules.get("lightning_lcs.graph.materialized")
    kind: type[MaterializedModel] = getattr(home, "MaterializedModel", MaterializedModel)
    return kind(root, _graph_from_data(nodes), contents["training"])


# The attributes of a plain module, which a network keeps. A graph module alone forgets which buffers are persistent.
_CONTENTS = frozenset(vars(nn.Module()))


def _graph_to_data(graph: fx.Graph) -> list[Any]:
    """Nodes as tuples, in which ``range(i, i + 1)`` stands for node i, and a list with a name for an ATen op."""
    positions = {node: range(i, i + 1) for i, node in enumerate(graph.nodes)}
    data = []
    for node in graph.nodes:
        operator = node.target if not isinstance(node.target, torch._ops.OpOverload) else [str(node.target)]
        args, kwargs = fx.map_arg((node.args, node.kwargs), positions.__getitem__)
        data.append((node.op, node.name, operator, args, kwargs))
    return data


def _graph_from_data(data: list[Any]) -> fx.Graph:
    graph = fx.Graph()
    nodes: list[fx.Node] = []
    for op, name, target, args, kwargs in data:
        operator: Any = target
        if isinstance(target, list):
            operator = torch.ops
            for part in target[0].split("."):
                operator = getattr(operator, part)
        args, kwargs = fx.node.map_aggregate((args, kwargs), lambda a: nodes[a.start] if isinstance(a, range) else a)
        nodes.append(graph.create_node(op, operator, args, kwargs, name))
    return graph


def _has_argument(node: fx.Node, value: Any) -> bool:
    """Whether a dtype or a device is among the arguments of a node."""
    arguments: list[Any] = []
    fx.node.map_aggregate((node.args, node.kwargs), arguments.append)
    return any(type(item) is type(value) and item == value for item in arguments)


def _replaced(arguments: Any, old: Any, new: Any) -> Any:
    return fx.node.map_aggregate(arguments, lambda item: new if type(item) is type(old) and item == old else item)
