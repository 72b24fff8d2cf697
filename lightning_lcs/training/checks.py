"""Settings that do not work together, refused before training with the reason."""

from __future__ import annotations

import dataclasses
import inspect
import math
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

from lightning_lcs.model import SubspaceModel
from lightning_lcs.subspace.mode import Mode
from lightning_lcs.subspace.weights.line import Line
from lightning_lcs.training.options import Distillation, Loss, Sampling
from lightning_lcs.utils.options import did_you_mean
from lightning_lcs.utils.warning import warn

# Classes are compared by name, because users import them from either of Lightning's two namespaces.
_STRATEGIES = {
    "FSDPStrategy": "shards parameters, and a level is cut from whole ones",
    "DeepSpeedStrategy": "clears gradients itself, where those of several levels have to be kept",
    "ModelParallelStrategy": "shards parameters, and a level is cut from whole ones",
}
_CALLBACKS = {
    "ModelPruning": "makes its own weights out of masks in every forward, from which no level can be cut",
}


def check_setup(trainer: Trainer, module: LightningModule) -> None:
    """Refuse settings that can't be trained with several levels per step.

    Raises:
        ValueError: With the reason, and what to do.
    """
    if "dataloader_iter" in inspect.signature(module.training_step).parameters:
        raise ValueError(
            f"{type(module).__name__}.training_step takes dataloader_iter, and each level would take other batches "
            "from it: take (batch, batch_idx) with LCSCallback"
        )
    for strategy in _names(trainer.strategy) & set(_STRATEGIES):
        raise ValueError(f"{strategy} {_STRATEGIES[strategy]}: use strategy='ddp' or a single device with LCSCallback")
    if getattr(trainer.strategy, "_ddp_kwargs", {}).get("static_graph"):
        raise ValueError(
            "static_graph=True counts gradients in the first step, and a step over several levels makes more of them: "
            "leave it out with LCSCallback"
        )
    if getattr(trainer.strategy, "_layer_sync", None) is not None:
        raise ValueError(
            "sync_batchnorm=True replaces the batch norms after their second endpoints were made: leave it out with "
            "LCSCallback, which averages the levels' statistics over ranks"
        )
    for other in trainer.callbacks:  # type: ignore[attr-defined]
        for name in _names(other) & set(_CALLBACKS):
            kind = type(other).__name__
            raise ValueError(f"{kind} {_CALLBACKS[name]}: take it out of the trainer, or train without LCSCallback")


def check_manual(module: LightningModule, sampling: Sampling, loss: Loss, line: Line) -> None:
    """Refuse options of a training step where the step itself combines its losses.

    Raises:
        ValueError: The module uses manual optimization, and an option can't be applied to its steps.
    """
    options = {
        "sampling=Sampling(split=...)": sampling.split is not False,
        "loss=Loss(distillation=...)": loss.distillation is not None,
        "loss=Loss(scale_penalty=...)": loss.scale_penalty != 0.0,
        "line=Line(diversity_weight=...)": line.diversity_weight != 0.0,
    }
    given = [option for option, is_given in options.items() if is_given]
    if given and not module.automatic_optimization:
        raise ValueError(
            f"{type(module).__name__} uses manual optimization, whose training_step adds up the losses of its levels "
            f"itself: leave {' and '.join(given)} out, and do the same in the step"
        )


def check_teacher(teacher: torch.nn.Module | None, model: SubspaceModel) -> None:
    """Refuse a teacher for distillation that is the network itself or a part of it.

    Raises:
        ValueError: They share parameters.
    """
    own = {id(weight) for weight in model.runner.weights()}
    if teacher is not None and any(id(parameter) in own for parameter in teacher.parameters()):
        raise ValueError(
            "Distillation(teacher=...) is the network that is trained: leave teacher out, and the full width teaches, "
            "or give a copy (copy.deepcopy), which does not change"
        )


def check_features(options: Distillation, model: SubspaceModel) -> None:
    """Refuse features of modules that are not there.

    Raises:
        ValueError: A module is in none of the networks, or not in the teacher.
    """
    teacher = [] if options.teacher is None else [options.teacher]
    networks = [part.network.module for part in model.parts]
    pairs = options.module_pairs
    for whose, paths, among in (("the network", pairs, networks), ("the teacher", pairs.values(), teacher)):
        # The whole network is compared by a function of its output.
        there = {path for network in among for path, _ in network.named_modules() if path}
        for path in paths if among else ():
            if path not in there:
                name = " or ".join(type(network).__name__ for network in among)
                raise ValueError(
                    f"Distillation(modules=...) names {path!r}, which {whose}, {name}, does not have"
                    f"{did_you_mean(path, there)}; give the paths of modules within it, such as "
                    f"{min(there, default='')!r}"
                )


def warn_of_old_namespace() -> None:
    """Warn that an imported ``pytorch_lightning`` below 2.0 can't run the callbacks of this package.

    Its trainer stops in its constructor with "Expected a parent", before any hook of a callback could explain it. It
    may have been imported for the data modules of lightning-bolts only, so that this is not an error.
    """
    old = getattr(sys.modules.get("pytorch_lightning"), "__version__", "2")
    if old.partition(".")[0] in ("0", "1"):
        warn(
            f"pytorch_lightning {old} is imported, whose Trainer can't run callbacks of lightning-lcs (below 2.0 it "
            'stops with "Expected a parent"): use lightning.pytorch.Trainer'
        )


