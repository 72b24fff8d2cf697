"""What does not work together with a sweep over levels, refused before training with the reason."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

# By class name: users import the trainer and its parts from either of Lightning's two namespaces.
_STRATEGIES = {
    "FSDPStrategy": "shards parameters, and a level is cut from whole ones",
    "DeepSpeedStrategy": "clears gradients itself, where those of several levels have to be kept",
    "ModelParallelStrategy": "shards parameters, and a level is cut from whole ones",
}
_CALLBACKS = {
    "WeightAveraging": "saves averages of the full network only, beside a second endpoint and batch-norm statistics "
    "that belong to other weights",
    "StochasticWeightAveraging": "replaces the weights after the last curve, and the second endpoint and batch-norm "
    "statistics belong to those before",
    "ModelPruning": "makes its own weights out of masks in every forward, from which no level can be cut",
}


def check_setup(trainer: Trainer, module: LightningModule) -> None:
    """Refuse what can't be trained together with several levels.

    Raises:
        ValueError: with the reason, and what to do.
    """
    if not module.automatic_optimization:
        raise ValueError(
            f"{type(module).__name__} uses manual optimization, and LCSCallback sums the gradients of several "
            "levels inside Lightning's own step: use automatic optimization"
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


def warn_of_old_namespace() -> None:
    """Say that a ``pytorch_lightning`` below 2.0 which has been imported can't run callbacks of ours.

    Its trainer stops in its constructor with "Expected a parent", before any hook of a callback that could say more. It
    may be there for lightning-bolts' data modules only, so that this is no error.
    """
    old = getattr(sys.modules.get("pytorch_lightning"), "__version__", "2")
    if old.partition(".")[0] in ("0", "1"):
        warnings.warn(
            f"pytorch_lightning {old} is imported, whose Trainer can't run callbacks of lightning-lcs (below 2.0 it "
            'stops with "Expected a parent"): use lightning.pytorch.Trainer',
            stacklevel=4,
        )


def check_optimizers(optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Refuse optimizers that the sweep can't feed (Lightning itself refuses several without manual optimization).

    Raises:
        ValueError: one that runs the step more than once.
    """
    if any(isinstance(optimizer, torch.optim.LBFGS) for optimizer in optimizers):
        raise ValueError(
            "LBFGS runs the training step several times per batch, and each run would sweep over other gradients: use "
            "another optimizer with LCSCallback"
        )


def _names(thing: Any) -> set[str]:
    return {kind.__name__ for kind in type(thing).__mro__}
