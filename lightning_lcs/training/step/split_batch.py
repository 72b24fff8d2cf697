"""A batch divided over the levels of a training step."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from lightning_lcs.graph.tracing.example_inputs import are_images, lists_samples
from lightning_lcs.training.data.loaders import batch_size

# Batch norms refuse to train on maps of a single pixel of a single sample.
FEWEST = 2


def divide(batch: Any, shares: Sequence[float]) -> list[Any] | None:
    """The parts of a batch.

    Divided are tensors and arrays whose first dimension is as long as the batch, and lists with an entry for each
    sample, in lists, tuples, mappings and dataclasses. Whatever else a batch holds goes whole to each part. The samples
    of each part are spread evenly over the batch, because some samplers put samples of one kind next to each other.

    Args:
        batch: The batch of a training step.
        shares: The share of the samples that each part gets; their sum is 1.

    Returns:
        A batch for each share, or ``None`` where a part would have fewer than two samples.

    Example:
        >>> import torch
        >>> from lightning_lcs.training.step.split_batch import divide
        >>> half, rest = divide({"image": torch.zeros(8, 3, 4, 4), "name": list("abcdefgh")}, [0.5, 0.5])
        >>> half["image"].shape, half["name"]
        (torch.Size([4, 3, 4, 4]), ['a', 'c', 'e', 'g'])
    """
    count = batch_size(batch)
    rows = spread(count, shares)
    if min(map(len, rows)) < FEWEST:
        return None
    listed = are_images(batch)
    return [[batch[row] for row in own] if listed else _part(batch, own, count, is_batch=True) for own in rows]


def spread(count: int, shares: Sequence[float]) -> list[list[int]]:
    """The rows of a batch that each part gets, ascending.

    Args:
        count: The number of samples.
        shares: The share of each part.

    Example:
        >>> from lightning_lcs.training.step.split_batch import spread
        >>> spread(8, [0.25, 0.25, 0.5])
        [[1, 5], [2, 6], [0, 3, 4, 7]]
    """
    rows: list[list[int]] = [[] for _ in shares]
    for row in range(count):
        # The part that lacks most of what it should have by now; of several, the one with the largest share.
        lacking = [((row + 1) * share - len(own), share) for own, share in zip(rows, shares, strict=True)]
        rows[lacking.index(max(lacking))].append(row)
    return rows


def _part(value: Any, rows: list[int], count: int, is_batch: bool = False) -> Any:
    if isinstance(value, (Tensor, np.ndarray)):
        return value[rows] if value.ndim and len(value) == count else value
    if not is_batch and lists_samples(value, count):
        return type(value)(value[row] for row in rows)
    if isinstance(value, Mapping):
        parts = {key: _part(inner, rows, count) for key, inner in value.items()}
        return _like(value, parts) if isinstance(value, MutableMapping) else parts
    if isinstance(value, (list, tuple)):
        return _sequence(value, [_part(inner, rows, count) for inner in value])
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        made = copy.copy(value)
        for field in dataclasses.fields(value):
            object.__setattr__(made, field.name, _part(getattr(value, field.name), rows, count))
        return made
    return value


def _like(value: MutableMapping[Any, Any], parts: dict[Any, Any]) -> Any:
    """A mapping of the same kind, such as a batch of tokens with methods of its own."""
    made = copy.copy(value)
    for key, part in parts.items():
        made[key] = part
    return made


def _sequence(value: Any, parts: Iterable[Any]) -> Any:
    return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
