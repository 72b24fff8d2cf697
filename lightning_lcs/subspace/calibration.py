"""Batch-norm statistics per level: collected once, kept in the model, so that any level runs without data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_lcs.model import SubspaceModel
from lightning_lcs.subspace.modes.registry import Quantized, check_alpha

DEFAULT_LEVELS = 25


def level_grid(alphas: int | Sequence[float]) -> list[float]:
    """Levels in ascending order.

    Args:
        alphas: a number of levels, at least 2, spaced evenly over [0, 1]; or the levels themselves.

    Raises:
        ValueError: fewer than 2, or a level outside [0, 1].
    """
    if isinstance(alphas, int):
        if alphas < 2:
            raise ValueError(f"alphas={alphas} is below 2: a grid holds both ends of [0, 1]; use, for example, 7")
        return [step / (alphas - 1) for step in range(alphas)]
    if not alphas:
        raise ValueError("alphas is empty: give at least one level, or a number of levels")
    return sorted({check_alpha(alpha) for alpha in alphas})


def needs_data(model: SubspaceModel, alphas: Sequence[float]) -> bool:
    """Whether levels need training images: for batch-norm statistics, or for ranges that no training has seen."""
    if model.has_batch_norm:
        return True
    # Where layers draw bits of their own, a level may have seen some of them only.
    layers = sum(len(part.compressed) for part in model.parts)
    seen = {level for level, ranges in model.ranges.items() if len(ranges) == layers}
    return isinstance(model.mode, Quantized) and not {model.mode.snap(alpha) for alpha in alphas} <= seen


def recalibrate(
    model: SubspaceModel,
    batches: Iterable[Any],
    alphas: int | Sequence[float] = DEFAULT_LEVELS,
    forward: Callable[[Any], Any] | None = None,
) -> None:
    """Collect batch-norm statistics for a grid of levels and keep them in ``model.statistics``.

    Each is a cumulative average over the batches (no momentum), at the level's own width. Levels in between are served
    by the nearest stored one. alpha = 1 is left alone: its statistics are the network's own running ones. Weights,
    running statistics and training flags stay as they are. In a distributed run the ranks' averages are averaged.

    Args:
        model: a subspace model; without batch norm nothing happens.
        batches: *training* data. Every batch runs once per level.
        alphas: levels, as in :func:`level_grid`.
        forward: what to do with a batch, such that the network runs; ``model(batch)`` by default.

    Raises:
        ValueError: no batch was given, or a level is outside [0, 1].
    """
    levels = sorted({model.mode.snap(alpha) for alpha in level_grid(alphas) if not model.mode.is_full(alpha)})
    if needs_data(model, levels):
        model.statistics = _collect(model, batches, levels, forward)


def recalibrate_running(
    model: SubspaceModel, batches: Iterable[Any], forward: Callable[[Any], Any] | None = None
) -> None:
    """Collect statistics for alpha = 1 and put them where it reads them: the network's own running statistics.

    Arguments and errors as in :func:`recalibrate`. Where alpha = 1 compresses, too, they become a stored level.
    """
    if not needs_data(model, [1.0]):
        return
    collected = _collect(model, batches, [1.0], forward)
    if not model.mode.is_full(1.0):
        model.statistics = collected
        return
    with torch.no_grad():
        for part in model.parts:
            for name, value in collected[1.0].items():
                if name.startswith(part.prefix):
                    part.network.tensor(name[len(part.prefix) :]).copy_(value)


def _collect(
    model: SubspaceModel, batches: Iterable[Any], levels: Sequence[float], forward: Callable[[Any], Any] | None
) -> dict[float, dict[str, Tensor]]:
    forward = model if forward is None else forward
    with torch.inference_mode(False), torch.no_grad(), model.collecting() as collector:
        empty = True
        for batch in batches:
            empty = False
            for alpha in levels:
                collector.alpha = alpha
                forward(batch)
        if empty:
            raise ValueError("batches is empty: recalibration of batch norm needs training data")
        return {alpha: _reduced(tensors) for alpha, tensors in collector.averages().items()}


def reduce_ranges(model: SubspaceModel) -> None:
    """In a distributed run, put the mean over ranks in the place of each rank's ranges of quantized inputs.

    All ranks must have trained the same levels.
    """
    for level, ranges in model.ranges.items():
        if ranges:
            model.ranges[level] = _reduced(ranges)


def statistics_size_bytes(model: SubspaceModel) -> int:
    """Bytes of all stored statistics."""
    return sum(t.numel() * t.element_size() for level in model.statistics.values() for t in level.values())


def _reduced(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The mean over ranks, in one message."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return tensors
    flat = torch.cat([value.flatten() for value in tensors.values()])
    torch.distributed.all_reduce(flat)
    sizes = [value.numel() for value in tensors.values()]
    parts = torch.split(flat / torch.distributed.get_world_size(), sizes)
    return {name: part.reshape(value.shape) for (name, value), part in zip(tensors.items(), parts, strict=True)}
