"""Warnings that point to the user's line."""

from __future__ import annotations

import sys
import warnings
from types import FrameType

# Packages whose frames stand between the user's code and a warning: this one, and those that call it back.
_BETWEEN = {__name__.partition(".")[0], "torch", "lightning", "lightning_fabric", "pytorch_lightning", "contextlib"}


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the nearest line that is the user's own: outside of this package, torch and Lightning.

    Args:
        message: The text of the warning.
        category: The class of the warning. The default is ``UserWarning``.

    Example:
        >>> import warnings
        >>> from lightning_lcs.utils.warning import warn
        >>> with warnings.catch_warnings(record=True) as found:
        ...     warnings.simplefilter("always")
        ...     warn("the network is small")
        >>> print(found[0].message)
        the network is small
    """
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and _is_between(frame):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)


def _is_between(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0] in _BETWEEN
