"""The command ``lightning-lcs``."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NamedTuple

from lightning_lcs.cli.parsing import call, plain_message
from lightning_lcs.utils.extras import needed_for


class Command(NamedTuple):
    """A command.

    Attributes:
        home: The module and the function, which are imported when the command is used.
        line: One line about the command.
        parses: Whether the function takes the arguments themselves. The default is that its parameters are the
            arguments and options of the command.
    """

    home: str
    line: str
    parses: bool = False


# A command's module is imported when the command is used: commands for devices need neither Lightning nor timm.
COMMANDS = {
    "fit": Command("fit.training", "train a timm model as a compressible subspace", parses=True),
    "validate": Command("fit.training", "measure a checkpoint's curve on the validation data", parses=True),
    "test": Command("fit.training", "measure a checkpoint's curve on the test data", parses=True),
    "predict": Command("fit.training", "run a checkpoint on a data module's images", parses=True),
    "coverage": Command("coverage.coverage", "say how far networks of timm and torchvision can be narrowed"),
    "inspect": Command("inspect.inspect", "verify a model.lcs, and say what is in it"),
    "levels": Command("levels.show_levels", "print the level table of a model.lcs"),
    "materialize": Command("materialize.materialize", "cut one level out of a model.lcs"),
    "bench": Command("bench.bench", "time the levels of a model.lcs on this machine"),
    "export": Command("export.export", "write levels of a model.lcs for ONNX and other runtimes", parses=True),
    "compare": Command("compare.compare", "train several methods on one recipe, and compare their curves", parses=True),
    "report": Command("report.report", "write an HTML page about one or more runs"),
    "dashboard": Command("dashboard.dashboard", "make a W&B workspace over the runs of a project"),
    "demo": Command("demo.demo", "train on real images in minutes, and show the curve"),
    "serve-demo": Command(
        "serve_demo.serve_demo", "keep a latency target under CPU load, with real images", parses=True
    ),
}

# Errors that the user can fix; they are shown as one sentence, without a traceback.
EXPECTED = (ValueError, TypeError, RuntimeError, OSError, ImportError)


def main(args: Sequence[str] | None = None) -> None:
    """Run a command of ``lightning-lcs``.

    An error is one sentence on the error stream; ``--debug`` shows where it came from.

    Args:
        args: The name of the command, and its arguments. The default is those of the process.

    Raises:
        SystemExit: The command failed (status 1), or it was called in the wrong way (status 2).

    Example:
        >>> import torch
        >>> from lightning_lcs import SubspaceModel
        >>> from lightning_lcs.cli.main import main
        >>> network = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> SubspaceModel(network, torch.randn(2, 4)).eval().save("model.lcs", levels=[0.0, 1.0])
        >>> main(["levels", "model.lcs"])
        Levels
        <BLANKLINE>
         name   alpha  width  params  MACs       size  latency
         ─────────────────────────────────────────────────────
         small  0.000  0.250      16    12  0.0640 kB
         full   1.000  1.000      58    48   0.232 kB
        <BLANKLINE>
    """
    given = list(sys.argv[1:] if args is None else args)
    if "--debug" in given:
        given.remove("--debug")
        return run(given)
    try:
        run(given)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of the output, such as ``head``, closed the pipe. At exit Python would flush the output again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except argparse.ArgumentError as error:
        print(
            f"lightning-lcs: {' '.join(str(error).split())} (see lightning-lcs {given[0]} --help)",
            file=sys.stderr,
        )
        raise SystemExit(2) from None
    except Exception as error:
        # Lightning's error for wrong settings has a class of its own; importing it here would take seconds.
        if not isinstance(error, EXPECTED) and type(error).__name__ != "MisconfigurationException":
            raise
        print(f"lightning-lcs: {plain_message(str(error))} (--debug shows where)", file=sys.stderr)
        raise SystemExit(1) from None


def run(args: Sequence[str]) -> None:
    """Run a command; its errors pass through.

    Args:
        args: The name of the command and its arguments.
    """
    name = args[0] if args else "--help"
    if name in ("-h", "--help"):
        print(overview())
        return
    if name not in COMMANDS:
        print(f"lightning-lcs: there is no command {name!r}; the commands are {', '.join(COMMANDS)}", file=sys.stderr)
        raise SystemExit(2)
    module, _, function = COMMANDS[name].home.rpartition(".")
    with needed_for(f"lightning-lcs {name}"):
        command = getattr(importlib.import_module(f"lightning_lcs.cli.{module}"), function)
        if COMMANDS[name].parses:
            command(args)
        else:
            call(command, args)


def overview() -> str:
    """The overview of all commands, one line each."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.line}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: lightning-lcs COMMAND [options] [--debug]",
            "",
            "One training run, one checkpoint, every size.",
            "",
            *lines,
            "",
            "lightning-lcs COMMAND --help says more about a command.",
        ]
    )
