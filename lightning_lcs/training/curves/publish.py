"""Write a measured curve to metrics, loggers, files and the terminal."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

from lightning_lcs.loggers.registry import Measurement, draw_curves
from lightning_lcs.model import SubspaceModel
from lightning_lcs.reporting.history import Evaluation, followed, read_history, write_history
from lightning_lcs.reporting.log_keys import alpha_key, log_values
from lightning_lcs.reporting.run_summary import SUMMARY, write_summary
from lightning_lcs.subspace.curves.curve import Curve
from lightning_lcs.subspace.curves.curve_file import CURVE, TEST_CURVE, write_csv
from lightning_lcs.training.curves.progress import show_curves
from lightning_lcs.utils.warning import warn

OWN_FOLDER = "lightning_lcs_logs"
HISTORY = "curves.csv"


def publish(
    trainer: Trainer,
    module: LightningModule,
    model: SubspaceModel,
    curve: Curve,
    earlier: Sequence[Evaluation],
    baseline: Curve,
    artifact: bool,
) -> list[Evaluation]:
    """Write a curve to metrics, loggers, files and the terminal.

    Args:
        trainer: Its metrics, loggers and folder are written.
        module: Its hyperparameters are written.
        model: The model that was measured.
        curve: The curve that was measured.
        earlier: The evaluations of this process, the last one at the end.
        baseline: A curve to show beside it; may be empty.
        artifact: Whether to upload the deployment file to W&B.

    Returns:
        The evaluations, with this one at the end.
    """
    summary = model.describe()
    values = {**log_values(curve), **diagnostics(summary, curve)}
    trainer.callback_metrics.update({key: torch.tensor(value) for key, value in values.items()})
    stage, epoch, step = str(getattr(trainer.state.fn, "value", "fit")), trainer.current_epoch, trainer.global_step
    latest = Evaluation(curve=curve, stage=stage, epoch=epoch, step=step)
    address = directory(trainer)  # asked for on all ranks, because Lightning broadcasts it
    folder = Path(address)
    if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
        return followed(earlier, latest)
    evaluations = followed(earlier, latest)
    with sparing_the_run(f"the files of the curve to {address}"):
        if "://" in address:
            raise NotADirectoryError("it is not a folder of this machine")
        goes_on = stage != "fit" or trainer.ckpt_path is not None
        write_csv({"": curve}, folder / (TEST_CURVE if stage == "test" else CURVE))
        write_summary({**summary, "hyperparameters": hyperparameters(module)}, folder / SUMMARY)
        if not earlier and goes_on and (folder / HISTORY).exists():
            # Curves that another process of this run measured.
            evaluations = followed(read_history(folder / HISTORY), latest)
        write_history(evaluations, folder / HISTORY)
    before = next((e.curve for e in reversed(evaluations[:-1]) if e.stage == stage), [])
    shown = {"latest": curve, "previous": before, "baseline": baseline}
    measurement = Measurement(
        curves={name: c for name, c in shown.items() if c},
        description=summary,
        step=step,
        folder=folder,
        save=(lambda path: model.save(path, levels=curve)) if artifact else None,
    )
    for logger in trainer.loggers:
        name = type(logger).__name__
        with sparing_the_run(f"the values of the curve to {name}"):
            logger.log_metrics(values, step=step)
        with sparing_the_run(f"the pictures and tables of the curve to {name}"):
            draw_curves(logger, measurement)
    with sparing_the_run("the curve to the terminal"):
        show_curves(trainer, {"": curve})
    return evaluations


@contextlib.contextmanager
def sparing_the_run(what: str) -> Iterator[None]:
    """A block that writes ``what`` to a place outside of the run: if it fails, there is a warning, and no more.

    A curve is written after the training and before its last checkpoint. A full disk, a folder that can't be written,
    or the server of a logger that does not answer must cost neither of them.
    """
    try:
        yield
    except Exception as error:  # a logger may raise anything
        reason = f"{type(error).__name__}: {error}"
        warn(f"writing {what} failed ({reason}); the run goes on, and .curve and callback_metrics hold the curve")


def diagnostics(summary: Mapping[str, Any], curve: Curve) -> dict[str, float]:
    """The cosine and distance of the endpoints and the drift of batch-norm statistics at the levels, by log key."""
    values = {f"lcs/endpoints/{name}": value for name, value in summary["endpoints"].items()}
    levels = {point.alpha for point in curve}
    return values | {f"lcs/norm_drift/{alpha_key(a)}": drift for a, drift in summary["drift"] if a in levels}


def hyperparameters(module: LightningModule) -> dict[str, Any]:
    """The module's saved hyperparameters as plain values, without those of LightningCLI (``_instantiator``)."""
    plain = (bool, int, float, str, type(None))
    own = {name: value for name, value in dict(module.hparams).items() if not str(name).startswith("_")}
    return {name: value if isinstance(value, plain) else repr(value) for name, value in own.items()}


def directory(trainer: Trainer) -> str:
    """The folder of the run's files, the same on all ranks: that of the first logger.

    Without a logger it is ``default_root_dir``; where that is the working directory, a folder of their own in it.
    """
    logger = next(iter(trainer.loggers), None)
    if logger is None:
        root = trainer.default_root_dir
        return os.path.join(root, OWN_FOLDER) if os.path.abspath(root) == os.getcwd() else root
    if logger.log_dir:
        return str(trainer.log_dir)
    version = logger.version
    below = (logger.name, version if isinstance(version, str) else f"version_{version}")
    path = os.path.join(logger.save_dir or trainer.default_root_dir, *map(str, filter(None, below)))
    return str(trainer.strategy.broadcast(path))
