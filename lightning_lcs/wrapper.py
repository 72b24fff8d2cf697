"""CompressibleSubspaceWrapper: a LightningModule around any classifier, ready to train."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import timm
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from timm.optim import create_optimizer_v2  # type: ignore[attr-defined]
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from lightning_lcs.callbacks.lcs import LCSCallback
from lightning_lcs.io.checkpoint import CHECKPOINT_KEY
from lightning_lcs.model import SubspaceModel
from lightning_lcs.subspace.modes import Quantized, Structured, Unstructured
from lightning_lcs.subspace.modes.registry import check_subspace, mode_to_dict, parse_mode

SCHEDULERS = ("cosine", "constant")


class CompressibleSubspaceWrapper(pl.LightningModule):
    """Trains a timm model, or any classifier, as a compressible subspace.

    Without an ``LCSCallback`` in the trainer it brings its own, with default options.

    Args:
        model: the name of a timm model, or a network from images to logits.
        num_classes: number of classes.
        mode: "structured", "unstructured", "quantized", or a mode object.
        subspace: "line" or "point".
        pretrained: start from timm's published weights (they are downloaded); on a line both endpoints start there.
        in_chans: channels of the images (timm models).
        model_options: further arguments of ``timm.create_model``, such as ``{"drop_path_rate": 0.1}``.
        line_parameters: see :class:`LCSCallback`.
        endpoint_start: see :class:`LCSCallback`.
        norm: see :class:`LCSCallback`.
        optimizer: a name that ``timm.optim.create_optimizer_v2`` knows.
        learning_rate: its peak.
        weight_decay: on weights of two or more dimensions.
        momentum: of SGD.
        scheduler: "cosine" (per step, down to 0) or "constant".
        warmup_epochs: epochs of linear warm-up before it; may be a fraction.
        label_smoothing: of the cross-entropy.

    Raises:
        ValueError: an option outside its range.
    """

    def __init__(
        self,
        model: str | nn.Module,
        num_classes: int = 10,
        mode: str | Structured | Unstructured | Quantized | dict[str, Any] = "structured",
        subspace: str = "line",
        pretrained: bool = False,
        in_chans: int = 3,
        model_options: dict[str, Any] | None = None,
        line_parameters: str = "norm",
        endpoint_start: str = "copy",
        norm: str = "keep",
        optimizer: str = "sgd",
        learning_rate: float = 0.1,
        weight_decay: float = 5e-4,
        momentum: float = 0.9,
        scheduler: str = "cosine",
        warmup_epochs: float = 0.0,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        if scheduler not in SCHEDULERS:
            raise ValueError(f"scheduler={scheduler!r} is not known; choose one of {', '.join(map(repr, SCHEDULERS))}")
        parsed = parse_mode(mode)
        check_subspace(subspace)
        # Checkpoints hold plain data only: an nn.Module or a mode object in them could not be loaded safely.
        self.save_hyperparameters(ignore=["mode", *(["model"] if isinstance(model, nn.Module) else [])])
        self.save_hyperparameters({"mode": mode_to_dict(parsed)})
        if isinstance(model, str):
            options = {"in_chans": in_chans, "num_classes": num_classes, **(model_options or {})}
            model = timm.create_model(model, pretrained=pretrained, **options)
        self.subspace_model = SubspaceModel(
            model,
            mode=parsed,
            subspace=subspace,
            line_parameters=line_parameters,
            endpoint_start=endpoint_start,
            norm=norm,
        )
        self.loss = nn.CrossEntropyLoss(label_smoothing=label_smoothing)
        # The loss has refused wrong labels already; to look for them here would wait for the accelerator at every step.
        self.train_acc = MulticlassAccuracy(num_classes, average="micro", validate_args=False)
        self.val_acc = MulticlassAccuracy(num_classes, average="micro")
        self.test_acc = MulticlassAccuracy(num_classes, average="micro")
        self._optimizer: dict[str, Any] = {
            "opt": optimizer,
            "lr": learning_rate,
            "weight_decay": weight_decay,
            "momentum": momentum,
        }
        self._scheduler = scheduler
        self._warmup_epochs = warmup_epochs

    def forward(self, images: Tensor) -> Tensor:
        """Images ``(N, C, H, W)`` to logits ``(N, num_classes)``, at the level of ``self.subspace_model``."""
        logits = self.subspace_model(images)
        if not isinstance(logits, Tensor):
            raise TypeError(
                f"the model gives a {type(logits).__name__}, and CompressibleSubspaceWrapper trains classifiers that "
                "give one tensor of logits: give LCSCallback to the trainer of a LightningModule of your own"
            )
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy of one batch."""
        images, labels = batch
        logits = self(images)
        loss: Tensor = self.loss(logits, labels)
        self.train_acc(logits, labels)
        self.log("train_loss", loss)
        self.log("train_acc", self.train_acc, on_step=False, on_epoch=True, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Accuracy and loss of one batch."""
        images, labels = batch
        logits = self(images)
        self.val_acc(logits, labels)
        self.log("val_acc", self.val_acc, prog_bar=True)
        self.log("val_loss", self.loss(logits, labels))

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Accuracy of one batch."""
        images, labels = batch
        self.test_acc(self(images), labels)
        self.log("test_acc", self.test_acc)

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Logits of one batch, with labels or without."""
        images: Tensor = batch[0] if isinstance(batch, (tuple, list)) else batch
        logits: Tensor = self(images)
        return logits

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer over both endpoints, and the schedule per step.

        Raises:
            ValueError: a schedule over training data without a length, and no ``max_steps``.
        """
        optimizer = create_optimizer_v2(self.subspace_model, **self._optimizer)
        unscheduled = self._scheduler == "constant" and not self._warmup_epochs
        if unscheduled or self.trainer.limit_train_batches == 0:
            return optimizer
        estimated = self.trainer.estimated_stepping_batches
        if not 0 <= estimated < math.inf:
            raise ValueError(
                f"scheduler={self._scheduler!r} with warmup_epochs={self._warmup_epochs:g} needs the number of steps, "
                "and the training data has no length: set Trainer(max_steps=...), or scheduler='constant' and "
                "warmup_epochs=0"
            )
        steps = int(estimated)
        epochs = max(1, self.trainer.max_epochs or 1)
        warmup = min(steps - 1, round(steps * self._warmup_epochs / epochs))
        schedule: torch.optim.lr_scheduler.LRScheduler
        if self._scheduler == "cosine":
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps - warmup))
        else:
            schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
        if warmup > 0:
            rise = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0 / warmup, total_iters=warmup)
            schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, [rise, schedule], [warmup])
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_callbacks(self) -> list[pl.Callback]:
        """An ``LCSCallback`` where the trainer has none (Lightning would drop the trainer's otherwise)."""
        if any(isinstance(callback, LCSCallback) for callback in self.trainer.callbacks):  # type: ignore[attr-defined]
            return []
        model = self.subspace_model
        return [LCSCallback(model.mode, model.subspace)]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the subspace."""
        checkpoint[CHECKPOINT_KEY] = {**self.subspace_model.subspace_state(), "targets": ["subspace_model.module"]}

    def on_load_checkpoint(self, checkpoint: Mapping[str, Any]) -> None:
        """Take the subspace over."""
        if CHECKPOINT_KEY in checkpoint:
            self.subspace_model.load_subspace_state(checkpoint[CHECKPOINT_KEY])
