"""A typed function as a command: its parameters are options, its docstring is the help."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any


def call(function: Callable[..., Any], args: Sequence[str]) -> Any:
    """Parse the arguments of a command and call its function with them.

    Args:
        function: its positional parameters without a default are arguments, all others are options.
        args: the command's name, and what follows it.
    """
    require_jsonargparse(args[0])
    from jsonargparse import auto_cli

    return auto_cli(function, args=list(args[1:]), prog=f"lightning-lcs {args[0]}", as_positional=True)


def require_jsonargparse(command: str) -> None:
    """Raise where jsonargparse is missing.

    Args:
        command: what needs it.

    Raises:
        ModuleNotFoundError: it is missing.
    """
    try:
        import jsonargparse  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{command} needs jsonargparse: pip install 'lightning-lcs[cli]'") from error
