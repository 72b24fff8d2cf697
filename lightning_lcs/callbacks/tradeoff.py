"""TradeoffMonitor: the accuracy-efficiency curve, measured with the module's own validation metrics."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike

import lightning.pytorch as pl
from lightning.pytorch import LightningModule, Trainer

from lightning_lcs.reporting.history import Evaluation
from lightning_lcs.subspace.curves.curve import CurvePoint
from lightning_lcs.training.curves.measurement import Measurement
from lightning_lcs.training.target import find_subspace_model


class TradeoffMonitor(pl.Callback):
    """Measures the module's validation metrics at each level of a grid, and what each level costs.

    ``LCSCallback`` does this at the last validation (or every ``every_n_epochs``). Give this callback beside it to
    choose other options. Without an ``LCSCallback``, in a trainer whose module holds a trained ``SubspaceModel``, it
    runs after ``validate`` and ``test``.

    The curve goes to ``.curve``, to every logger (under keys such as ``lcs/val_acc/alpha_050`` and
    ``lcs/val_acc/mean``, which ``ModelCheckpoint`` can monitor; with pictures and tables where the logger supports
    them), to files, and to the terminal while progress bars are on. The module's own metrics, monitors and loggers see
    what they would have seen without it.

    Three files are written, from which ``lightning-lcs report`` makes a page: ``curve.csv`` holds the last curve,
    ``curves.csv`` all curves of the run with their stage, epoch and step, and ``summary.json`` what was trained and
    where. They lie in the log directory of the trainer's first logger. Without a logger they lie in the trainer's
    ``default_root_dir``, or in a folder ``lightning_lcs_logs`` where that is the working directory, as it is by
    default; the next run without a logger replaces them.

    Args:
        alphas: The levels: their number (evenly spaced over [0, 1], at least 2), or a list of levels in [0, 1]. The
            default is 7.
        every_n_epochs: Measure after the validation of every n-th epoch as well, at least 1. The default is to measure
            at the last validation only.
        latency: Whether to measure the time of a forward pass with one sample at each level, in milliseconds. The
            default is true.
        baseline: The path of the ``curve.csv`` of another run, such as plain training, to show beside this run's curve
            in W&B and TensorBoard; metrics are compared by name.
        artifact: Whether to upload ``model.lcs`` to W&B with each curve, with the level table as its metadata. The
            default is false.

    Attributes:
        alphas: The levels, ascending.
        every_n_epochs: As given.
        curve: The last curve, by ascending alpha; empty before the first.
        evaluations: All curves, with when they were measured.

    Raises:
        ValueError: ``alphas`` is not a grid in [0, 1], ``every_n_epochs`` is below 1, or ``baseline`` does not hold a
            single curve.

    Example:
        >>> from lightning_lcs import TradeoffMonitor
        >>> monitor = TradeoffMonitor(alphas=3, every_n_epochs=5)
        >>> monitor.alphas, monitor.curve
        ([0.0, 0.5, 1.0], [])
    """

    def __init__(
        self,
        alphas: int | Sequence[float] = 7,
        every_n_epochs: int | None = None,
        latency: bool = True,
        baseline: str | PathLike[str] | None = None,
        artifact: bool = False,
    ) -> None:
        self.measurement = Measurement(alphas, every_n_epochs, latency, baseline, artifact)

    @property
    def alphas(self) -> list[float]:
        """The levels, ascending."""
        return self.measurement.alphas

    @property
    def every_n_epochs(self) -> int | None:
        """The number of epochs between two curves; ``None`` for one at the end."""
        return self.measurement.every_n_epochs

    @property
    def curve(self) -> list[CurvePoint]:
        """The last curve, by ascending alpha; empty before the first."""
        return self.measurement.curve

    @property
    def evaluations(self) -> list[Evaluation]:
        """All curves, with when they were measured."""
        return self.measurement.evaluations

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Without ``LCSCallback``: measure the curve after ``validate`` and ``test``."""
        model, owned = find_subspace_model(trainer, pl_module)
        if not owned and trainer.state.fn != "fit":
            self.measurement.run(trainer, pl_module, model)

    on_test_end = on_validation_end
