"""Where levels lie: on alpha in [0, 1], and on the axis of the quantity that they change."""

from __future__ import annotations

import dataclasses
import math
from typing import Any


@dataclasses.dataclass(frozen=True)
class Axis:
    """The quantity that the levels of a mode change, for tables, plots, reports and log keys.

    Attributes:
        name: The name in :class:`Efficiency`, in CSV columns and in log keys: lower-case letters, digits and "_".
        label: The label in tables and plots, such as "Channel width".
        unit: The unit that follows a value; empty for shares and counts.
        format: The format specification of a value, as for :func:`format`.
        full: The value of a network that is not compressed.

    Example:
        >>> from lightning_lcs.subspace.axis import Axis
        >>> Axis("width", "Channel width").formatted(0.5)
        '0.500'
    """

    name: str
    label: str
    unit: str = ""
    format: str = ".3f"
    full: float = 1.0

    def formatted(self, value: float) -> str:
        """The value as text, with its unit.

        Args:
            value: The value on the axis.
        """
        return f"{value:{self.format}}{f' {self.unit}' if self.unit else ''}"


def check_alpha(alpha: Any) -> float:
    """``alpha`` as a float.

    Raises:
        ValueError: It is not a number in [0, 1] (NaN included).
    """
    try:
        value = float(alpha)
    except (TypeError, ValueError):
        value = math.nan
    if math.isnan(value) or not 0.0 <= value <= 1.0:
        named = "; set_level() takes the name of a level" if isinstance(alpha, str) else ""
        raise ValueError(f"alpha={alpha!r} is not in [0, 1]: 1 is the full model, 0 the most compressed one{named}")
    return value
