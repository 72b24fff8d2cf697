"""The module's own training step, called outside of training."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import RunningStage

from lightning_lcs.model import SubspaceModel
from lightning_lcs.training.data.loaders import training_batches
from lightning_lcs.training.step.manual import without_optimization
from lightning_lcs.training.user_code.isolation import apart
from lightning_lcs.training.user_code.patches import StandIn


def bare_training_step(module: LightningModule) -> Callable[[Any, int], Any]:
    """The module's own step, called as Lightning calls it."""
    step: Callable[..., Any] = module.training_step
    step = step.__wrapped__ if isinstance(step, StandIn) else step
    takes_index = len(inspect.signature(step).parameters) > 1

    def run(batch: Any, index: int) -> Any:
        with without_optimization(module):
            return step(batch, index) if takes_index else step(batch)

    return run


class TrainingFlags:
    """Remembers which modules are in training mode, before a validation puts all of them into evaluation mode.

    Some networks, such as torchvision's detectors, return their losses in training mode only.
    """

    def __init__(self) -> None:
        self._training: dict[str, bool] = {}

    def see(self, module: LightningModule) -> None:
        """Remember the present flags, unless the whole module is in evaluation mode."""
        if module.training:
            self._training = {name: child.training for name, child in module.named_modules()}

    @contextlib.contextmanager
    def around(self, module: LightningModule, model: SubspaceModel) -> Iterator[None]:
        """Put all modules outside of the networks into the mode that was remembered; the default is training mode."""
        inside = {child for part in model.parts for child in part.network.module.modules()} - {module}
        outside = [(name, child) for name, child in module.named_modules() if child not in inside]
        before = [child.training for _, child in outside]
        try:
            for name, child in outside:
                child.training = self._training.get(name, True)
            yield
        finally:
            for (_, child), training in zip(outside, before, strict=True):
                child.training = training


@torch.no_grad()
def sort_untrained(trainer: Trainer, module: LightningModule, model: SubspaceModel, seed: int) -> None:
    """Sort the channels of a subspace that is about to be trained for the first time, where its mode asks for it.

    The network is traced with one training batch; nothing is logged or changed by it.

    Raises:
        RuntimeError: There is no training data.
    """
    if model.trained or not model.mode.sorts_channels:
        return
    step = bare_training_step(module)
    with (
        apart(trainer, module, model, stage=RunningStage.TRAINING),
        model.runner.evaluation.silent(),
        trainer.precision_plugin.forward_context(),
        model.at_alpha(0.0),
    ):
        step(*next(iter(training_batches(trainer, module, 1, seed))))
    model.sort_channels()
