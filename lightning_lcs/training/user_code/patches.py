"""Attributes of the user's objects that are replaced while a trainer runs, and put back afterwards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_LIGHTNING = ("lightning.", "pytorch_lightning.")


def is_overridden(owner: Any, name: str) -> bool:
    """Whether a method of a module or a callback is the user's own, and not Lightning's under either of its names.

    Args:
        owner: The module or the callback.
        name: The name of the method.
    """
    method = getattr(owner, name, None)
    method = getattr(method, "__wrapped__", method)
    return method is not None and not str(method.__module__).startswith(_LIGHTNING)


class Patches:
    """Sets attributes on objects, and puts the earlier ones back."""

    def __init__(self) -> None:
        self._before: list[tuple[Any, str, bool, Any]] = []

    def set(self, target: Any, name: str, value: Any) -> None:
        """Set an attribute in the object's own ``__dict__``."""
        self._before.append((target, name, name in target.__dict__, target.__dict__.get(name)))
        target.__dict__[name] = value

    def undo(self) -> None:
        """Put everything back, the last change first."""
        while self._before:
            target, name, had, value = self._before.pop()
            if had:
                target.__dict__[name] = value
            else:
                target.__dict__.pop(name, None)


class StandIn:
    """Replaces a bound method by a function that also takes that method: ``instead(original, *args, **kwargs)``.

    A copy or a pickle of the object that it was set on holds the method itself again, because a copy made while
    training belongs to no trainer.

    Args:
        original: The bound method.
        instead: Takes the original and the arguments of the call.
    """

    def __init__(self, original: Callable[..., Any], instead: Callable[..., Any]) -> None:
        self._original = original
        # Lightning reads signatures through this name, one level deep: it is the user's own method.
        self.__wrapped__: Callable[..., Any] = original.__wrapped__ if isinstance(original, StandIn) else original
        self._instead = instead

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the replacement."""
        return self._instead(self._original, *args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        return _itself, (self.__wrapped__,)


def _itself(original: Callable[..., Any]) -> Callable[..., Any]:
    return original
