"""The cost of a level, and a level of a measured curve."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True, kw_only=True)
class Efficiency:
    """The cost of one level.

    Attributes:
        alpha: the level that runs; with stored batch-norm statistics, the nearest stored one.
        width: share of channels kept.
        sparsity: share of zeros in the weights that the mode compresses; :meth:`SubspaceModel.report` names the others.
        bit_width: bits of the weights that the mode compresses, without those whose bits are fixed.
        params: number of parameters that are not zero by compression.
        macs: multiply-accumulates of one sample of the shape seen first (1 MAC = 2 FLOPs), over convolutions and matrix
            products. Those with a weight that is zero are not counted: dense kernels run them all the same.
        size_bytes: parameters, and the buffers that evaluation reads, in bytes; a sparse weight as its entries that
            are not zero and one bit per entry, a quantized one as its integers, scales and zero points.
    """

    alpha: float
    width: float
    sparsity: float
    bit_width: int
    params: int
    macs: int
    size_bytes: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class CurvePoint(Efficiency):
    """One level of a curve: its cost (see :class:`Efficiency`) and what was measured there.

    Attributes:
        latency_ms: median time of a forward with one sample on the machine that measured it; NaN if it was not.
        metrics: the user's own validation metrics at this level, by their own names.
    """

    latency_ms: float
    metrics: Mapping[str, float]
