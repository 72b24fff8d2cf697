"""A recipe in YAML and options, read by LightningCLI."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from lightning.pytorch import LightningDataModule
from lightning.pytorch.cli import LightningCLI

# LightningCLI finds data modules by their short names when they have been imported.
from lightning_lcs import data as _data  # noqa: F401
from lightning_lcs.commands._call import require_jsonargparse
from lightning_lcs.wrapper import CompressibleSubspaceWrapper


def read_recipe(args: Sequence[str], **options: Any) -> LightningCLI:
    """LightningCLI around the wrapper and any data module.

    Args:
        args: its arguments, instead of those of the process.
        options: LightningCLI's own.
    """
    require_jsonargparse("LightningCLI")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "LightningCLI's args parameter")  # meant for scripts; this is a command
        return LightningCLI(
            CompressibleSubspaceWrapper, LightningDataModule, subclass_mode_data=True, args=list(args), **options
        )
