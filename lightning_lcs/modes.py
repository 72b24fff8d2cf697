"""The compression modes: frozen options, and the map from alpha to what a level of compression means.

Throughout the project alpha lies in [0, 1]; 1 is the full model, 0 the most compressed one.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Structured:
    """Channel width: every group of coupled channels keeps its first ``round(C * width)`` channels, at least one.

    ``width(alpha) = min_width + (1 - min_width) * alpha`` (arXiv 2110.04252, section 4.1, with ``min_width = 0.25``).

    Args:
        min_width: share of channels kept at alpha = 0, in (0, 1].

    Raises:
        ValueError: ``min_width`` is not in (0, 1].
    """

    min_width: float = 0.25

    def __post_init__(self) -> None:
        if not 0.0 < self.min_width <= 1.0:
            raise ValueError(
                f"min_width={self.min_width!r} is not in (0, 1]: it is the share of channels kept at alpha = 0; "
                "use, for example, 0.25"
            )

    def width(self, alpha: float) -> float:
        """Share of channels kept at ``alpha``, in [min_width, 1]."""
        return self.min_width + (1.0 - self.min_width) * check_alpha(alpha)


Mode = Structured
MODES: dict[str, type[Mode]] = {"structured": Structured}
SUBSPACES = ("line", "point")


def check_alpha(alpha: float) -> float:
    """``alpha`` as a float.

    Raises:
        ValueError: it is not a number in [0, 1] (NaN included).
    """
    try:
        value = float(alpha)
    except (TypeError, ValueError):
        value = math.nan
    if math.isnan(value) or not 0.0 <= value <= 1.0:
        raise ValueError(f"alpha={alpha!r} is not in [0, 1]: 1 is the full model, 0 the most compressed one")
    return value


def check_subspace(subspace: str) -> str:
    """``subspace`` itself.

    Raises:
        ValueError: it is neither "line" nor "point".
    """
    if subspace not in SUBSPACES:
        raise ValueError(f"subspace={subspace!r} is not known; choose one of {', '.join(map(repr, SUBSPACES))}")
    return subspace


def parse_mode(mode: str | Mode | Mapping[str, Any]) -> Mode:
    """The one place where a mode given as text is read.

    Args:
        mode: a name ("structured"), a mode object, or a mapping as :func:`mode_to_dict` writes it.

    Raises:
        ValueError: the name is not known.
    """
    if isinstance(mode, Structured):
        return mode
    options = dict(mode) if isinstance(mode, Mapping) else {"name": mode}
    name = options.pop("name", "structured")
    if name not in MODES:
        raise ValueError(f"mode={name!r} is not known; choose one of {', '.join(map(repr, MODES))}")
    return MODES[name](**options)


def mode_to_dict(mode: Mode) -> dict[str, Any]:
    """Plain data (numbers and text) that :func:`parse_mode` reads back; safe in checkpoints and hyperparameters."""
    name = next(key for key, kind in MODES.items() if isinstance(mode, kind))
    return {"name": name, **dataclasses.asdict(mode)}
