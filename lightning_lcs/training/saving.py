"""Checkpoints that never leave the subspace out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning.pytorch import LightningModule, Trainer

from lightning_lcs.io.checkpoint import CHECKPOINT_KEY
from lightning_lcs.training.isolation import Patches

if TYPE_CHECKING:
    from lightning_lcs.callbacks.lcs import LCSCallback


class Saving:
    """A trainer's ``save_checkpoint`` that never leaves the subspace out.

    A checkpoint of weights only skips callbacks, but not the module's own hook: it adds the subspace there for as long
    as the saving takes. It stays in the trainer, since people save after ``fit``, too.
    """

    def __init__(self, trainer: Trainer, callback: LCSCallback) -> None:
        self.trainer = trainer
        self.callback = callback
        self.original = trainer.save_checkpoint

    @classmethod
    def put_into(cls, trainer: Trainer, callback: LCSCallback) -> None:
        """Stand in for the trainer's method."""
        if isinstance(trainer.save_checkpoint, cls):
            trainer.save_checkpoint.callback = callback
        else:
            trainer.save_checkpoint = cls(trainer, callback)  # type: ignore[method-assign]

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        """Save as the trainer does, with the subspace."""
        patches = Patches()
        module = self.trainer.lightning_module
        if module is not None and self.callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            patches.set(module, "on_save_checkpoint", _Adding(self.callback, self.trainer, module))
        try:
            self.original(*args, **kwargs)
        finally:
            patches.undo()


class _Adding:
    """The module's ``on_save_checkpoint``, and the subspace added."""

    def __init__(self, callback: LCSCallback, trainer: Trainer, module: LightningModule) -> None:
        self.callback = callback
        self.trainer = trainer
        self.module = module
        self.__wrapped__ = module.on_save_checkpoint

    def __call__(self, checkpoint: dict[str, Any]) -> None:
        if CHECKPOINT_KEY not in checkpoint:
            self.callback.on_save_checkpoint(self.trainer, self.module, checkpoint)
        self.__wrapped__(checkpoint)