def agreed(own: Any, given: Any, kind: str, options: Mapping[str, str]) -> Any:
    """The work of the trainer's own callback where it has one, else that of ``LCSCallback``.

    Args:
        own: Made from the options of ``LCSCallback``.
        given: The work of the trainer's callback, or ``None``.
        kind: The class name of that callback.
        options: The attribute of both -> the name of the option of ``LCSCallback``.

    Raises:
        ValueError: An option of ``LCSCallback`` that is not at its default differs from that of the trainer's callback.
    """
    if given is None:
        return own
    default = type(given)()
    for attribute, option in options.items():
        mine, theirs = getattr(own, attribute), getattr(given, attribute)
        if mine not in (theirs, getattr(default, attribute)):
            raise ValueError(f"LCSCallback has {option}={mine!r} and {kind} {attribute}={theirs!r}: give one of them")
    return given


def only_callback(trainer: Trainer, kind: type[Any]) -> Any:
    """The trainer's callback of a kind, if it has one.

    Raises:
        ValueError: It has several.
    """
    found = [callback for callback in trainer.callbacks if isinstance(callback, kind)]  # type: ignore[attr-defined]
    if len(found) > 1:
        raise ValueError(f"the trainer has {len(found)} callbacks of kind {kind.__name__}: give it one")
    return found[0] if found else None


def check_model(model: SubspaceModel, mode: Mode, subspace: str | None, line: Line, norm: str) -> None:
    """Check that a module's own subspace model agrees with the options that ``LCSCallback`` was given.

    Options at their default were not asked for, so that the model's own choice holds; the mode is always compared.

    Raises:
        ValueError: They differ.
    """
    mine: dict[str, Any] = {"mode": mode, "norm": norm}
    theirs: dict[str, Any] = {"mode": model.mode, "norm": model.norm}
    unasked: dict[str, Any] = {"norm": "keep"}
    if subspace is not None:
        mine["subspace"], theirs["subspace"] = subspace, model.subspace
    for field in dataclasses.fields(Line):
        name = f"line.{field.name}"
        mine[name], theirs[name] = getattr(line, field.name), getattr(model.line, field.name)
        unasked[name] = field.default
    if model.line.diversity_weight == 0.0:
        del mine["line.diversity_weight"]  # a term of the training step, which the callback may add to any line
    for name, value in mine.items():
        if value != theirs[name] and not (name in unasked and value == unasked[name]):
            raise ValueError(
                f"LCSCallback has {name}={value!r} and the module's SubspaceModel {name}={theirs[name]!r}: give both "
                "the same"
            )


def check_monitors(trainer: Trainer, every_n_epochs: int | None) -> None:
    """Refuse callbacks that monitor a value of the curve before a curve is measured.

    Args:
        trainer: Its callbacks are checked; its training data is set up.
        every_n_epochs: The number of epochs between two curves; ``None`` for one at the end.

    Raises:
        ValueError: A callback or a scheduler would look for the value before the first curve.
    """
    steps = -(-trainer.num_training_batches // trainer.accumulate_grad_batches)
    now, last = trainer.current_epoch, math.inf
    if trainer.max_epochs not in (None, -1):
        last = float(trainer.max_epochs or 0)
    if trainer.max_steps != -1 and steps > 0:
        last = min(last, now + math.ceil((trainer.max_steps - trainer.global_step) / steps))
    measured = last if every_n_epochs is None else min(last, _next(now, every_n_epochs))
    for name, monitor, every in _monitors(trainer):
        if _is_of_curve(monitor) and monitor not in trainer.callback_metrics and _next(now, every) < measured:
            when = "at the last validation only" if every_n_epochs is None else f"every {every_n_epochs} epochs"
            raise ValueError(
                f"{name} monitors {monitor!r} from epoch {_next(now, every)} on, and LCSCallback measures the curve "
                f"{when}: set LCSCallback(every_n_epochs={every})"
            )


def _monitors(trainer: Trainer) -> Iterator[tuple[str, str, int]]:
    """For all that fails without a value that it monitors: its class name, the value, and every how many epochs."""
    validated = trainer.check_val_every_n_epoch or 1
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        every = getattr(callback, "_every_n_epochs", 1)  # a ModelCheckpoint's; 0 where it saves by steps or time
        if isinstance(getattr(callback, "monitor", None), str) and getattr(callback, "strict", True) and every > 0:
            yield type(callback).__name__, callback.monitor, math.lcm(every, validated)
    for config in trainer.lr_scheduler_configs:
        if config.reduce_on_plateau and config.strict and config.interval == "epoch" and config.monitor is not None:
            yield type(config.scheduler).__name__, config.monitor, config.frequency


def _next(epoch: int, every: int) -> int:
    """The number of epochs at the first multiple of ``every`` that is still to come."""
    return (epoch // every + 1) * every


def _is_of_curve(key: str) -> bool:
    return key.startswith("lcs/") and not key.startswith(("lcs/train_loss/", "lcs/sampled_alpha/"))


def _names(thing: Any) -> set[str]:
    return {kind.__name__ for kind in type(thing).__mro__}
