"""Errors about networks that can't be traced: each names the line of the network's code, and what to do instead."""

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
MAX_MESSAGE = 320  # characters of torch's own message; the chained error has all of it
# Folders of torch and of this package, of the standard library, and of installed packages.
_TORCH_AND_OURS = (f"{Path(torch.__file__).parent}{os.sep}", f"{Path(__file__).parents[2]}{os.sep}")
_STANDARD_LIBRARY = sysconfig.get_path("stdlib")
_INSTALLED = ("site-packages", "dist-packages")


class TraceError(RuntimeError):
    """A network that ``torch.export`` can't trace, or whose trace computes something else than the network."""


def check_kinds(module: nn.Module) -> None:
    """Refuse networks that structured compression can't handle, whatever their forward does.

    Args:
        module: The network.

    Raises:
        ValueError: The network has quantized layers, complex parameters or buffers, or no parameters at all.
    """
    name = type(module).__name__
    for path, child in module.named_modules():
        packed = any(isinstance(value, torch.ScriptObject) for value in vars(child).values())
        if packed or any(value is not None and value.is_quantized for value in _own_tensors(child).values()):
            raise ValueError(
                f"{name} is quantized already ({path or 'the network itself'} is of {type(child).__module__}): train "
                "the subspace on the network in floating point, and quantize what materialize(alpha) returns"
            )
        for leaf, value in _own_tensors(child).items():
            if value is not None and value.is_complex():
                raise ValueError(
                    f"{path + '.' if path else ''}{leaf} of {name} is complex ({value.dtype}), and structured "
                    "compression slices real tensors only: store the real and the imaginary part in a real tensor "
                    "(torch.view_as_real) and join them in the forward (torch.view_as_complex), or name a part of the "
                    "network without it as target="
                )
    if next(module.parameters(), None) is None:
        raise ValueError(
            f"{name} has no parameters, so there is nothing to compress: name the network that has them as target="
        )


def check_values(module: nn.Module) -> None:
    """Refuse parameters and buffers that have no values yet.

    Args:
        module: The network.

    Raises:
        TraceError: A tensor is on the device "meta", or belongs to a lazy layer that has never run.
    """
    for name, value in (*module.named_parameters(), *module.named_buffers()):
        if is_lazy(value):
            raise TraceError(
                f"{name} of {type(module).__name__} has no shape yet: run the network once at alpha = 1, so that its "
                "lazy layers get their shapes, before you use a lower level"
            )
        if value.is_meta:
            raise TraceError(
                f"{name} of {type(module).__name__} is on the device 'meta' and has no values: give the network memory "
                "and weights first (to_empty(device=...), then load_state_dict)"
            )


def export_error(module: nn.Module, error: BaseException) -> TraceError:
    """A short error for what ``torch.export`` raised, with the line of the network's code.

    Args:
        module: The network.
        error: What ``torch.export`` raised.
    """
    name, place = type(module).__name__, located(place_of(error))
    if "DataDependent" in type(error).__name__:
        return TraceError(
            f"{name} can't be traced, because its code branches on the values of a tensor{place}. Use operations on "
            f"tensors there (torch.where, masks), move the branch out of the network, {ALTERNATIVES}"
        )
    text = str(error).strip()
    first = text.splitlines()[0] if text else ""
    first = first if len(first) <= MAX_MESSAGE else first[:MAX_MESSAGE] + " ..."
    return TraceError(
        f"{name} can't be traced by torch.export ({type(error).__name__}{': ' if first else ''}{first}){place}. If it "
        f"runs at alpha = 1 with the same inputs, {ALTERNATIVES}"
    )


def two_samples_error(module: nn.Module, error: BaseException) -> TraceError:
    """The error for a network that does not run on the two samples with which its trace is checked.

    Args:
        module: The network.
        error: What the network raised.
    """
    name, text = type(module).__name__, str(error).strip().partition("\n")[0][:MAX_MESSAGE]
    return TraceError(
        f"{name} does not run on two samples of its input ({type(error).__name__}: {text}){located(place_of(error))}. "
        "The first dimension of the first tensor, and of all tensors of the same length, is taken to be the batch. If "
        f"it is something else, such as the nodes of a graph, {ALTERNATIVES}"
    )


def check_sizes(module: nn.Module, graph: fx.Graph) -> None:
    """Refuse a graph in which the shape of a tensor depends on the values of another.

    Args:
        module: The network.
        graph: Its traced graph.

    Raises:
        TraceError: The graph has such a tensor.
    """
    for node in graph.nodes:
        value = node.meta.get("val")
        sizes: tuple[Any, ...] = tuple(value.shape) if isinstance(value, Tensor) else ()
        if any(isinstance(size, SymInt) and size.node.hint is None for size in sizes):
            place = located(place_in(node.meta.get("stack_trace")))
            raise TraceError(
                f"{type(module).__name__} can't be compressed by its trace, because the size of a tensor depends on "
                f"the values of another{place}. Keep the size and use a mask instead, {ALTERNATIVES}"
            )


def place_of(error: BaseException) -> str | None:
    """The line of the network's code that led to an error, as "file.py:12: code".

    It is the innermost line outside of torch and this package. For a network of torch's own modules it is the innermost
    line in a ``forward``.
    """
    frames = list(reversed(traceback.extract_tb(error.__traceback__)))
    network_frames = [frame for frame in frames if _is_network_code(frame.filename)]
    for frame in network_frames or [frame for frame in frames if frame.name == "forward"]:
        return f"{frame.filename}:{frame.lineno}: {frame.line}"
    return None


def place_in(stack: str | None) -> str | None:
    """The line of the network's code in a stack that ``torch.export`` notes at each operation."""
    for filename, line, code in reversed(re.findall(r'File "([^"]+)", line (\d+), in .*\n\s*(.*)', stack or "")):
        if _is_network_code(filename):
            return f"{filename}:{line}: {code}"
    return None


def located(place: str | None) -> str:
    """The place in parentheses after a space, or an empty text if the place is not known."""
    return f" ({place})" if place else ""


def _is_network_code(filename: str) -> bool:
    is_standard = filename.startswith(_STANDARD_LIBRARY) and not any(part in filename for part in _INSTALLED)
    return not (is_standard or filename.startswith(("<", *_TORCH_AND_OURS)))


def _own_tensors(child: nn.Module) -> dict[str, Tensor | None]:
    return {**child._parameters, **child._buffers}


class BatchSizeFixedError(Exception):
    """The batch size, open until now, has become a number."""


class BatchSizeProbe(nn.Module):
    """A network that raises :class:`BatchSizeFixedError` where its code turns the open batch size into a number."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the network with its own arguments."""
        with _BatchSizeWatch():
            return self.module(*args, **kwargs)


class _BatchSizeWatch(TorchFunctionMode):
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
