"""A batch divided over the levels of a training step."""

from __future__ import annotations

import collections
import copy
import dataclasses
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_unflatten

from lightning_lcs.graph.tracing.example_inputs import MOST_SETTINGS, lists_samples
from lightning_lcs.training.data.loaders import batch_size, lists_images

# Batch norms refuse to train on maps of a single pixel of a single sample.
FEWEST = 2

Leaf = Callable[[str, Any], Any]


class UndividedError(ValueError):
    """A batch can't be divided; the message says why.

    Attributes:
        unknown: Whether it is not known what its samples are, so that batches like it should not be divided either.
    """

    unknown = False


@dataclasses.dataclass(frozen=True)
class Divided:
    """A divided batch.

    Attributes:
        parts: A batch for each share.
        whole: The tensors that are whole in each part though they have rows, by their place in the batch.
    """

    parts: list[Any]
    whole: list[str]


def divide(batch: Any, shares: Sequence[float], loaders: TreeSpec | None = None) -> Divided:
    """The parts of a batch.

    Divided are tensors and arrays whose first dimension is as long as the batch, and lists with an entry for each
    sample, in lists, tuples, mappings and dataclasses. Whatever else a batch holds goes whole to each part. The samples
    of each part are spread evenly over the batch, because some samplers put samples of one kind next to each other.

    Args:
        batch: The batch of a training step.
        shares: The share of the samples that each part gets; their sum is 1.
        loaders: The structure of the loaders, of which each gives a batch of its own size. The default is one loader.

    Raises:
        UndividedError: A part would have fewer than two samples, or most tensors have another number of rows than the
            first, so that it is not known which are samples.

    Example:
        >>> import torch
        >>> from lightning_lcs.training.step.split_batch import divide
        >>> half, rest = divide({"image": torch.zeros(8, 3, 4, 4), "name": list("abcdefgh")}, [0.5, 0.5]).parts
        >>> half["image"].shape, half["name"]
        (torch.Size([4, 3, 4, 4]), ['a', 'c', 'e', 'g'])
    """
    each = None if loaders is None else _by_loader(batch, loaders)
    if loaders is not None and each is not None:
        ended = Divided([None] * len(shares), [])
        divided = [ended if own is None else divide(own, shares) for own in each]
        parts = [tree_unflatten(list(own), loaders) for own in zip(*(one.parts for one in divided), strict=True)]
        return Divided(parts, [path for one in divided for path in one.whole])
    count = batch_size(batch)
    rows = spread(count, shares)
    if min(map(len, rows)) < FEWEST:
        raise UndividedError(f"its first tensor gives {count} samples, which leave a level fewer than {FEWEST}")
    if lists_images(batch):
        return Divided([[batch[row] for row in own] for own in rows], [])
    whole = _others(batch, count)

    def part(own: list[int]) -> Any:
        def take(path: str, value: Any) -> Any:
            if isinstance(value, (Tensor, np.ndarray)):
                return value[own] if len(value) == count else value
            return type(value)(value[row] for row in own)

        return _mapped(batch, take, count, "batch")

    return Divided([part(own) for own in rows], whole)


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


def _by_loader(batch: Any, loaders: TreeSpec) -> list[Any] | None:
    """What each loader gave; ``None`` where the module has made something else of it."""
    try:
        return list(loaders.flatten_up_to(batch))
    except ValueError:
        return None


def _others(batch: Any, count: int) -> list[str]:
    """The tensors with several rows that are not those of samples.

    Raises:
        UndividedError: They are not fewer than the others.
    """
    found: dict[str, int] = {}

    def note(path: str, value: Any) -> Any:
        found[path] = len(value)
        return value

    _mapped(batch, note, count, "batch")
    others = [path for path, rows in found.items() if rows not in (1, count)]
    if 2 * len(others) >= len(found):
        sizes = ", ".join(map(str, collections.Counter(found.values())))
        error = UndividedError(f"its tensors have {sizes} rows, so that it is not known which of them are samples")
        error.unknown = True
        raise error
    return others


def _mapped(value: Any, leaf: Leaf, count: int, path: str) -> Any:
    """A copy of a batch in which tensors, arrays and lists of samples are what a function makes of path and value."""
    if isinstance(value, (Tensor, np.ndarray)):
        return leaf(path, value) if value.ndim else value
    if path != "batch" and (lists_samples(value, count) or _lists_labels(value, count)):
        return leaf(path, value)
    if isinstance(value, Mapping):
        parts = {key: _mapped(inner, leaf, count, f"{path}[{key!r}]") for key, inner in value.items()}
        return _like(value, parts) if isinstance(value, MutableMapping) else parts
    if isinstance(value, (list, tuple)):
        entries = [_mapped(inner, leaf, count, f"{path}[{place}]") for place, inner in enumerate(value)]
        return type(value)(*entries) if hasattr(value, "_fields") else type(value)(entries)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        made = copy.copy(value)
        for field in dataclasses.fields(value):
            inner = getattr(value, field.name)
            object.__setattr__(made, field.name, _mapped(inner, leaf, count, f"{path}.{field.name}"))
        return made
    return value


def _lists_labels(value: Any, count: int) -> bool:
    """Whether a value has a number for each sample; a short tuple of numbers may also be a size."""
    if type(value) not in (list, tuple) or len(value) != count or not all(isinstance(e, (int, float)) for e in value):
        return False
    return type(value) is list or count > MOST_SETTINGS


def _like(value: MutableMapping[Any, Any], parts: dict[Any, Any]) -> Any:
    """A mapping of the same kind, such as a batch of tokens with methods of its own."""
    made = copy.copy(value)
    for key, part in parts.items():
        made[key] = part
    return made
