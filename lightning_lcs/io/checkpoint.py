"""The subspace in a Lightning checkpoint: plain data and tensors beside the user's own ``state_dict``."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_lcs.graph.tracing import example_inputs
from lightning_lcs.subspace.modes.registry import parse_mode
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
        mode=parse_mode(data["mode"]),
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
    )


def read(path: str | os.PathLike[str]) -> tuple[SubspaceState, dict[str, Tensor]]:
    """Read a Lightning checkpoint, with ``weights_only=True``.

    Returns:
        The state of its subspace, and the ``state_dict`` of the LightningModule.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not a checkpoint of a subspace, or it is damaged.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
        raise ValueError(f"{os.fspath(path)} is not a checkpoint, or it is damaged: {error}") from error
    if not isinstance(content, Mapping) or CHECKPOINT_KEY not in content:
        raise ValueError(f"{os.fspath(path)} holds no compressible subspace: it was not trained with LCSCallback")
    return from_data(content[CHECKPOINT_KEY]), dict(content["state_dict"])


def _levels_to_data(levels: LevelTensors) -> list[dict[str, Any]]:
    """Tensors by level for a file, without numbers as keys."""
    return [
        {"alpha": alpha, "tensors": {name: value.clone() for name, value in tensors.items()}}
        for alpha, tensors in levels.items()
    ]


def _levels_from_data(data: Sequence[Mapping[str, Any]]) -> LevelTensors:
    return {float(level["alpha"]): dict(level["tensors"]) for level in data}
