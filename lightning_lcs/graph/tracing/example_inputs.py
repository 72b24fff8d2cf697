"""The arguments of a call: a small sample for later traces and measurements, and their shapes as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


# A short list of numbers may be a size or a padding; a longer one, as long as the batch, has a number for each sample.
MOST_SETTINGS = 4


def samples_in(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int | None:
    """Number of samples in the arguments: the length of the first tensor, or of a list of images.

    The arguments themselves are looked at before what is inside of them, where targets have tensors of other lengths.

    Args:
        args: Arguments.
        kwargs: Keyword arguments.

    Returns:
        The number, or ``None`` if the arguments hold no tensor.
    """
    values: list[Any] = [*args, *kwargs.values()]
    while values:
        for value in values:
            if are_images(value):
                return len(value)
            if isinstance(value, Tensor) and value.ndim:
                return value.shape[0]
        values = [inner for value in values for inner in _inside(value)]
    return None


def _inside(value: Any) -> list[Any]:
    inner: list[Any] = pytree.tree_leaves(value, is_leaf=lambda found: found is not value)
    return [found for found in inner if found is not value]


def are_images(value: Any) -> bool:
    """Whether a value is a list of images of any sizes, such as torchvision's detectors take.

    Images are recognized by their one or three channels, since a list of batches (of tokens, or of sounds) may also
    have tensors with three dimensions.
    """
    images = value if isinstance(value, (list, tuple)) else ()
    return bool(images) and all(isinstance(i, Tensor) and i.ndim == 3 and i.shape[0] in (1, 3) for i in images)


def lists_samples(value: Any, batch: int | None) -> bool:
    """Whether a value is a list with an entry for each sample, such as a detector's targets, a mapping per image.

    Args:
        value: A value.
        batch: The number of samples; ``None`` if it is not known.
    """
    if type(value) not in (list, tuple) or len(value) != batch:
        return False
    if all(isinstance(entry, Tensor) for entry in value):
        # Tensors that all have a batch are maps of several sizes; a mixture is an argument made of several.
        batches = all(entry.ndim and entry.shape[0] == batch for entry in value)
        return are_images(value) or (not batches and len({entry.ndim for entry in value}) == 1)
    if all(entry is None or isinstance(entry, (bool, int, float)) for entry in value):
        return type(value) is list and len(value) > MOST_SETTINGS
    return len({type(entry) for entry in value}) == 1


def sample(args: tuple[Any, ...], kwargs: dict[str, Any], samples: int = 2) -> Arguments:
    """The arguments with another number of samples; samples are repeated if there are fewer.

    Two samples are enough to trace the network. With one, batch norms refuse to train on maps of a single pixel. Cut
    are tensors that are as long as the batch, and lists that have an entry for each sample.

    Args:
        args: Arguments.
        kwargs: Keyword arguments.
        samples: Number of samples. The default is 2.

    Returns:
        Arguments and keyword arguments, whose tensors are copies.
    """
    batch = samples_in(args, kwargs)
    rows = [row % max(batch or 1, 1) for row in range(samples)]

    def listed(value: Any) -> bool:
        return lists_samples(value, batch)

    def few(value: Any) -> Any:
        if listed(value):
            return type(value)(pytree.tree_map(_copy, [value[row] for row in rows]))
        if isinstance(value, Tensor) and value.ndim and value.shape[0] == batch:
            return value.detach()[torch.tensor(rows, device=value.device)].clone()
        return _copy(value)

    with torch.inference_mode(False):
        cut = [pytree.tree_map(few, value, is_leaf=listed) for value in (*args, *kwargs.values())]
    return tuple(cut[: len(args)]), dict(zip(kwargs, cut[len(args) :], strict=True))


def _copy(leaf: Any) -> Any:
    return leaf.detach().clone() if isinstance(leaf, Tensor) else leaf


def with_noise(arguments: Arguments) -> Arguments:
    """The arguments with noise in place of floating-point tensors; the noise is the same at every call."""
    generator = torch.Generator().manual_seed(0)

    def noise(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
            return leaf
        return torch.randn(leaf.shape, generator=generator).to(leaf)

    args, kwargs = pytree.tree_map(noise, arguments)
    return args, kwargs


def resized(arguments: Arguments, sizes: Mapping[int, Sequence[int | None]]) -> Arguments:
    """Arguments whose tensors are cropped, or extended with copies of themselves.

    Args:
        arguments: Arguments and keyword arguments, without tensors of size 0.
        sizes: New sizes of a tensor, by its position among the flattened arguments. A size of ``None`` stays.
    """
    leaves, spec = pytree.tree_flatten(arguments)
    for place, shape in sizes.items():
        for axis, size in enumerate(shape):
            leaf = leaves[place]
            if size is not None and size != leaf.shape[axis]:
                leaves[place] = torch.cat([leaf] * -(-size // leaf.shape[axis]), axis).narrow(axis, 0, size)
    args, kwargs = pytree.tree_unflatten(leaves, spec)
    return args, kwargs


def to_data(arguments: Arguments | None) -> Any:
    """The arguments as plain data for a checkpoint: shapes and dtypes of the tensors, but none of their values.

    Args:
        arguments: Arguments and keyword arguments. All that is not a tensor is kept as it is.

    Returns:
        The data, or ``None`` if there are no arguments, or some are not plain data.
    """
    try:
        return None if arguments is None else _to_data(list(arguments))
    except TypeError:
        return None


def from_data(data: Any) -> Arguments | None:
    """Arguments of the shapes and dtypes in plain data, with noise for floating-point tensors and zeros for others.

    Args:
        data: What :func:`to_data` returned.
    """
    if data is None:
        return None
    args, kwargs = _from_data(data, torch.Generator().manual_seed(0))
    return args, kwargs


def _to_data(value: Any) -> Any:
    if isinstance(value, Tensor):
        return {"shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
    if type(value) in (tuple, list):
        return {type(value).__name__: [_to_data(entry) for entry in value]}
    if type(value) is dict and all(isinstance(key, str) for key in value):
        return {"dict": {key: _to_data(entry) for key, entry in value.items()}}
    if value is None or type(value) in (bool, int, float, str):
        return {"value": value}
    raise TypeError(type(value).__name__)


def _from_data(data: Mapping[str, Any], generator: torch.Generator) -> Any:
    if "shape" in data:
        dtype = getattr(torch, data["dtype"])
        if dtype.is_floating_point:
            return torch.randn(data["shape"], generator=generator).to(dtype)
        return torch.zeros(data["shape"], dtype=dtype)
    ((kind, content),) = data.items()
    if kind == "dict":
        return {key: _from_data(entry, generator) for key, entry in content.items()}
    if kind == "value":
        return content
    entries = [_from_data(entry, generator) for entry in content]
    return tuple(entries) if kind == "tuple" else entries
