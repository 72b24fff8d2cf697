"""Public names of a package that are imported when they are first used."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def lazy_names(
    module_name: str, homes: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """The ``__getattr__``, ``__dir__`` and ``__all__`` of a package that hands on names of its modules (PEP 562).

    Args:
        module_name: The package's ``__name__``.
        homes: By public name, the full name of the module that defines it.

    Example:
        >>> from lightning_lcs.utils.lazy import lazy_names
        >>> get, _, names = lazy_names("lightning_lcs.utils", {"warn": "lightning_lcs.utils.warning"})
        >>> names, get("warn").__name__
        (['warn'], 'warn')
    """

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {module_name!r} has no attribute {name!r}; it has: {', '.join(homes)}")
        return getattr(importlib.import_module(homes[name]), name)

    def names() -> list[str]:
        return sorted([*vars(sys.modules[module_name]), *homes])

    return get, names, list(homes)
