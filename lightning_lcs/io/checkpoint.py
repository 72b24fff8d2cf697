"""The subspace in a Lightning checkpoint: plain data and tensors beside the user's own ``state_dict``."""

from __future__ import annotations

import contextlib
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from lightning_lcs.graph.tracing import example_inputs
from lightning_lcs.subspace.modes.registry import saved_mode
from lightning_lcs.subspace.state import LevelTensors, SubspaceState

CHECKPOINT_KEY = "lightning_lcs"
VERSION = 1


def to_data(state: SubspaceState) -> dict[str, Any]:
    """Plain data and tensors for a checkpoint, which :func:`from_data` reads back."""
    return {
        "version": VERSION,
        **state.settings(),
        "targets": state.targets,
        "shapes": state.shapes,
        "endpoint_0": {name: value.detach().clone() for name, value in state.endpoint_0.items()},
        "statistics": _levels_to_data(state.statistics),
        "statistics_weights": state.statistics_weights,
        "ranges": _levels_to_data(state.ranges),
        "inputs": [example_inputs.to_data(arguments) for arguments in state.inputs],
        "rows": state.rows,
        "frozen": state.frozen,
    }


def from_data(data: Mapping[str, Any]) -> SubspaceState:
    """A state from the result of :func:`to_data`.

    Raises:
        ValueError: The data are of another version, or incomplete.
    """
    if data.get("version") != VERSION:
        raise ValueError(
            f"the subspace was written in format {data.get('version')!r}, and this lightning-lcs reads {VERSION}; "
            "install the version that wrote it"
        )
    keys = ("mode", "subspace", "line_parameters", "norm", "targets", "shapes", "endpoint_0", "statistics", "ranges")
    missing = [key for key in keys if key not in data]
    if missing:
        raise ValueError(f"the subspace in the checkpoint is incomplete: it lacks {', '.join(missing)}")
    return SubspaceState(
        mode=saved_mode(data["mode"]),
        subspace=data["subspace"],
        line_parameters=data["line_parameters"],
        norm=data["norm"],
        targets=list(data["targets"]),
        shapes=dict(data["shapes"]),
        endpoint_0=dict(data["endpoint_0"]),
        statistics=_levels_from_data(data["statistics"]),
        ranges=_levels_from_data(data["ranges"]),
        inputs=[example_inputs.from_data(arguments) for arguments in data.get("inputs", ())],
        statistics_weights=str(data.get("statistics_weights", "")),
        rows=[float(rows) for rows in data.get("rows", ())],
        frozen=list(data.get("frozen", ())),
    )


def read(path: str | os.PathLike[str], weights_only: bool = True) -> tuple[SubspaceState, dict[str, Tensor]]:
    """Read a Lightning checkpoint.

    Args:
        path: The path of the file.
        weights_only: Whether to read tensors and plain data alone, and no object of another type, such as a path or a
            function among the hyperparameters, whose pickle may run code. The default is true.

    Returns:
        The state of its subspace, and the ``state_dict`` of the LightningModule.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not a checkpoint of a subspace, it is damaged, or it needs objects of other types.
    """
    try:
        content = _tensors(path) if weights_only else torch.load(path, map_location="cpu", weights_only=False)
    except FileNotFoundError:
        raise
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
        raise ValueError(f"{os.fspath(path)} is not a checkpoint, or it is damaged: {error}") from error
    if not isinstance(content, Mapping) or CHECKPOINT_KEY not in content:
        raise ValueError(f"{os.fspath(path)} holds no compressible subspace: it was not trained with LCSCallback")
    for key in (CHECKPOINT_KEY, "state_dict"):
        leaves = pytree.tree_leaves(content[key], is_leaf=_is_left_out)
        if any(map(_is_left_out, leaves)):
            raise ValueError(f"{key!r} in {os.fspath(path)} holds objects that are no tensors or plain data; {TRUSTED}")
    return from_data(content[CHECKPOINT_KEY]), dict(content["state_dict"])


TRUSTED = "if you trust the file, read them with from_checkpoint(..., weights_only=False), as Lightning does"


class LeftOut(list[Any]):
    """Stands for an object of another type in a checkpoint that is read without it: it takes everything, does nothing.

    It is a list, because the objects of some types are filled as lists are.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        pass


class LeftOutMapping(LeftOut):
    """The same for objects of types that are filled as dictionaries are, which torch allows for its own types alone."""

    def __new__(cls, *args: Any, **kwargs: Any) -> OrderedDict[Any, Any]:  # type: ignore[misc]
        """An empty mapping of a kind that takes entries and attributes."""
        made: OrderedDict[Any, Any] = OrderedDict()
        made.left_out = True  # type: ignore[attr-defined]
        return made


def _tensors(path: str | os.PathLike[str]) -> Any:
    """The content of a checkpoint, in which objects that are no tensors or plain data are left out."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not zipfile.is_zipfile(path):
            raise
        others, reason = get_unsafe_globals_in_checkpoint(path), error
    for base in (LeftOut, LeftOutMapping):
        # Torch's own reader finds these classes under the names of those that it refuses.
        stand_ins: list[Any] = [(type("LeftOut", (base,), {}), name) for name in others]
        with contextlib.suppress(*_UNREADABLE), safe_globals(stand_ins):
            return torch.load(path, map_location="cpu", weights_only=True)
    raise ValueError(
        f"{os.fspath(path)} is sound, but some of its objects can't be left out: those of the types "
        f"{', '.join(sorted(others))}, which may be hyperparameters (save_hyperparameters(ignore=[...]) leaves one out "
        f"of later files); {TRUSTED}"
    ) from reason


# What an object raises that a stand-in can't stand for.
_UNREADABLE = (pickle.UnpicklingError, TypeError, ValueError, AttributeError)


def _is_left_out(leaf: Any) -> bool:
    is_stand_in = isinstance(leaf, LeftOut) or hasattr(leaf, "left_out")
    return is_stand_in or (isinstance(leaf, type) and issubclass(leaf, LeftOut))


def _levels_to_data(levels: LevelTensors) -> list[dict[str, Any]]:
    """Tensors by level for a file, without numbers as keys."""
    return [
        {"alpha": alpha, "tensors": {name: value.clone() for name, value in tensors.items()}}
        for alpha, tensors in levels.items()
    ]


def _levels_from_data(data: Sequence[Mapping[str, Any]]) -> LevelTensors:
    return {float(level["alpha"]): dict(level["tensors"]) for level in data}
