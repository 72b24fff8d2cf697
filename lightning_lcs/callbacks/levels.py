"""levels: the levels of a training step with manual optimization."""

from __future__ import annotations

from collections.abc import Iterator

from lightning.pytorch import LightningModule

from lightning_lcs.callbacks.lcs import LCSCallback
from lightning_lcs.training.step.manual import TrainedLevel


def levels(module: LightningModule) -> Iterator[TrainedLevel]:
    """The levels at which a training step with manual optimization runs its loss, ascending.

    Inside the loop over them, the networks that ``LCSCallback`` compresses run at the level; outside of it they run at
    alpha = 1. The gradients of ``level.weight * loss`` of all levels together are those of a step with automatic
    optimization. Log after the loop, or where ``level.alpha`` is 1. Without ``LCSCallback`` there is one level,
    alpha = 1 with a weight of 1, so that the module also trains alone.

    Args:
        module: The module whose ``training_step`` runs.

    Yields:
        Each level with its ``alpha``, in [0, 1], and the ``weight`` of its loss, above 0.

    Example:
        >>> import lightning as L
        >>> import torch
        >>> from lightning_lcs import levels
        >>> class Mine(L.LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.automatic_optimization = False
        ...         self.net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        ...
        ...     def training_step(self, batch, batch_idx):
        ...         optimizer = self.optimizers()
        ...         optimizer.zero_grad()
        ...         for level in levels(self):
        ...             self.manual_backward(level.weight * self.net(batch).square().mean())
        ...         optimizer.step()
        >>> [(level.alpha, level.weight) for level in levels(Mine())]
        [(1.0, 1.0)]
    """
    trainer = module._trainer
    callbacks = [] if trainer is None else trainer.callbacks  # type: ignore[attr-defined]
    lcs = next((callback for callback in callbacks if isinstance(callback, LCSCallback)), None)
    return iter([TrainedLevel(1.0, 1.0)]) if lcs is None else lcs.levels()
