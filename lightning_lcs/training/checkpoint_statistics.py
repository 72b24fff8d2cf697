"""Batch-norm statistics of checkpoints that were written without them during training, added when it ends."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_lcs.io.checkpoint import CHECKPOINT_KEY, from_data, to_data
from lightning_lcs.model import SubspaceModel
from lightning_lcs.subspace.state import LevelTensors, SubspaceState
from lightning_lcs.training.user_code.isolation import averages_weights
from lightning_lcs.utils.warning import warn

INCOMPLETE = (
    "{path} stays without the batch-norm statistics of its levels: {reason}. recalibrate() with training images "
    "collects them once it is opened, and Recalibration(every_checkpoint=True) collects them whenever a checkpoint is "
    "written"
)


Known = dict[str, tuple[LevelTensors, dict[str, Tensor]]]
"""Statistics of levels, and the running statistics and other buffers of the module, by the fingerprint of weights."""


def may_wait(trainer: Trainer, path: Any) -> bool:
    """Whether the statistics of a checkpoint that is being written can be added when training ends.

    They can for the files of the trainer's checkpoint callbacks. Others may be read at once, and some writers write
    later than they are asked to.

    Args:
        trainer: The trainer that writes the file.
        path: The path of the file; ``None`` if it is not known.
    """
    if path is None or any(
        kind.__name__ == "AsyncCheckpointIO" for kind in type(trainer.strategy.checkpoint_io).__mro__
    ):
        return False
    folders = [getattr(callback, "dirpath", None) for callback in trainer.checkpoint_callbacks]
    return os.path.dirname(os.path.abspath(path)) in {os.path.abspath(folder) for folder in folders if folder}


def add_statistics(
    trainer: Trainer, module: LightningModule, model: SubspaceModel, collect: Callable[[], None], complete: bool
) -> None:
    """Add statistics to the best and the last file of each checkpoint callback, where they lack them.

    The weights of each file are put into the module while its statistics are collected. A file that can't be read,
    written, or put into the module stays as it is, with a warning.

    Args:
        trainer: Its checkpoint callbacks know the files.
        module: The module that was trained.
        model: Its subspace model; its statistics are afterwards what they were.
        collect: Collects statistics of the present weights into the model.
        complete: Whether the model holds statistics of all levels, of its present weights.
    """
    found: dict[str, None] = {}
    for callback in trainer.checkpoint_callbacks:
        named = (getattr(callback, name, "") for name in ("best_model_path", "last_model_path"))
        found |= dict.fromkeys(os.path.realpath(path) if os.path.exists(path) else str(path) for path in named if path)
    paths = trainer.strategy.broadcast(list(found))  # other ranks may not see the files
    known: Known = {}
    # Of averages, the running statistics in a file may be those of other weights: they are collected anew, too.
    if complete and not any(map(averages_weights, trainer.callbacks)):  # type: ignore[attr-defined]
        known[model.runner.statistics_weights] = model.statistics, {}
    for path in paths:
        reason = _add_to_file(trainer, module, model, collect, path, known)
        if reason:
            warn(INCOMPLETE.format(path=path, reason=reason))


def _add_to_file(
    trainer: Trainer,
    module: LightningModule,
    model: SubspaceModel,
    collect: Callable[[], None],
    path: str,
    known: Known,
) -> str:
    """Add statistics to one file where it lacks them; the reason why this is not possible, or an empty text.

    What is ``known`` serves all files of equal weights.
    """
    checkpoint, reason = _read(trainer, path) if trainer.is_global_zero else ({}, "")
    # All ranks collect, also where they do not see the file.
    parts = {key: checkpoint[key] for key in ("state_dict", CHECKPOINT_KEY) if key in checkpoint}
    parts, reason = trainer.strategy.broadcast((parts, reason))
    data = parts.get(CHECKPOINT_KEY)
    if reason or data is None or data["statistics"]:
        return str(reason)
    state, weights = from_data(data), parts["state_dict"]
    tensors = _pairs(module, model, weights, state)
    if tensors is None:
        return "it does not hold all weights of the network"
    with _statistics_set_back(model), _exchanged(tensors):
        model.runner.forget()
        model.runner.ranges = state.ranges
        present = model.runner.fingerprint()
        if present not in known:
            collect()
            buffers = {name: value.detach().cpu().clone() for name, value in module.named_buffers() if name in weights}
            known[present] = model.statistics, buffers
        statistics, buffers = known[present]
        state = dataclasses.replace(state, statistics=statistics, statistics_weights=present)
    checkpoint |= {
        "state_dict": weights | buffers,
        CHECKPOINT_KEY: {**data, **to_data(state), "targets": data["targets"]},
    }
    return str(trainer.strategy.broadcast(_write(trainer, path, checkpoint) if trainer.is_global_zero else ""))


def _read(trainer: Trainer, path: str) -> tuple[dict[str, Any], str]:
    """A checkpoint, and the reason why it can't be read; an empty one if there is no such file."""
    reader = trainer.strategy.checkpoint_io.load_checkpoint
    try:
        try:
            # The file was written by this run, and may hold hyperparameters of any type.
            return dict(reader(path, weights_only=False)), ""
        except TypeError:  # Lightning before 2.6, and older plug-ins
            return dict(reader(path)), ""
    except FileNotFoundError:
        return {}, ""  # someone took the file away
    except Exception as error:  # whatever a plug-in or a file system raises: the run is complete without
        return {}, f"reading it failed with {type(error).__name__}: {error}"


def _write(trainer: Trainer, path: str, checkpoint: dict[str, Any]) -> str:
    """Write a checkpoint; the reason why this failed, or an empty text."""
    try:
        trainer.strategy.checkpoint_io.save_checkpoint(checkpoint, path)
    except Exception as error:  # as above
        return f"writing it failed with {type(error).__name__}: {error}"
    return ""


def _pairs(
    module: LightningModule, model: SubspaceModel, weights: Mapping[str, Any], state: SubspaceState
) -> list[tuple[Tensor, Tensor]] | None:
    """Tensors of a module and those of a file that belong there; ``None`` if the file lacks parameters of networks."""
    own = {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}
    pairs = [(value, weights[name]) for name, value in own.items() if isinstance(weights.get(name), Tensor)]
    for part in model.parts:
        pairs += [
            (w0, state.endpoint_0[part.prefix + name])
            for name, w0 in part.endpoints.items()
            if part.prefix + name in state.endpoint_0
        ]
    found = {(value.data_ptr(), value.shape) for value, _ in pairs}
    # Weights that a module leaves out of its files on purpose, such as those of a frozen backbone, are as they were.
    strict = getattr(module, "strict_loading", True)
    complete = all(
        (weight.data_ptr(), weight.shape) in found or not (strict or weight.requires_grad)
        for weight in model.runner.weights()
    )
    fitting = all(value.shape == other.shape for value, other in pairs)
    return pairs if complete and fitting else None


@contextlib.contextmanager
def _statistics_set_back(model: SubspaceModel) -> Iterator[None]:
    """After the block, a model has the statistics and ranges that it had before."""
    before = model.runner.statistics, model.runner.statistics_weights
    ranges = model.runner.ranges
    try:
        yield
    finally:
        model.runner.ranges = ranges
        model.runner.set_statistics(*before)
        model.runner.forget()


@contextlib.contextmanager
@torch.no_grad()
def _exchanged(pairs: list[tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Inside the block, tensors hold the values of others."""
    before = [value.detach().clone() for value, _ in pairs]
    try:
        for value, other in pairs:
            value.copy_(other)
        yield
    finally:
        for (value, _), kept in zip(pairs, before, strict=True):
            value.copy_(kept)
