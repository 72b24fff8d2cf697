"""BatchNormRecalibration: batch-norm statistics for every level, from training images."""

from __future__ import annotations

from collections.abc import Sequence

import lightning.pytorch as pl
from lightning.pytorch import LightningModule, Trainer

from lightning_lcs.subspace.running.calibration import DEFAULT_IMAGES, DEFAULT_LEVELS
from lightning_lcs.training.checks import warn_of_old_namespace
from lightning_lcs.training.curves.recalibration import Recalibrator
from lightning_lcs.training.target import find_subspace_model


class BatchNormRecalibration(pl.Callback):
    """Collects batch-norm statistics for each level and keeps them in the subspace model.

    ``LCSCallback`` does this before each curve. Give this callback beside it to choose other options. Without an
    ``LCSCallback``, in a trainer whose module holds a trained ``SubspaceModel``, it runs at the start of ``validate``,
    ``test`` and ``predict``.

    Weights, the optimizer, the random state, metrics and the position of the training loader stay as they are, and
    validation and test data are never read. The module's ``training_step`` is called on each batch without gradients
    and with its logging muted. Modules outside of the network are in training mode meanwhile, as in a training step.

    Args:
        alphas: The levels to keep: their number (evenly spaced over [0, 1], at least 2), or a list of levels in
            [0, 1]. The default is 25.
        images: The approximate number of training images that each level sees; 0 for no statistics. The default is
            512.
        seed: The seed of the choice of images. The default is 0.

    Raises:
        ValueError: ``images`` is negative, or ``alphas`` is not a grid in [0, 1].

    Example:
        >>> from lightning_lcs import BatchNormRecalibration
        >>> BatchNormRecalibration(alphas=3, images=512).alphas
        [0.0, 0.5, 1.0]
    """

    def __init__(
        self, alphas: int | Sequence[float] = DEFAULT_LEVELS, images: int = DEFAULT_IMAGES, seed: int = 0
    ) -> None:
        warn_of_old_namespace()
        self.recalibrator = Recalibrator(alphas, images, seed)

    @property
    def alphas(self) -> list[float]:
        """The levels whose statistics are kept, ascending."""
        return self.recalibrator.alphas

    @property
    def images(self) -> int:
        """The approximate number of training images that each level sees."""
        return self.recalibrator.images

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Remember which modules are in training mode, before an evaluation begins."""
        self.recalibrator.flags.see(pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Without ``LCSCallback``: collect the statistics before ``validate``, ``test`` and ``predict``."""
        model, owned = find_subspace_model(trainer, pl_module)
        if not owned and trainer.state.fn != "fit" and not model.statistics:
            self.recalibrator.run(trainer, pl_module, model)

    on_test_start = on_validation_start
    on_predict_start = on_validation_start
