"""The memory format of a network's convolution weights, chosen by what runs faster on this machine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from lightning_lcs.graph.tracing.example_inputs import Arguments, with_noise
from lightning_lcs.runtime.arena import is_channels_last
from lightning_lcs.runtime.runtime import Runtime
from lightning_lcs.subspace.mode import Level
from lightning_lcs.subspace.part import Part
from lightning_lcs.subspace.running.evaluation import Evaluation

LAYOUTS = ("auto", "contiguous", "channels_last")
# Below this size calls dominate the time of a forward, and measuring would take longer than it could save.
LEAST_MACS = 10_000_000
GAIN = 0.95  # channels_last is chosen below this share of the time of the contiguous format
_ROUNDS = 3
_LONG = 0.1  # seconds after which no further round starts
_SAME = 1e-4  # relative to the largest output: allows for sums in another order, but not for a wrong result


def check_layout(layout: str) -> str:
    """Return ``layout``, or raise an error.

    Raises:
        ValueError: ``layout`` is not known.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout={layout!r} is not one of {', '.join(map(repr, LAYOUTS))}")
    return layout


def lay_out(part: Part, full: Level, layout: str, macs: float) -> None:
    """Change the memory format of the weights of 2-D convolutions; their shapes and values stay the same.

    With "channels_last" the input channels of a weight lie next to each other. Convolutions then return their results
    in the same format, and don't have to convert weights and feature maps at every call. These weights are copies in
    memory instead of views of the mapped file.

    Args:
        part: A structured network from a file.
        full: The full level.
        layout: "contiguous", "channels_last", or "auto": the one in which the full network is faster here, with one
            sample of the saved shape and the threads that torch has now.
        macs: The multiply-accumulates of the full network; below ten million, "auto" means "contiguous".

    Raises:
        ValueError: The layout is "channels_last", and it would change the results of the network.
    """
    weights = _weights(part)
    if layout == "contiguous" or not weights or (layout == "auto" and macs < LEAST_MACS):
        return
    inputs = _inputs(part)
    before = [weight.data for weight in weights]
    seconds, expected = _timed(part, full, *inputs)
    _replace(weights, [data.contiguous(memory_format=torch.channels_last) for data in before])
    reordered_seconds, results = _timed(part, full, *inputs)
    same = all(map(_is_same, results, expected))
    if layout == "channels_last":
        if not same:
            raise ValueError("layout='channels_last' would change this network's results: leave it at 'auto'")
    elif not same or reordered_seconds > GAIN * seconds:
        _replace(weights, before)


def layout_of(part: Part) -> str:
    """The memory format of the weights of a network, "contiguous" or "channels_last"."""
    return "channels_last" if any(map(is_channels_last, _weights(part))) else "contiguous"


def _weights(part: Part) -> list[Tensor]:
    """The weights of 2-D convolutions and their second endpoints, each once."""
    program = part.network.in_mode(False)
    nodes = [n for n in program.trace.graph.nodes if n.target is torch.ops.aten.conv2d.default]
    read: list[Any] = [node.args[1] for node in nodes]
    names = dict.fromkeys(program.trace.state[node.name] for node in read if node.name in program.trace.state)
    found = [part.network.tensor(name) for name in names]
    found += [part.endpoints[name] for name in names if name in part.endpoints]
    # For kernels of one pixel both formats are the same.
    return list({id(weight): weight for weight in found if weight.shape[2:].numel() > 1}.values())


def _inputs(part: Part) -> Arguments:
    device = next(part.network.module.parameters()).device
    return with_noise(part.network.in_mode(False).example_inputs(1, device))


def _timed(part: Part, full: Level, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[float, list[Tensor]]:
    """The shortest time of a forward of the full network in seconds, and its results."""
    runtime = Runtime(part, Evaluation(full))
    forward = partial(runtime.run, part, part.network.module, args, kwargs)
    times: list[float] = []
    with torch.inference_mode():
        results = forward()
        while len(times) < _ROUNDS and sum(times) < _LONG:
            begin = time.perf_counter()
            forward()
            times.append(time.perf_counter() - begin)
    return min(times), [leaf for leaf in pytree.tree_leaves(results) if isinstance(leaf, Tensor)]


def _is_same(result: Tensor, expected: Tensor) -> bool:
    difference = (result.float() - expected.float()).abs().max()
    return bool(difference <= _SAME * expected.float().abs().max())


def _replace(weights: Sequence[Tensor], data: Sequence[Tensor]) -> None:
    for weight, values in zip(weights, data, strict=True):
        weight.data = values
