"""Public names of a package that are imported when they are first used (PEP 562)."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def lazy_names(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """The ``__getattr__`` of a package.

    Args:
        package: The name of the package.
        homes: For each public name, the module that defines it.

    Example:
        >>> get = lazy_names("numbers", {"sqrt": "math"})
        >>> get("sqrt")(9.0)
        3.0
    """

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}; it has: {', '.join(homes)}")
        return getattr(importlib.import_module(homes[name]), name)

    return get
