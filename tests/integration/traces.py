"""Traces of equal networks are made once: torch.export takes three quarters of the time of a test that trains."""

import copy
import dataclasses
from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn

from lightning_lcs.graph.tracing.trace import Trace

Tracer = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], Trace]


def remembering(trace: Tracer) -> Tracer:
    """A tracer that gives a copy of an earlier trace where one of an equal network and call was made."""
    known: dict[Any, Trace] = {}

    @torch.compiler.disable  # as if it were not there, where a compiled network is traced
    def remembered(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Trace:
        key = _key(module, args, kwargs)
        if key is None:
            return trace(module, args, kwargs)
        if key not in known:
            known[key] = trace(module, args, kwargs)
        made = known[key]
        constants = {name: value.clone() for name, value in made.constants.items()}
        return dataclasses.replace(made, graph=_copied(made.graph), constants=constants)

    return remembered


def _copied(graph: fx.Graph) -> fx.Graph:
    """With the names of the original: copying turns those of Python's builtins, such as input, into others."""
    twin = copy.deepcopy(graph)
    for mine, theirs in zip(twin.nodes, graph.nodes, strict=True):
        mine.name = theirs.name
    return twin


def _key(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Everything that a trace depends on; ``None`` where something is not told by plain values."""
    if kwargs or len(args) != 1 or not isinstance(args[0], Tensor) or type(args[0]) is not Tensor:
        return None
    parts: list[Any] = [torch.get_default_dtype(), _of_tensor(args[0])[1:], args[0].shape[1:], args[0].is_inference()]
    places: dict[int, int] = {}  # tensors of several names are one
    for path, child in module.named_modules(remove_duplicate=False):
        parts += [path, type(child), places.setdefault(id(child), len(places))]
        for name, value in child.__dict__.items():
            if name in ("_modules", "forward") and (child is module or name == "_modules"):
                continue  # listed by themselves; the tracer puts the class's own forward in its place
            if name in ("_parameters", "_buffers"):
                for key, tensor in value.items():
                    place = places.setdefault(id(tensor), len(places))
                    parts += [key, place, None if tensor is None else _of_tensor(tensor)]
            else:
                # The tracer puts a function that does nothing in the place of hooks that only watch.
                own = [_name(hook) for hook in value.values()] if "_hooks" in name and value else value
                text = repr(own)
                # Tensors, functions, modules in lists and objects that don't say what they hold.
                if "tensor(" in text or " at 0x" in text or _holds_module(value):
                    return None
                parts += [name, text]
    return tuple(parts)


def _name(hook: Any) -> Any:
    """The name of a function that is always the same."""
    return hook.__qualname__ if isinstance(hook, FunctionType) and "<" not in hook.__qualname__ else hook


def _holds_module(value: Any) -> bool:
    return any(isinstance(leaf, nn.Module) for leaf in pytree.tree_leaves(value))


def _of_tensor(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.stride()[1:], tensor.dtype, tensor.device, tensor.requires_grad, type(tensor)
