"""The command ``lightning-lcs``: LightningCLI around the wrapper and the data modules."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from lightning.pytorch import LightningDataModule
from lightning.pytorch.cli import LightningCLI

# LightningCLI finds data modules by their short names when they have been imported.
from lightning_lcs import data as _data  # noqa: F401
from lightning_lcs.compare import compare
from lightning_lcs.wrapper import CompressibleSubspaceWrapper


def main(args: Sequence[str] | None = None) -> None:
    """``lightning-lcs fit|validate|test|predict|compare --config FILE``.

    Args:
        args: arguments instead of those of the process.
    """
    given = list(sys.argv[1:] if args is None else args)
    if given[:1] == ["compare"]:
        compare(given[1:])
        return
    LightningCLI(
        CompressibleSubspaceWrapper,
        LightningDataModule,
        subclass_mode_data=True,
        seed_everything_default=0,
        # Without this the second run of the same command would refuse to overwrite its own configuration.
        save_config_kwargs={"overwrite": True},
        args=None if args is None else given,
    )


if __name__ == "__main__":
    main()
