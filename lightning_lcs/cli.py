"""The command ``lightning-lcs``: LightningCLI around the wrapper and the data modules."""

from __future__ import annotations

from collections.abc import Sequence

from lightning.pytorch import LightningDataModule
from lightning.pytorch.cli import LightningCLI

# LightningCLI finds data modules by their short names when they have been imported.
from lightning_lcs import data as _data  # noqa: F401
from lightning_lcs.wrapper import CompressibleSubspaceWrapper


def main(args: Sequence[str] | None = None) -> None:
    """``lightning-lcs fit|validate|test|predict --config FILE``.

    Args:
        args: arguments instead of those of the process.
    """
    LightningCLI(
        CompressibleSubspaceWrapper,
        LightningDataModule,
        subclass_mode_data=True,
        seed_everything_default=0,
        # Without this the second run of the same command would refuse to overwrite its own configuration.
        save_config_kwargs={"overwrite": True},
        args=list(args) if args is not None else None,
    )


if __name__ == "__main__":
    main()
