"""Line: the options of the line between two endpoints."""

from __future__ import annotations

import dataclasses

from lightning_lcs.utils.options import check_types

LINE_PARAMETERS = ("norm", "backbone", "all")
ENDPOINT_STARTS = ("copy", "independent")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    """Options of a line: which parameters have two endpoints, and how endpoint 0 starts and is kept apart.

    With ``subspace="point"`` they have no effect.

    Args:
        parameters: The parameters that lie on the line: "norm" (scale and shift of the normalization layers, as in
            structured mode of arXiv 2110.04252), "backbone" (all parameters except those of the last linear layer, the
            head, as in the paper's other two modes) or "all". The default is "norm".
        start: How endpoint 0 starts: "copy" (as a copy of the network's weights) or "independent" (each weight of two
            or more dimensions is redrawn with its own mean and standard deviation). The default is "copy".
        diversity_weight: The weight of the squared cosine between the endpoints in the loss of each training step, at
            least 0. It is 1 in the paper. The default is 0.

    Raises:
        ValueError: An option is outside its range.
        TypeError: An option has another type.

    Example:
        >>> from lightning_lcs import LCSCallback, Line
        >>> callback = LCSCallback("unstructured", subspace="line", line=Line(parameters="backbone"))
        >>> callback.line
        Line(parameters='backbone', start='copy', diversity_weight=0.0)
    """

    parameters: str = "norm"
    start: str = "copy"
    diversity_weight: float = 0.0

    def __post_init__(self) -> None:
        check_types(self)
        for option, known in (("parameters", LINE_PARAMETERS), ("start", ENDPOINT_STARTS)):
            value = getattr(self, option)
            if value not in known:
                raise ValueError(f"Line({option}={value!r}) is not known; choose one of {', '.join(map(repr, known))}")
        if not self.diversity_weight >= 0:
            raise ValueError(f"Line(diversity_weight={self.diversity_weight!r}) is negative; 0 turns the term off")
