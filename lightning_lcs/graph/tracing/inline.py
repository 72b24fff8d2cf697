"""Inlines the regions of a traced graph in which gradients or autocast are switched, and keeps their meaning."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch.amp.autocast_mode import _enter_autocast, _exit_autocast


def inline_regions(graph: fx.Graph, owner: torch.nn.Module) -> None:
    """Replace every call of a region by its body.

    A region without gradients begins with ``detach``. A region with its own autocast setting enters and leaves
    autocast.

    Args:
        graph: The graph, which is changed in place.
        owner: The module whose attributes the bodies are.
    """
    for node in list(graph.nodes):
        name = getattr(node.target, "__name__", "")
        if node.op != "call_function" or name not in _REGIONS:
            continue
        _REGIONS[name](graph, node, owner)
        _replace_items(graph, node)
    for node in reversed(list(graph.nodes)):
        if node.op == "get_attr" and not node.users:
            graph.erase_node(node)


def _inline_grad_region(graph: fx.Graph, node: fx.Node, owner: torch.nn.Module) -> None:
    enabled, body, *arguments = node.args
    with graph.inserting_before(node):
        if not enabled:
            # The inputs of the region are detached, not its results, because ops that write into a tensor refuse inputs
            # with gradients. Buffers have no gradients, and a detached buffer would not show what is written into it.
            arguments = [a if _is_buffer(a) else _detached(graph, a) for a in arguments]
        results = _copy_body(graph, body, arguments, owner)
    node.meta["results"] = results


def _inline_autocast_region(graph: fx.Graph, node: fx.Node, owner: torch.nn.Module) -> None:
    device, dtype, enabled, cache, body, *arguments = node.args
    with graph.inserting_before(node):
        entered = graph.call_function(_enter_autocast, (device, dtype, enabled, cache))
        results = _copy_body(graph, body, arguments, owner)
        graph.call_function(_exit_autocast, (entered,))
    node.meta["results"] = results


_REGIONS: dict[str, Callable[[fx.Graph, fx.Node, torch.nn.Module], None]] = {
    "wrap_with_set_grad_enabled": _inline_grad_region,
    "wrap_with_autocast": _inline_autocast_region,
}


def _is_buffer(argument: Any) -> bool:
    return isinstance(argument, fx.Node) and argument.op == "placeholder" and argument.name.startswith("b_")


def _detached(graph: fx.Graph, result: Any) -> Any:
    if not isinstance(result, fx.Node) or not isinstance(result.meta.get("val"), torch.Tensor):
        return result
    detached = graph.call_function(torch.ops.aten.detach.default, (result,))
    detached.meta = dict(result.meta)
    return detached


def _copy_body(graph: fx.Graph, body: Any, arguments: list[Any], owner: torch.nn.Module) -> list[Any]:
    """Copy the body of a region to the insertion point of a graph, and return its results."""
    source = owner.get_submodule(body.target)
    inner: Any = source.graph
    inline_regions(inner, source)
    placeholders = [node for node in inner.nodes if node.op == "placeholder"]
    mapping: dict[fx.Node, Any] = dict(zip(placeholders, arguments, strict=True))
    for node in inner.nodes:
        if node.op == "output":
            return [mapping[item] if isinstance(item, fx.Node) else item for item in node.args[0]]
        if node.op != "placeholder":
            mapping[node] = graph.node_copy(node, lambda n: mapping[n])
    return []


def _replace_items(graph: fx.Graph, node: fx.Node) -> None:
    """Replace each item of a region's results by the node that computes it now."""
    results = node.meta["results"]
    for user in list(node.users):
        user.replace_all_uses_with(results[user.args[1]])
        graph.erase_node(user)
    graph.erase_node(node)
