"""Checkpoints that never leave the subspace out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from lightning_lcs.training.user_code.patches import Patches

AddSubspace = Callable[[Trainer, LightningModule, dict[str, Any]], None]
"""Adds to a checkpoint of a trainer and its module what it lacks of the subspace, after all other hooks."""


class Saving:
    """A trainer's ``save_checkpoint`` that never leaves the subspace out.

    A checkpoint of weights alone skips the hooks of callbacks, but not the module's own hook: the subspace is added
    there, for as long as the saving takes. It stays in the trainer, because people save after ``fit`` as well.

    Args:
        trainer: The trainer whose method it replaces.
        add: Adds the subspace to a checkpoint.

    Attributes:
        path: The path of the file that is being written; ``None`` between two files.
    """

    def __init__(self, trainer: Trainer, add: AddSubspace) -> None:
        self.trainer = trainer
        self.add = add
        self.path: Any = None
        self.original = trainer.save_checkpoint

    @classmethod
    def put_into(cls, trainer: Trainer, add: AddSubspace) -> None:
        """Replace the trainer's method."""
        if isinstance(trainer.save_checkpoint, cls):
            trainer.save_checkpoint.add = add
        else:
            trainer.save_checkpoint = cls(trainer, add)  # type: ignore[method-assign]

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        """Save as the trainer does, with the subspace."""
        patches = Patches()
        module = self.trainer.lightning_module
        if module is not None:
            patches.set(module, "on_save_checkpoint", _Adding(self.add, self.trainer, module))
        self.path = args[0] if args else kwargs.get("filepath")
        try:
            self.original(*args, **kwargs)
        finally:
            self.path = None
            patches.undo()


class _Adding:
    """The module's ``on_save_checkpoint``, which also adds the subspace."""

    def __init__(self, add: AddSubspace, trainer: Trainer, module: LightningModule) -> None:
        self.add = add
        self.trainer = trainer
        self.module = module
        self.__wrapped__ = module.on_save_checkpoint

    def __call__(self, checkpoint: dict[str, Any]) -> None:
        self.add(self.trainer, self.module, checkpoint)
        self.__wrapped__(checkpoint)
