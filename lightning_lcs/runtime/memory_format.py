"""The order in memory of a network's convolution weights: the one that this machine runs faster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from lightning_lcs.graph.tracing.example_inputs import Arguments, with_noise
from lightning_lcs.runtime.arena import is_channels_last
from lightning_lcs.runtime.runtime import Runtime
from lightning_lcs.subspace.modes.registry import Structured
from lightning_lcs.subspace.network import Part
from lightning_lcs.utils.timing import elapsed

LAYOUTS = ("auto", "contiguous", "channels_last")
# Below, a forward is bound by its calls, and loading is not to take longer than what it could gain.
LEAST_MACS = 10_000_000
GAIN = 0.95  # of the contiguous order's time: what the other one must stay below to be chosen
_ROUNDS = 3
_LONG = 0.1  # seconds after which no further round is begun
_SAME = 1e-4  # of the largest output: sums in another order, far below what a wrong layout would give


def check_layout(layout: str) -> str:
    """Return ``layout``.

    Raises:
        ValueError: it is none of the known ones.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout={layout!r} is not one of {', '.join(map(repr, LAYOUTS))}")
    return layout


def lay_out(
    part: Part, mode: Structured, statistics: Mapping[float, Mapping[str, Tensor]], layout: str, macs: float
) -> None:
    """Bring the weights of 2-D convolutions into an order of memory; their shapes and values stay.

    With "channels_last" the inputs of a weight lie next to each other. Convolutions then give their results in that
    order, too, and don't have to bring weights and maps into it at every call. These weights no longer lie in the
    mapped file.

    Args:
        part: a structured network from a file.
        mode: of compression.
        statistics: running statistics by level.
        layout: "contiguous", "channels_last", or "auto": the one in which the full network is faster here, with one
            sample of the saved shape and the threads that torch has now.
        macs: of the full network; below ten million "auto" is "contiguous".

    Raises:
        ValueError: "channels_last", and the network's results would be other ones.
    """
    weights = _weights(part)
    if layout == "contiguous" or not weights or (layout == "auto" and macs < LEAST_MACS):
        return
    inputs = _inputs(part)
    before = [weight.data for weight in weights]
    seconds, expected = _timed(part, mode, statistics, *inputs)
    _replace(weights, [data.contiguous(memory_format=torch.channels_last) for data in before])
    reordered_seconds, results = _timed(part, mode, statistics, *inputs)
    same = all(map(_is_same, results, expected))
    if layout == "channels_last":
        if not same:
            raise ValueError("layout='channels_last' would change this network's results: leave it at 'auto'")
    elif not same or reordered_seconds > GAIN * seconds:
        _replace(weights, before)


def layout_of(part: Part) -> str:
    """Which of "contiguous" and "channels_last" the weights of a network have."""
    return "channels_last" if any(map(is_channels_last, _weights(part))) else "contiguous"


def _weights(part: Part) -> list[Tensor]:
    """The weights of 2-D convolutions, and the other endpoints of those on a line; each once."""
    program = part.network.in_mode(False)
    nodes = [n for n in program.trace.graph.nodes if n.target is torch.ops.aten.conv2d.default]
    read: list[Any] = [node.args[1] for node in nodes]
    names = dict.fromkeys(program.trace.state[node.name] for node in read if node.name in program.trace.state)
    found = [part.network.tensor(name) for name in names]
    found += [part.endpoints[name] for name in names if name in part.endpoints]
    # Of one pixel, both orders are the same.
    return list({id(weight): weight for weight in found if weight.shape[2:].numel() > 1}.values())


def _inputs(part: Part) -> Arguments:
    device = next(part.network.module.parameters()).device
    return with_noise(part.network.in_mode(False).example_inputs(1, device))


def _timed(
    part: Part, mode: Structured, statistics: Mapping[float, Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[float, list[Tensor]]:
    """The shortest time of a forward of the full network, and its results."""
    runtime = Runtime(part, mode)
    runtime.switch(1.0, statistics)
    times: list[float] = []
    with torch.inference_mode():
        results = runtime.run(args, kwargs)
        while len(times) < _ROUNDS and sum(times) < _LONG:
            times.append(elapsed(lambda: runtime.run(args, kwargs)))
    return min(times), [leaf for leaf in pytree.tree_leaves(results) if isinstance(leaf, Tensor)]


def _is_same(result: Tensor, expected: Tensor) -> bool:
    difference = (result.float() - expected.float()).abs().max()
    return bool(difference <= _SAME * expected.float().abs().max())


def _replace(weights: Sequence[Tensor], data: Sequence[Tensor]) -> None:
    for weight, values in zip(weights, data, strict=True):
        weight.data = values
