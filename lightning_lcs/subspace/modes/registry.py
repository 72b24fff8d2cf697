"""The registry of modes by name, which also reads modes that are given as text."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from lightning_lcs.subspace.axis import Axis
from lightning_lcs.subspace.mode import Mode

SUBSPACES = ("line", "point")
MODES: dict[str, type[Mode]] = {}

AnyMode = TypeVar("AnyMode", bound=type[Mode])


def register_mode(name: str) -> Callable[[AnyMode], AnyMode]:
    """Make a class known as a mode: a name for options and files, and an axis for tables, plots and log keys.

    Args:
        name: The name, such as "structured".

    Raises:
        ValueError: The name, or the name of the axis, belongs to another mode.

    Example:
        >>> from lightning_lcs.subspace.modes.registry import MODES
        >>> MODES["structured"].__name__
        'Structured'
    """

    def register(mode: AnyMode) -> AnyMode:
        if name in MODES:
            raise ValueError(f"mode {name!r} is {MODES[name].__name__} already; choose another name")
        taken = axes().get(mode.axis.name)
        if taken is not None:
            raise ValueError(f"axis {mode.axis.name!r} of mode {name!r} belongs to another mode already: {taken}")
        MODES[name] = mode
        return mode

    return register


def axes() -> dict[str, Axis]:
    """The axis of every mode, by name."""
    return {mode.axis.name: mode.axis for mode in MODES.values()}


def check_subspace(subspace: str) -> str:
    """Return ``subspace``, or raise an error.

    Raises:
        ValueError: ``subspace`` is neither "line" nor "point".
    """
    if subspace not in SUBSPACES:
        raise ValueError(f"subspace={subspace!r} is not known; choose one of {', '.join(map(repr, SUBSPACES))}")
    return subspace


def parse_mode(mode: str | Mode | Mapping[str, Any]) -> Mode:
    """Make a mode from any form in which it may be given.

    Args:
        mode: A name ("structured", "unstructured", "quantized", or that of a mode of the user's own), a mode object, or
            a mapping as :func:`mode_to_dict` writes it.

    Raises:
        ValueError: The name, or an option, is not known.
    """
    if isinstance(mode, Mode):
        return mode
    if isinstance(mode, (list, tuple, set)):
        raise ValueError(f"mode={mode!r} names several modes, and a subspace has one: choose one of {', '.join(MODES)}")
    options = dict(mode) if isinstance(mode, Mapping) else {"name": mode}
    name = options.pop("name", "structured")
    if not isinstance(name, str) or name not in MODES:
        raise ValueError(f"mode={name!r} is not known; choose one of {', '.join(map(repr, MODES))}")
    known = [field.name for field in dataclasses.fields(MODES[name])]  # type: ignore[arg-type]
    unknown = [option for option in options if option not in known]
    if unknown:
        raise ValueError(f"mode={name!r} has no option {unknown[0]!r}; its options are {', '.join(map(repr, known))}")
    return MODES[name](**options)


def saved_mode(data: Mapping[str, Any]) -> Mode:
    """The mode that a checkpoint or a file holds, as :func:`mode_to_dict` wrote it.

    Files that were written before an option existed, or before its default changed, run as they did then.

    Args:
        data: The name of the mode and its options.

    Raises:
        ValueError: The name, or an option, is not known.
    """
    kind = MODES.get(str(data.get("name")))
    return parse_mode({**(kind.former_defaults if kind else {}), **data})


def mode_to_dict(mode: Mode) -> dict[str, Any]:
    """Plain data (numbers and text) that :func:`saved_mode` reads back; safe in checkpoints and hyperparameters."""
    options = {field.name: getattr(mode, field.name) for field in dataclasses.fields(mode)}  # type: ignore[arg-type]
    plain = {key: list(value) if isinstance(value, tuple) else copy.copy(value) for key, value in options.items()}
    return {"name": name_of(mode), **plain}


def name_of(mode: Mode) -> str:
    """The name under which a mode is registered.

    Raises:
        ValueError: It is not registered.
    """
    found = next((name for name, kind in MODES.items() if type(mode) is kind), None)
    if found is None:
        raise ValueError(f"{type(mode).__name__} is not a registered mode: decorate it with @register_mode(name)")
    return found
