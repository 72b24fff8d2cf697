"""The cost of a level, and a level of a measured curve."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias


@dataclasses.dataclass(frozen=True, kw_only=True)
class Efficiency:
    """The cost of one level.

    Attributes:
        alpha: The level that runs; with stored batch-norm statistics, the nearest stored level.
        width: The share of channels that are kept, in (0, 1].
        sparsity: The share of zeros in the weights that the mode compresses, in [0, 1).
            :meth:`SubspaceModel.report` names the other weights.
        bit_width: The bits of the weights that the mode compresses, without weights whose bits are fixed.
        params: The number of parameters that are not zero by compression.
        macs: The multiply-accumulates of one sample of the shape that the network saw first (1 MAC is 2 FLOPs), over
            convolutions and matrix products. Products with a weight that is zero do not count, although dense kernels
            compute them.
        size_bytes: The size of the parameters, and of the buffers that evaluation reads, in bytes. A sparse weight
            counts as its nonzero entries and one bit per entry, a quantized weight as its integers, scales and zero
            points.
        settings: The values of axes that are not ``width``, ``sparsity`` or ``bit_width``, by the name of the axis:
            those of compression modes of your own. The default is empty.

    Example:
        >>> from lightning_lcs.subspace.curves.curve import Efficiency
        >>> counts = {"params": 10, "macs": 20, "size_bytes": 40}
        >>> cost = Efficiency(alpha=0.0, width=1.0, sparsity=0.0, bit_width=32, **counts, settings={"rank": 0.5})
        >>> cost.value("macs"), cost.value("rank")
        (20, 0.5)
    """

    alpha: float
    width: float
    sparsity: float
    bit_width: int
    params: int
    macs: int
    size_bytes: int
    settings: Mapping[str, float] = dataclasses.field(default_factory=dict, hash=False)

    @classmethod
    def on_axis(cls, name: str, value: float, *, alpha: float, params: int, macs: int, size_bytes: int) -> Efficiency:
        """The cost of a level that lies on one axis; on the others it is the full network.

        Args:
            name: The name of the axis.
            value: The value of the level on the axis.
            alpha: The level that runs, in [0, 1].
            params: The number of parameters that are not zero by compression.
            macs: The multiply-accumulates of one sample.
            size_bytes: The size of the parameters and buffers, in bytes.
        """
        known: dict[str, Any] = {"width": 1.0, "sparsity": 0.0, "bit_width": 32}
        on_axis = {**known, name: value} if name in known else {**known, "settings": {name: value}}
        return cls(**on_axis, alpha=alpha, params=params, macs=macs, size_bytes=size_bytes)

    def value(self, name: str) -> float:
        """The value of a cost or of an axis by its name.

        Args:
            name: The name of a cost or an axis, such as "macs" or "width".

        Returns:
            The value; NaN for an axis that the level does not lie on.
        """
        value: float = getattr(self, name) if name in self.__dataclass_fields__ else self.settings.get(name, math.nan)
        return value


@dataclasses.dataclass(frozen=True, kw_only=True)
class CurvePoint(Efficiency):
    """One level of a measured curve: its cost (see :class:`Efficiency`) and what was measured there.

    Attributes:
        alpha: The level that runs, in [0, 1].
        width: The share of channels that are kept, in (0, 1].
        sparsity: The share of zeros in the compressed weights, in [0, 1).
        bit_width: The bits of the compressed weights; 32 where they are not quantized.
        params: The number of parameters that are not zero by compression.
        macs: The multiply-accumulates of one sample.
        size_bytes: The size of the parameters and buffers, in bytes.
        settings: The values on the axes of compression modes of your own, by the name of the axis. The default is
            empty.
        latency_ms: The median time of a forward with one sample on the machine that measured it, in milliseconds; NaN
            if it was not measured.
        metrics: Your own validation metrics at this level, by the names under which they were logged.
        weights: The fingerprint of the weights that it was measured at; see
            :func:`lightning_lcs.subspace.fingerprint.fingerprint`. The default is empty: it is not known.

    Example:
        >>> from lightning_lcs.reporting import CurvePoint
        >>> counts = {"params": 10, "macs": 20, "size_bytes": 40}
        >>> cost = {"width": 0.25, "sparsity": 0.0, "bit_width": 32, **counts}
        >>> point = CurvePoint(alpha=0.0, **cost, latency_ms=1.5, metrics={"val_acc": 0.9})
        >>> point.width, point.metrics["val_acc"]
        (0.25, 0.9)
    """

    latency_ms: float
    metrics: Mapping[str, float]
    weights: str = ""


Curve: TypeAlias = Sequence[CurvePoint]


def metric_names(curve: Curve) -> list[str]:
    """The names of the metrics on a curve, in the order in which they were logged."""
    return list(dict.fromkeys(name for point in curve for name in point.metrics))
