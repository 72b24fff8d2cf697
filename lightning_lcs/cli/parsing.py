"""Runs typed functions as commands: parameters are arguments and options, and the docstring is the help."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import sys
import typing
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from lightning_lcs.utils.extras import needed_for

# How jsonargparse's own lines begin among the errors of a value that may have several types.
UNION_ERRORS = ("a class path", "a dict", "Does not validate", "Expected a", "Not a valid subclass", "Problem", "Type ")


def call(function: Callable[..., Any], args: Sequence[str], more: str = "") -> Any:
    """Parse the arguments of a command and call its function with them.

    Positional parameters without a default are arguments, all others are options. Options may have hyphens in place of
    underscores, lists may be given as several words (``--alphas 0 0.5 1``), and flags need no value (``--dry-run``).

    Args:
        function: The function, whose parameters have types.
        args: The name of the command, and what follows it.
        more: Text below the description in the help.
    """
    return call_all([function], args, more)


def call_all(functions: Sequence[Callable[..., Any]], args: Sequence[str], more: str = "") -> Any:
    """Call a function as :func:`call` does; further options are parameters of other functions.

    Args:
        functions: The function to call, then the functions whose parameters with a default become options, too. They
            reach the first function as keyword arguments.
        args: The name of the command, and what follows it.
        more: Text below the description in the help.
    """
    with needed_for(f"lightning-lcs {args[0]}"):
        from jsonargparse import ArgumentParser
    description = (inspect.getdoc(functions[0]) or "").partition("\nArgs:")[0].strip()
    parser = ArgumentParser(prog=f"lightning-lcs {args[0]}", description=f"{description} {more}".strip())
    parser.add_argument("--config", action="config", help="A file with options in YAML.")
    for number, function in enumerate(functions):
        given = inspect.signature(function).parameters.values()
        required = {p.name for p in given if p.default is p.empty and p.kind is not p.KEYWORD_ONLY}
        options: set[str | int] = {p.name for p in given if p.name not in required}
        others: set[str | int] = {p.name for p in given if p.name in required or p.kind is p.VAR_KEYWORD}
        if not number:
            parser.add_function_arguments(function, as_group=False, as_positional=True, skip=options)
        parser.add_function_arguments(function, as_group=False, skip=others)
    found = parser.parse_args(_normalised(functions, args[1:]))
    values = found.as_dict()
    values.pop("config", None)
    return functions[0](**values)


def split(function: Callable[..., Any], args: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split arguments into those that are options of a function and all others.

    Args:
        function: The function of a command.
        args: What follows the command's name.
    """
    own: list[str] = []
    others: list[str] = []
    taken = others
    for argument in args:
        if argument.startswith("--"):
            known = {*inspect.signature(function).parameters, "help"}
            taken = own if _name(argument) in known else others
        elif argument == "-h":
            taken = own
        taken.append(argument)
    return own, others


def import_user_module(name: str) -> ModuleType:
    """Import a module of the user; the current folder is searched, too, as with ``python -m``.

    Raises:
        ModuleNotFoundError: There is no such module.
    """
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    return importlib.import_module(name)


def imported(place: str) -> Any:
    """The object at ``package.module:name``; a class or a function there is called without arguments.

    Raises:
        ValueError: The place is not of this form, or the module has no such name.
    """
    home, colon, name = place.partition(":")
    if not colon or not home or not name:
        raise ValueError(f"--module {place!r} should have the form package.module:name, such as my_project.nets:Net")
    module = import_user_module(home)
    if not hasattr(module, name):
        raise ValueError(f"--module {place!r}: the module {home} has no {name!r}")
    found = getattr(module, name)
    return found() if inspect.isclass(found) or inspect.isroutine(found) else found


def plain_message(message: str) -> str:
    """The one error that a user can act on, of those that jsonargparse lists for each type that an option may have.

    Args:
        message: The message of an error; one that lists no types, or several such errors, is returned as it is.

    Example:
        >>> from lightning_lcs.cli.parsing import plain_message
        >>> plain_message("... Union subtypes\\nErrors:\\n  - warmup=2 is above 1\\n  - Expected a <class 'NoneType'>")
        'warmup=2 is above 1'
    """
    if "Union subtypes" not in message:
        return message
    lines = [line.strip() for line in message.splitlines()]
    errors = [line.removeprefix("- ") for line in lines if line.startswith(("- ", "Option "))]
    # What else is listed says that the value is none of the other types.
    ours = {error for error in errors if not error.startswith(UNION_ERRORS)}
    return ours.pop() if len(ours) == 1 else message


def _name(option: str) -> str:
    return option.removeprefix("--").partition("=")[0].replace("-", "_")


def _normalised(functions: Sequence[Callable[..., Any]], args: Sequence[str]) -> list[str]:
    """Arguments as jsonargparse takes them: names with underscores, lists in one word, flags with a value."""
    kinds = {name: kind for one in reversed(functions) for name, kind in typing.get_type_hints(one).items()}
    parameters = inspect.signature(functions[0]).parameters.values()
    positional = [p.name for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    words: list[str] = []  # arguments without an option before them
    options: list[str] = []
    rest = list(args)
    while rest:
        argument = rest.pop(0)
        if not argument.startswith("--"):
            (options if argument.startswith("-") and not _is_number(argument) else words).append(argument)
            continue
        name, equals, value = argument.partition("=")
        name = _name(name)
        kind = kinds.get(name)
        if equals or kind is None:
            options.append(f"--{name}{equals}{value}" if kind is not None else argument)
            # The value of an unknown option stays with it, so that the error of jsonargparse names the option.
            options += [rest.pop(0)] if not equals and kind is None and rest and not rest[0].startswith("-") else []
        elif kind is bool and not (rest and rest[0].lower() in ("true", "false")):
            options.append(f"--{name}=true")
        elif _is_list(kind):
            many = _words(rest)
            options.append(f"--{name}={_listed(many, kind)}")
        else:
            options += [f"--{name}", *([rest.pop(0)] if rest else [])]
    if positional and _is_list(kinds[positional[-1]]) and len(words) >= len(positional):
        fixed = len(positional) - 1
        words = [*words[:fixed], _listed(words[fixed:], kinds[positional[-1]])]
    return [*words, *options]


def _words(rest: list[str]) -> list[str]:
    """Take the words up to the next option."""
    many = []
    while rest and (not rest[0].startswith("-") or _is_number(rest[0])):
        many.append(rest.pop(0))
    return many


def _listed(words: Sequence[str], kind: Any) -> str:
    if len(words) == 1 and words[0].startswith("["):
        return words[0]
    numbers = any(part in (int, float) for part in _parts(kind))
    return f"[{', '.join(words)}]" if numbers else json.dumps(list(words))


def _is_list(kind: Any) -> bool:
    return any(typing.get_origin(part) is list for part in (kind, *typing.get_args(kind)))


def _parts(kind: Any) -> list[Any]:
    """A type and all types that it is made of."""
    return [kind, *(part for inner in typing.get_args(kind) for part in _parts(inner))]


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
