"""``lightning-lcs fit|validate|test|predict``: LightningCLI around the wrapper and the data modules."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_lcs.cli.recipe import read_recipe


def training(args: Sequence[str]) -> None:
    """Run a subcommand of LightningCLI.

    Args:
        args: The subcommand and its arguments.
    """
    # Without overwriting, a second run of the same command would stop at the configuration file of the first.
    read_recipe(args, seed_everything_default=0, save_config_kwargs={"overwrite": True})
