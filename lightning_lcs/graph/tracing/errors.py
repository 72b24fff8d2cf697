"""What can't be traced: an error that says where in the network's code, and what to do instead."""

from __future__ import annotations

import os
import re
import sysconfig
import traceback
from pathlib import Path
from typing import Any

import torch
from torch import SymInt, Tensor, fx, nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

ALTERNATIVES = (
    "name a part of the network without it as target=, or use unstructured or quantized mode, which run the network's "
    "own code and need no trace"
)
LONGEST = 320  # characters of torch's own message: the rest follows in the chained error
_NOT_THEIRS = (f"{Path(torch.__file__).parent}{os.sep}", f"{Path(__file__).parents[2]}{os.sep}")
_STANDARD = sysconfig.get_path("stdlib")
_INSTALLED = ("site-packages", "dist-packages")


class TraceError(RuntimeError):
    """A network that ``torch.export`` can't trace, or whose trace is not the network."""


def check_kinds(module: nn.Module) -> None:
    """Refuse what structured compression has no answer to, whatever the forward does.

    Raises:
        ValueError: quantized layers, complex parameters or buffers, or no parameters at all.
    """
    name = type(module).__name__
    for path, child in module.named_modules():
        packed = any(isinstance(value, torch.ScriptObject) for value in vars(child).values())
        if packed or any(value is not None and value.is_quantized for value in _own_tensors(child).values()):
            raise ValueError(
                f"{name} is quantized already ({path or 'itself'} is of {type(child).__module__}): train the subspace "
                "on the network in floating point, and quantize what materialize(alpha) gives"
            )
        for leaf, value in _own_tensors(child).items():
            if value is not None and value.is_complex():
                raise ValueError(
                    f"{path + '.' if path else ''}{leaf} of {name} is complex ({value.dtype}), and structured "
                    "compression slices real tensors: hold real and imaginary part in a real one (torch.view_as_real) "
                    "and join them in the forward (torch.view_as_complex), or name a part of the network without it "
                    "as target="
                )
    if next(module.parameters(), None) is None:
        raise ValueError(f"{name} has no parameters: there is nothing to compress; name the network as target=")


def check_values(module: nn.Module) -> None:
    """Refuse parameters and buffers that have no values yet.

    Raises:
        TraceError: tensors on the device "meta", or of lazy layers that have never run.
    """
    for name, value in (*module.named_parameters(), *module.named_buffers()):
        if is_lazy(value):
            raise TraceError(
                f"{name} of {type(module).__name__} has no shape yet: run the network once at alpha = 1, so that its "
                "lazy layers take shape, before a level below is asked for"
            )
        if value.is_meta:
            raise TraceError(
                f"{name} of {type(module).__name__} is on the device 'meta' and holds no values: give the network "
                "memory and weights first (to_empty(device=...), then load_state_dict)"
            )


def export_error(module: nn.Module, error: BaseException) -> TraceError:
    """What ``torch.export`` raised, as an error of a few lines that names the place in the network's code."""
    name, place = type(module).__name__, in_parentheses(place_of(error))
    if "DataDependent" in type(error).__name__:
        return TraceError(
            f"{name} can't be traced: its code goes one way or another by the values of a tensor{place}. Keep to "
            f"operations on tensors there (torch.where, masks) or move it out of the network, {ALTERNATIVES}"
        )
    text = str(error).strip()
    first = text.splitlines()[0] if text else ""
    first = first if len(first) <= LONGEST else first[:LONGEST] + " ..."
    return TraceError(
        f"{name} can't be traced by torch.export ({type(error).__name__}{': ' if first else ''}{first}){place}. If it "
        f"runs at alpha = 1 with the same inputs, {ALTERNATIVES}"
    )


def two_samples_error(module: nn.Module, error: BaseException) -> TraceError:
    """What a network raised on few samples of its input, which it is compared with its trace on."""
    name, text = type(module).__name__, str(error).strip().partition("\n")[0][:LONGEST]
    return TraceError(
        f"{name} does not run on two samples of its input ({type(error).__name__}: {text}){in_parentheses(place_of(error))}: the "
        "first dimension of the first tensor is taken for the batch, and so is that of all tensors of the same length. "
        f"If it is something else, such as the nodes of a graph, {ALTERNATIVES}"
    )


def check_sizes(module: nn.Module, graph: fx.Graph) -> None:
    """Refuse a graph in which the values of a tensor decide the shape of another.

    Raises:
        TraceError: there is one.
    """
    for node in graph.nodes:
        value = node.meta.get("val")
        sizes: tuple[Any, ...] = tuple(value.shape) if isinstance(value, Tensor) else ()
        if any(isinstance(size, SymInt) and size.node.hint is None for size in sizes):
            raise TraceError(
                f"{type(module).__name__} can't be compressed by its trace: the size of a tensor depends on the values "
                f"of another{in_parentheses(place_in(node.meta.get('stack_trace')))}. Keep the size and mask instead, {ALTERNATIVES}"
            )


def place_of(error: BaseException) -> str | None:
    """The innermost line that is neither torch's nor ours on the way to an error, as "file.py:12: code"."""
    frames = list(reversed(traceback.extract_tb(error.__traceback__)))
    theirs = [frame for frame in frames if _is_theirs(frame.filename)]
    # A network of torch's modules alone: the innermost of them.
    for frame in theirs or [frame for frame in frames if frame.name == "forward"]:
        return f"{frame.filename}:{frame.lineno}: {frame.line}"
    return None


def place_in(stack: str | None) -> str | None:
    """The same of the stack that ``torch.export`` notes at each operation."""
    for filename, line, code in reversed(re.findall(r'File "([^"]+)", line (\d+), in .*\n\s*(.*)', stack or "")):
        if _is_theirs(filename):
            return f"{filename}:{line}: {code}"
    return None


def in_parentheses(place: str | None) -> str:
    """ " (file.py:12: code)", or nothing where the place is not known."""
    return f" ({place})" if place else ""


def _is_theirs(filename: str) -> bool:
    of_python = filename.startswith(_STANDARD) and not any(part in filename for part in _INSTALLED)
    return not (of_python or filename.startswith(("<", *_NOT_THEIRS)))


def _own_tensors(child: nn.Module) -> dict[str, Tensor | None]:
    return {**child._parameters, **child._buffers}


class BatchSizeFixedError(Exception):
    """The batch size has just become a number."""


class BatchSizeProbe(nn.Module):
    """A network that raises :class:`BatchSizeFixedError` behind the operation that makes a number of its open batch size."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The network's own arguments and results."""
        with _Watch():
            return self.module(*args, **kwargs)


class _Watch(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.batch: SymInt | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        first = args[0] if args else None
        if self.batch is None and isinstance(first, Tensor) and first.ndim:
            size: Any = first.shape[0]
            self.batch = size if isinstance(size, SymInt) else None
        result = func(*args, **(kwargs or {}))
        if self.batch is not None and self.batch.node.maybe_as_int() is not None:
            raise BatchSizeFixedError
        return result
