"""Warnings that point at the user's own line."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

_PACKAGE = f"{Path(__file__).parents[1]}/"


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the first line outside of this package that led here.

    Args:
        message: The text of the warning.
        category: The class of the warning.
    """
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level - 1)
