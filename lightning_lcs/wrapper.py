"""CompressibleSubspaceWrapper: a LightningModule around any classifier, ready to train."""

from __future__ import annotations

import dataclasses
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
from lightning_lcs.subspace.mode import Mode
from lightning_lcs.subspace.modes.registry import check_subspace, mode_to_dict, parse_mode
from lightning_lcs.subspace.option_places import model_places
from lightning_lcs.subspace.weights.line import Line
from lightning_lcs.utils.options import checked_keywords, parse_options

SCHEDULERS = ("cosine", "constant")


class CompressibleSubspaceWrapper(pl.LightningModule):
    """Trains a timm model, or any classifier, as a compressible subspace.

    Where the trainer has no ``LCSCallback``, the wrapper brings one with default options.

    Args:
        model: The name of a timm model, or a network from images ``(N, C, H, W)`` to logits ``(N, num_classes)``.
        num_classes: The number of classes. The default is 10.
        mode: The compression mode: "structured", "unstructured", "quantized", a mode object, or a mapping of its name
            and options. The default is "structured".
        subspace: "line" or "point". The default is that of the mode: a point for those of this package.
        pretrained: Whether to start from timm's published weights, which are downloaded; on a line both endpoints start
            there. The default is false.
        in_chans: The number of channels of the images, for timm models. The default is 3.
        model_options: Further arguments of ``timm.create_model``, such as ``{"drop_path_rate": 0.1}``.
        line: Which parameters lie on the line, and how its endpoints start; a :class:`Line` or a mapping. The default
            is ``Line()``.
        norm: "keep", "instance" or "group"; see :class:`LCSCallback`. The default is "keep".
        optimizer: The name of an optimizer that ``timm.optim.create_optimizer_v2`` knows. The default is "sgd".
        learning_rate: The peak learning rate. The default is 0.1.
        weight_decay: The weight decay of weights of two or more dimensions. The default is 5e-4.
        momentum: The momentum of SGD. The default is 0.9.
        scheduler: "cosine" (per step, down to 0) or "constant". The default is "cosine".
        warmup_epochs: The number of epochs of linear warm-up before it; may be a fraction. The default is 0.
        label_smoothing: The label smoothing of the cross-entropy, in [0, 1]. The default is 0.

    Raises:
        TypeError: A keyword is not an option.
        ValueError: An option is outside its range.

    Example:
        >>> import torch
        >>> from lightning_lcs import CompressibleSubspaceWrapper
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 8), torch.nn.Linear(8, 10))
        >>> module = CompressibleSubspaceWrapper(network, num_classes=10, learning_rate=0.05)
        >>> module(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """

    @checked_keywords(model_places)
    def __init__(
        self,
        model: str | nn.Module,
        num_classes: int = 10,
        mode: str | Mode | dict[str, Any] = "structured",
        subspace: str | None = None,
        pretrained: bool = False,
        in_chans: int = 3,
        model_options: dict[str, Any] | None = None,
        line: Line | dict[str, Any] = Line(),  # noqa: B008
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
        parsed, line = parse_mode(mode), parse_options(Line, line, "line")
        if subspace is not None:
            check_subspace(subspace)
        # Checkpoints hold plain data only: an nn.Module or a mode object in them could not be loaded safely.
        self.save_hyperparameters(ignore=["mode", "line", *(["model"] if isinstance(model, nn.Module) else [])])
        self._channels: int | None = None
        if isinstance(model, str):
            options = {"in_chans": in_chans, "num_classes": num_classes, **(model_options or {})}
            self._channels = options["in_chans"]
            model = timm.create_model(model, pretrained=pretrained, **options)
        self.subspace_model = SubspaceModel(
            model,
            mode=parsed,
            subspace=subspace,
            line=line,
            norm=norm,
        )
        resolved = {"subspace": self.subspace_model.subspace, "line": dataclasses.asdict(line)}
        self.save_hyperparameters({"mode": mode_to_dict(parsed), **resolved})
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
        """Images ``(N, C, H, W)`` to logits ``(N, num_classes)``, at the level of ``self.subspace_model``.

        Raises:
            TypeError: The model does not give one tensor.
            ValueError: The images have another number of channels than the timm model.
        """
        if self._channels is not None and images.ndim == 4 and images.shape[1] != self._channels:
            raise ValueError(
                f"the images have {images.shape[1]} channel(s), and the model was made with in_chans={self._channels}: "
                f"set in_chans={images.shape[1]}"
            )
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
            ValueError: The schedule runs over training data without a length, and no ``max_steps``.
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
        """Add the subspace to a checkpoint that has none yet: ``LCSCallback`` adds it with more."""
        if CHECKPOINT_KEY not in checkpoint:
            checkpoint[CHECKPOINT_KEY] = {**self.subspace_model.subspace_state(), "targets": ["subspace_model.module"]}

    def on_load_checkpoint(self, checkpoint: Mapping[str, Any]) -> None:
        """Take the subspace out of a checkpoint."""
        if CHECKPOINT_KEY in checkpoint:
            self.subspace_model.load_subspace_state(checkpoint[CHECKPOINT_KEY])
