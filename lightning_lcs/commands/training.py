"""``lightning-lcs fit|validate|test|predict``: LightningCLI around the wrapper and the data modules."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from lightning.pytorch import LightningDataModule
from lightning.pytorch.cli import LightningCLI

# LightningCLI finds data modules by their short names when they have been imported.
from lightning_lcs import data as _data  # noqa: F401
from lightning_lcs.wrapper import CompressibleSubspaceWrapper


def training(args: Sequence[str]) -> None:
    """Run a subcommand of LightningCLI.

    Args:
        args: the subcommand, and what follows it.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "LightningCLI's args parameter")  # meant for scripts; this is a command
        LightningCLI(
            CompressibleSubspaceWrapper,
            LightningDataModule,
            subclass_mode_data=True,
            seed_everything_default=0,
            # Without this the second run of the same command would refuse to overwrite its own configuration.
            save_config_kwargs={"overwrite": True},
            args=list(args),
        )
