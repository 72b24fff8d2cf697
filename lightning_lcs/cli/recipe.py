"""Reads a recipe from YAML files and options, with LightningCLI."""

from __future__ import annotations

import argparse
import difflib
import inspect
import os
import re
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from lightning.pytorch import LightningDataModule, Trainer

# The data modules above are imported so that LightningCLI finds them by their short names.
from lightning_lcs.cli.parsing import plain_message
from lightning_lcs.data import adapter, digits, fashion_mnist, vision  # noqa: F401
from lightning_lcs.training.options import places
from lightning_lcs.utils.extras import needed_for
from lightning_lcs.wrapper import CompressibleSubspaceWrapper

with needed_for("LightningCLI"):
    import jsonargparse  # noqa: F401  # Lightning's own error does not say how to install it
    from lightning.pytorch.cli import LightningCLI


def read_recipe(args: Sequence[str], **options: Any) -> LightningCLI:
    """Run LightningCLI for the wrapper and any data module.

    Args:
        args: The arguments of the command line.
        options: The options of LightningCLI itself.

    Raises:
        ArgumentError: An option or a value is not known.
    """
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # finds modules of the user, as `python -m` does
    raising = {"exit_on_error": False}  # raise an error instead of printing the usage, which is longer than a screen
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "LightningCLI's args parameter"
        )  # the warning is meant for scripts, and this is a command
        warnings.filterwarnings("ignore", ".*LeafSpec.*is deprecated")  # comes from Lightning's use of torch
        try:
            return LightningCLI(
                CompressibleSubspaceWrapper,
                LightningDataModule,
                subclass_mode_data=True,
                args=list(args),
                parser_kwargs={**raising, **dict.fromkeys(LightningCLI.subcommands(), raising)},
                **options,
            )
        except argparse.ArgumentError as error:
            raise argparse.ArgumentError(None, f"{plain_message(error.message)}{suggestion(error.message)}") from error


def suggestion(message: str) -> str:
    """A suggestion for an unknown option in a message; empty if no option is similar."""
    for word in re.findall(r"(?:model\.|Option ')(\w+)", message):
        if word in places():
            return f"; {word} {places()[word]}"
    objects = {"model": CompressibleSubspaceWrapper, "trainer": Trainer}
    known = [f"{name}.{option}" for name, kind in objects.items() for option in inspect.signature(kind).parameters]
    for word in re.findall(r"(?:model|trainer)\.\w+", message):
        close = [] if word in known else difflib.get_close_matches(word, known, 1)
        if close:
            return f"; did you mean {close[0]}?"
    return ""
