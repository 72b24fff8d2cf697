"""The sweep over levels inside a training step (arXiv 2110.04252, Algorithm 1)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_lcs._gradients import GradientSum
from lightning_lcs.callbacks._options import SweepOptions
from lightning_lcs.callbacks._quiet import quiet
from lightning_lcs.callbacks._target import guarded
from lightning_lcs.model import SubspaceModel


class Sweep:
    """A module's ``training_step``, run at one or several levels; the last one is the step that Lightning sees.

    With several it is alpha = 1.

    Every level but the last is back-propagated here, so that one level's activations are alive at a time. Lightning
    clears gradients between the step and its own backward: until then those of the other levels are kept apart.
    """

    def __init__(
        self,
        model: SubspaceModel,
        trainer: Trainer,
        module: LightningModule,
        *,
        options: SweepOptions,
        diversity_weight: float,
        seed: int,
    ) -> None:
        self.model = model
        self.trainer = trainer
        self.module = module
        self.options = options
        self.diversity_weight = diversity_weight
        self.seed = seed
        self.__wrapped__: Callable[..., Any] = module.training_step  # Lightning reads the signature through this name
        self._original_backward: Callable[..., None] = module.backward
        self._gradients = GradientSum()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """One micro-batch at every level drawn for it."""
        loop = self.trainer.fit_loop
        # Counted by what was completed: a batch that failed and is repeated after a resume draws the same levels.
        done = loop.epoch_loop.batch_progress.total.completed
        *alphas, last = self.options.alphas(self.seed, done)
        strength = self._strength()
        first = loop.epoch_loop.batch_idx % self.trainer.accumulate_grad_batches == 0
        gradients = self._gradients = GradientSum()
        if first:
            for parameter in self.module.parameters():
                parameter.grad = None
        losses: dict[float, Tensor] = {}
        with quiet(self.module, self.model):
            for alpha in alphas:
                with (
                    guarded(self.model, alpha, "training_step") as guard,
                    self.model.training_level(alpha, gradients, strength=strength),
                ):
                    loss = loss_of(self.__wrapped__(*args, **kwargs))
                    guard.skipped = loss is None
                    if loss is not None:
                        losses[alpha] = loss.detach()
                        self._backward(loss)
        if first:
            # Those of parameters outside the network, which Lightning is about to clear.
            gradients.take(self.module.parameters())
        with (
            guarded(self.model, last, "training_step") as guard,
            self.model.training_level(last, strength=strength, direct=True),
        ):
            output = self.__wrapped__(*args, **kwargs)
            guard.skipped = loss_of(output) is None
        self._log(losses)
        return self._with_diversity(output)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """The module's ``backward`` of the last level, with the gradients of the others added."""
        with self._gradients.added():
            self._original_backward(loss, *args, **kwargs)

    def _strength(self) -> float:
        """Share of a level's sparsity that applies at this step."""
        if self.options.warmup == 0.0:
            return 1.0
        total = self.trainer.estimated_stepping_batches
        if not 0 < total < math.inf:
            raise ValueError(
                f"warmup={self.options.warmup:g} is a share of all training steps, and the training data has no "
                "length: set Trainer(max_steps=...), or LCSCallback(warmup=0)"
            )
        return self.options.strength(self.trainer.global_step / total)

    def _backward(self, loss: Tensor) -> None:
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        with torch.autocast(loss.device.type, enabled=False):
            scaled = loss / self.trainer.accumulate_grad_batches
            self._original_backward(scaled if scaler is None else scaler.scale(scaled))

    def _with_diversity(self, output: Any) -> Any:
        """The step's output with the gradient of the diversity term, and with its value as it was."""
        loss = loss_of(output)
        if loss is None or not self.model.endpoint_pairs():
            return output
        term = self.diversity_weight * self.model.endpoint_cosine().square()
        loss = loss + (term - term.detach())
        return {**output, "loss": loss} if isinstance(output, Mapping) else loss

    def _log(self, losses: dict[float, Tensor]) -> None:
        values = {"lcs/train_loss/alpha_000": [losses[a] for a in losses if a == 0.0]}
        values["lcs/train_loss/sampled"] = [losses[a] for a in losses if a > 0.0]
        for name, group in values.items():
            if group:
                # One number per step, whatever the batch: the mean over the epoch is that over its steps.
                value = torch.stack(group).mean()
                self.module.log(name, value, on_step=False, on_epoch=True, batch_size=1, sync_dist=True)


def loss_of(output: Any) -> Tensor | None:
    """The loss in what a ``training_step`` returned."""
    if isinstance(output, Mapping):
        output = output.get("loss")
    return output if isinstance(output, Tensor) else None


def check_endpoints_are_trained(model: SubspaceModel, optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Raise unless each endpoint 0 is in its partner's parameter group.

    Raises:
        RuntimeError: an optimizer was built without the second endpoints.
    """
    groups = {
        id(parameter): (number, index)
        for number, optimizer in enumerate(optimizers)
        for index, group in enumerate(optimizer.param_groups)
        for parameter in group["params"]
    }
    missing = sum(groups.get(id(w0)) != groups.get(id(w1)) for w0, w1 in model.endpoint_pairs())
    if missing:
        raise RuntimeError(
            f"{missing} second endpoints are not in the optimizer's parameter group of their partners, and would not "
            "be trained alike; build the optimizer in configure_optimizers from parameters() or named_parameters() of "
            "the module or its network"
        )
