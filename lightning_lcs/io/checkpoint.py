"""The subspace in a Lightning checkpoint: plain data and tensors beside the user's own ``state_dict``."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lightning_lcs.graph.tracing import example_inputs
from lightning_lcs.subspace import endpoints
from lightning_lcs.subspace.line import Line
from lightning_lcs.subspace.modes.registry import mode_to_dict, parse_mode
from lightning_lcs.subspace.norms import state_without_statistics

if TYPE_CHECKING:
    from lightning_lcs.model import SubspaceModel

CHECKPOINT_KEY = "lightning_lcs"
VERSION = 1


def state_of(model: SubspaceModel) -> dict[str, Any]:
    """See :meth:`SubspaceModel.subspace_state`."""
    return {
        "version": VERSION,
        "mode": mode_to_dict(model.mode),
        "subspace": model.subspace,
        "line_parameters": model.line.parameters,
        "norm": model.norm,
        "targets": [part.name for part in model.parts],
        "shapes": _shapes(model),
        "endpoint_0": {
            part.prefix + name: value.detach().clone() for part in model.parts for name, value in part.endpoints.items()
        },
        "statistics": _levels_to_data(model.statistics),
        "ranges": _levels_to_data(model.ranges),
        "inputs": [example_inputs.to_data(part.network.example) for part in model.parts],
    }


def check_state(model: SubspaceModel, state: Mapping[str, Any]) -> None:
    """Raise unless a state fits a model.

    Raises:
        ValueError: another version, mode, subspace, architecture or line.
    """
    check_version(state)
    mine = state_of(model)
    missing = [key for key in mine if key not in state and key != "inputs"]  # files of before lack these
    if missing:
        raise ValueError(f"the subspace in the checkpoint is incomplete: it lacks {', '.join(missing)}")
    for key in ("mode", "subspace", "line_parameters", "norm"):
        # An older file lacks options that are younger: it has their defaults.
        theirs = mode_to_dict(parse_mode(state[key])) if key == "mode" else state[key]
        if mine[key] != theirs and not (key == "line_parameters" and model.subspace == "point"):
            option = key.replace("line_parameters", "line.parameters")
            raise ValueError(
                f"the checkpoint holds {option}={state[key]!r}, and this model was built with {option}={mine[key]!r}; "
                "build it as it was trained"
            )
    if mine["shapes"] != dict(state["shapes"]):
        raise ValueError(f"the checkpoint is of another architecture: {_difference(mine['shapes'], state['shapes'])}")
    here, there = ({k: list(v.shape) for k, v in s["endpoint_0"].items()} for s in (mine, state))
    if here != there:
        raise ValueError(f"the checkpoint lies on another line: {_difference(here, there)}")


def load_state(model: SubspaceModel, state: Mapping[str, Any]) -> None:
    """See :meth:`SubspaceModel.load_subspace_state`."""
    check_state(model, state)
    with torch.no_grad():
        for part in model.parts:
            for name, endpoint in part.endpoints.items():
                endpoint.copy_(state["endpoint_0"][part.prefix + name])
            endpoints.settle(part.network.module)
    model.settled = True
    model.statistics, model.ranges = (_levels_from_data(state[key]) for key in ("statistics", "ranges"))
    for part, inputs in zip(model.parts, state.get("inputs", ()), strict=False):
        arguments = example_inputs.from_data(inputs)
        if arguments is not None:
            part.network.remember(*arguments)


def _levels_to_data(levels: Mapping[float, Mapping[str, Tensor]]) -> list[dict[str, Any]]:
    """By level, for a file: no numbers as keys."""
    return [
        {"alpha": alpha, "tensors": {name: value.clone() for name, value in tensors.items()}}
        for alpha, tensors in levels.items()
    ]


def _levels_from_data(data: Sequence[Mapping[str, Any]]) -> dict[float, dict[str, Tensor]]:
    return {float(level["alpha"]): dict(level["tensors"]) for level in data}


def open_checkpoint(cls: type[SubspaceModel], checkpoint: str | os.PathLike[str], module: nn.Module) -> SubspaceModel:
    """See :meth:`SubspaceModel.from_checkpoint`."""
    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
        raise ValueError(f"{os.fspath(checkpoint)} is no checkpoint, or it is damaged: {error}") from error
    if not isinstance(content, Mapping) or CHECKPOINT_KEY not in content:
        raise ValueError(f"{os.fspath(checkpoint)} holds no compressible subspace: it was not trained with LCSCallback")
    state, weights = content[CHECKPOINT_KEY], content["state_dict"]
    check_version(state)
    targets = list(state["targets"])
    prefix = f"{targets[0]}." if targets[0] else ""
    own = set(module.state_dict()) if state["norm"] == "keep" else state_without_statistics(module)
    if len(targets) == 1 and own != set(weights):
        # Not the LightningModule, so its network: the weights lie under the name of the target.
        weights = {name[len(prefix) :]: value for name, value in weights.items() if name.startswith(prefix)}
        parts: nn.Module | dict[str, nn.Module] = module
    elif len(targets) == 1:
        parts = module.get_submodule(targets[0])
    else:
        parts = {name: module.get_submodule(name) for name in targets}
    mine: dict[str, Tensor] = module.state_dict()
    own = set(mine) if state["norm"] == "keep" else state_without_statistics(module)
    shapes = {name: list(value.shape) for name, value in mine.items() if name in own}
    theirs = {name: list(value.shape) for name, value in weights.items()}
    if shapes != theirs:
        raise ValueError(f"{os.fspath(checkpoint)} is of another architecture: {_difference(shapes, theirs)}")
    trained = endpoints.is_settled(module)
    options = {key: state[key] for key in ("mode", "subspace", "norm")}
    model = cls(parts, **options, line=Line(parameters=state["line_parameters"]))
    try:
        check_state(model, state)
    except ValueError:
        if not trained:
            endpoints.detach(module)
        raise
    module.load_state_dict(weights)
    load_state(model, state)
    return model.eval()


def check_version(state: Mapping[str, Any]) -> None:
    """Refuse what another version wrote.

    Raises:
        ValueError: with the two versions.
    """
    if state.get("version") != VERSION:
        raise ValueError(
            f"the subspace was written in format {state.get('version')!r}, and this lightning-lcs reads {VERSION}; "
            "install the version that wrote it"
        )


def _shapes(model: SubspaceModel) -> dict[str, list[int]]:
    return {
        part.prefix + name: list(parameter.shape)
        for part in model.parts
        for name, parameter in endpoints.user_parameters(part.network.module)
    }


def _difference(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    name = next(name for name in (*mine, *theirs) if mine.get(name) != theirs.get(name))
    return f"{name} has shape {mine.get(name)} here and {theirs.get(name)} in the checkpoint"
