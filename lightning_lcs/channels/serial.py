"""A network's graph as JSON, and back: data only, no code and no pickle."""

from __future__ import annotations

import keyword
import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from lightning_lcs.channels.rules import RULES

# Ops without a rule for channels that may stand in a file all the same.
_ALSO = frozenset(
    {"sym_size", "matmul", "bmm", "scaled_dot_product_attention", "index", "arange", "embedding", "slice"}
)
_PYTHON = {
    "assert": torch._assert,
    "eq": operator.eq,
    "getitem": operator.getitem,
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "floordiv": operator.floordiv,
    "sym_max": torch.sym_max,
    "sym_min": torch.sym_min,
}
_DTYPES = {str(d): d for d in vars(torch).values() if isinstance(d, torch.dtype)}
_FORMATS = {str(f): f for f in vars(torch).values() if isinstance(f, (torch.memory_format, torch.layout))}


def graph_to_data(graph: fx.Graph) -> list[dict[str, Any]]:
    """The nodes of a graph as plain data, in order.

    Raises:
        ValueError: the graph holds an op that files may not hold.
    """
    index: dict[fx.Node, int] = {}
    nodes: list[dict[str, Any]] = []
    for node in graph.nodes:
        entry: dict[str, Any] = {"op": node.op}
        if node.op == "call_function":
            entry |= {"target": _target_name(node), "args": _encode(node.args, index)}
            if node.kwargs:
                entry["kwargs"] = _encode(dict(node.kwargs), index)
        elif node.op == "output":
            entry["args"] = _encode(node.args[0], index)
        else:
            entry["target"] = node.target
        index[node] = len(nodes)
        nodes.append(entry)
    return nodes


def graph_from_data(nodes: list[dict[str, Any]]) -> fx.Graph:
    """A graph out of what :func:`graph_to_data` gave.

    Every op is looked up in a fixed list and every name is checked before anything runs.

    Raises:
        ValueError: an op outside the list, a name that is no identifier, or a malformed node.
    """
    graph = fx.Graph()
    made: list[fx.Node] = []
    for entry in nodes:
        try:
            made.append(_make(graph, entry, made))
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise ValueError(f"the network in the file is malformed at node {len(made)}: {error!r}") from error
    return graph


def _make(graph: fx.Graph, entry: Mapping[str, Any], made: list[fx.Node]) -> fx.Node:
    if entry["op"] == "placeholder":
        return graph.placeholder(_checked(entry["target"], dotted=False))
    if entry["op"] == "get_attr":
        return graph.get_attr(_checked(entry["target"], dotted=True))
    if entry["op"] == "output":
        output: fx.Node = graph.output(_decode(entry["args"], made))
        return output
    if entry["op"] == "call_function":
        kwargs = _decode(entry["kwargs"], made) if "kwargs" in entry else {}
        return graph.call_function(_target(entry["target"]), tuple(_decode(entry["args"], made)), kwargs)
    raise ValueError(f"the network in the file holds a node of kind {entry['op']!r}, which is not allowed")


def _checked(name: str, dotted: bool) -> str:
    parts = name.split(".") if dotted else [name]
    if not all((part.isidentifier() and not keyword.iskeyword(part)) or (dotted and part.isdigit()) for part in parts):
        raise ValueError(f"the network in the file holds the name {name!r}, which is not allowed")
    return name


def _target_name(node: fx.Node) -> str:
    for name, function in _PYTHON.items():
        if node.target is function:
            return f"python.{name}"
    name = str(node.target)
    _target(name)
    return name


def _target(name: str) -> Any:
    space, _, rest = name.partition(".")
    if space == "python" and rest in _PYTHON:
        return _PYTHON[rest]
    base, _, overload = rest.partition(".")
    if space != "aten" or (base not in RULES and base.rstrip("_") not in RULES and base not in _ALSO):
        raise ValueError(f"the op {name} is not allowed in a file")
    return getattr(getattr(torch.ops.aten, base), overload)


def _encode(value: Any, index: Mapping[fx.Node, int]) -> Any:
    if isinstance(value, fx.Node):
        return {"node": index[value]}
    if isinstance(value, tuple):
        return {"tuple": [_encode(item, index) for item in value]}
    if isinstance(value, list):
        return [_encode(item, index) for item in value]
    if isinstance(value, Mapping):
        return {"dict": {key: _encode(item, index) for key, item in value.items()}}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value)}
    if isinstance(value, (torch.memory_format, torch.layout)):
        return {"format": str(value)}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ValueError(f"a value of type {type(value).__name__} can't be written to a file")


def _decode(value: Any, made: list[fx.Node]) -> Any:
    if isinstance(value, list):
        return [_decode(item, made) for item in value]
    if not isinstance(value, Mapping):
        return value
    ((kind, content),) = value.items()
    if kind == "node":
        return made[content]
    if kind == "tuple":
        return tuple(_decode(item, made) for item in content)
    if kind == "dict":
        return {key: _decode(item, made) for key, item in content.items()}
    if kind == "device":
        return torch.device(content)
    return _DTYPES[content] if kind == "dtype" else _FORMATS[content]
