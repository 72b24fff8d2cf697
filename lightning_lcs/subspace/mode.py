"""What every compression mode has: the axis along which its levels lie."""

from __future__ import annotations

import dataclasses


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
        >>> from lightning_lcs.subspace.mode import Axis
        >>> Axis("width", "Channel width").formatted(0.5)
        '0.500'
    """

    name: str
    label: str
    unit: str = ""
    format: str = ".3f"
    full: float = 1.0

    def formatted(self, value: float) -> str:
        """The value as text, with its unit."""
        return f"{value:{self.format}}{f' {self.unit}' if self.unit else ''}"
