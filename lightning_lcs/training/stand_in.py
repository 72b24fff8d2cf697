"""What stands in for methods of the user's module while a trainer runs it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class StandIn:
    """Called in the place of a method, with which it is called first: ``instead(original, *args, **kwargs)``.

    A copy, and a pickle, of the object that it was set on holds the method itself again: a copy made while training
    belongs to no trainer.

    Args:
        original: the bound method.
        instead: takes the original and the arguments of the call.
    """

    def __init__(self, original: Callable[..., Any], instead: Callable[..., Any]) -> None:
        self.__wrapped__ = original  # Lightning reads signatures through this name
        self._instead = instead

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call what stands in."""
        return self._instead(self.__wrapped__, *args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        return _itself, (self.__wrapped__,)


def _itself(original: Callable[..., Any]) -> Callable[..., Any]:
    return original
