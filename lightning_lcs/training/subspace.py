"""Which subspace model a trainer works on."""

from __future__ import annotations

from lightning.pytorch import LightningModule, Trainer

from lightning_lcs.model import SubspaceModel


def find_subspace_model(trainer: Trainer, module: LightningModule) -> tuple[SubspaceModel, bool]:
    """The subspace model, and whether an ``LCSCallback`` in the trainer looks after it.

    Raises:
        RuntimeError: neither the trainer's callbacks nor the module hold exactly one.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        model = getattr(callback, "subspace_model", None)
        if isinstance(model, SubspaceModel):
            return model, True
    models = [child for child in module.modules() if isinstance(child, SubspaceModel)]
    if len(models) != 1:
        raise RuntimeError(
            f"{type(module).__name__} holds {len(models)} subspace models, and the trainer has no LCSCallback: add "
            "LCSCallback(), or wrap the network in one SubspaceModel"
        )
    return models[0], False
