"""Training on scikit-learn's digits, for commands that need no data from the user."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from lightning_lcs.callbacks.lcs import LCSCallback
from lightning_lcs.data import DigitsDataModule
from lightning_lcs.model import SubspaceModel
from lightning_lcs.wrapper import CompressibleSubspaceWrapper


def train_on_digits(callback: LCSCallback, epochs: int, folder: Path, progress: bool) -> SubspaceModel:
    """Train timm's resnet10t on the CPU, from seed 0.

    Args:
        callback: The callback that trains the network.
        epochs: The number of epochs.
        folder: The folder for the curve.
        progress: Whether to show Lightning's progress bar.

    Returns:
        The trained subspace, in evaluation.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    quiet: dict[str, Any] = dict.fromkeys(("logger", "enable_checkpointing", "enable_model_summary"), False)
    quiet["enable_progress_bar"] = progress
    with warnings.catch_warnings():
        # Lightning's advice on workers and logging intervals does not apply to 1,797 small images.
        warnings.filterwarnings("ignore", module="lightning")
        pl.seed_everything(0, verbose=False)
        wrapper = CompressibleSubspaceWrapper(
            "resnet10t", num_classes=10, in_chans=1, mode=callback.mode, subspace=callback.subspace
        )
        trainer = pl.Trainer(
            max_epochs=epochs, accelerator="cpu", callbacks=[callback], default_root_dir=folder, **quiet
        )
        trainer.fit(wrapper, datamodule=DigitsDataModule())
    return wrapper.subspace_model.eval()
