"""Options given by keyword: groups of them as objects or mappings, and errors that name the option that was meant."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import numbers
from collections.abc import Callable, Collection, Mapping
from typing import Any, ParamSpec, TypeVar

Group = TypeVar("Group")
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def parse_options(kind: type[Group], value: Group | Mapping[str, Any] | None, argument: str) -> Group:
    """A group of options as an object.

    Args:
        kind: The frozen dataclass of the group.
        value: The object itself, a mapping of its options, or ``None`` for the defaults.
        argument: The name of the argument that the value was given for.

    Raises:
        TypeError: The value is none of these.
        ValueError: The mapping holds an option that the group does not have, or a value outside its range.

    Example:
        >>> from lightning_lcs.subspace.weights.line import Line
        >>> parse_options(Line, {"parameters": "all"}, "line").parameters
        'all'
    """
    if value is None:
        return kind()
    if isinstance(value, kind):
        return value
    if not isinstance(value, Mapping):
        raise TypeError(f"{argument}={value!r} is not a {kind.__name__}; give {kind.__name__}(...) or a mapping")
    names = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    for name in value:
        if name not in names:
            raise ValueError(
                f"{argument} has no option {name!r}{did_you_mean(name, names)}; its options are "
                f"{', '.join(map(repr, names))}"
            )
    return kind(**value)


# How an annotation is said in words, and the values that fit it; numbers of NumPy do, true and false are no numbers.
_KINDS: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "None": ("None", lambda value: value is None),
    "bool": ("true or false", lambda value: isinstance(value, bool)),
    "int": ("a whole number", lambda value: isinstance(value, numbers.Integral) and not isinstance(value, bool)),
    "float": ("a number", lambda value: isinstance(value, numbers.Real) and not isinstance(value, bool)),
    "str": ("a text", lambda value: isinstance(value, str)),
}


def check_types(group: Any) -> None:
    """Refuse an option of another type than its annotation, where that is made of plain types.

    Args:
        group: An object of a dataclass of options, whose module has ``from __future__ import annotations``.

    Raises:
        TypeError: With the option, its value, and what it may be.

    Example:
        >>> from lightning_lcs import Quantized
        >>> Quantized(min_bits="3")
        Traceback (most recent call last):
        TypeError: Quantized(min_bits='3') is not a whole number
    """
    for field in dataclasses.fields(group):
        value = getattr(group, field.name)
        allowed = misfit(value, str(field.type))
        if allowed:
            raise TypeError(f"{type(group).__name__}({field.name}={value!r}) is not {allowed}")


def misfit(value: Any, annotation: str) -> str:
    """What a value should be that is of another type than an annotation; empty where it fits, or may.

    Args:
        value: The value.
        annotation: The annotation; one that is not made of plain types fits everything.

    Example:
        >>> from lightning_lcs.utils.options import misfit
        >>> misfit("3", "int | None"), misfit(3, "int | None")
        ('a whole number', '')
    """
    kinds = [_KINDS.get(name) for name in annotation.split(" | ")]
    known = [kind for kind in kinds if kind is not None]
    if len(known) < len(kinds) or any(fits(value) for _, fits in known):
        return ""
    return " or ".join(words for words, _ in known if words != "None")


def checked_keywords(
    places: Callable[[], Mapping[str, str]],
) -> Callable[[Callable[Arguments, Result]], Callable[Arguments, Result]]:
    """Decorate a constructor so that an unknown keyword is a ``TypeError`` that says what was meant.

    The signature stays what it was, for editors, type checkers and LightningCLI alike.

    Args:
        places: Gives the names that are options somewhere else, with the end of a sentence that says where: "is now
            sampling=Sampling(alphas_per_step=...)".
    """

    def decorate(constructor: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        names = [name for name in inspect.signature(constructor).parameters if name != "self"]

        @functools.wraps(constructor)
        def construct(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
            for name in kwargs:
                if name not in names:
                    raise TypeError(_misplaced(constructor.__qualname__.partition(".")[0], name, names, places()))
            return constructor(*args, **kwargs)

        return construct

    return decorate


def did_you_mean(name: str, known: Collection[str]) -> str:
    """A clause for an error message that names the known names closest to a name; empty where none is close."""
    close = difflib.get_close_matches(str(name), known, n=2)
    return f" (did you mean {' or '.join(map(repr, close))}?)" if close else ""


def _misplaced(owner: str, name: str, names: Collection[str], places: Mapping[str, str]) -> str:
    if name in places:
        return f"{owner}: {name} {places[name]}"
    close = difflib.get_close_matches(name, [*names, *places], n=1)
    hints = [f"; {known} {places[known]}" for known in close if known in places]
    meant = did_you_mean(name, [*names, *places])
    return f"{owner} has no option {name!r}{meant}{''.join(hints)}; its options are {', '.join(names)}"
