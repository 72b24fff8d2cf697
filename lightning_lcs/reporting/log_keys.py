"""The names and values under which loggers get a curve."""

from __future__ import annotations

import re

from lightning_lcs.subspace.curves.curve import Curve, metric_names


def alpha_key(alpha: float) -> str:
    """The name of a level in a log key, in hundredths.

    Args:
        alpha: The level.

    Example:
        >>> from lightning_lcs.reporting.log_keys import alpha_key
        >>> alpha_key(0.5)
        'alpha_050'
    """
    return f"alpha_{round(100 * alpha):03d}"


def log_key(metric: str, suffix: str) -> str:
    """The log key of a curve's value, which holds ``[a-z0-9_/]`` only.

    Args:
        metric: The name of the metric.
        suffix: What follows, such as :func:`alpha_key` or "mean".

    Example:
        >>> from lightning_lcs.reporting.log_keys import log_key
        >>> log_key("Val Acc", "mean")
        'lcs/val_acc/mean'
    """
    return "lcs/" + re.sub(r"[^a-z0-9_/]", "_", metric.lower()) + f"/{suffix}"


def log_values(curve: Curve) -> dict[str, float]:
    """Every metric at every level, its mean over the curve, and the latencies, by log key.

    Args:
        curve: The curve.

    Example:
        >>> from lightning_lcs.reporting.log_keys import log_values
        >>> from lightning_lcs.reporting import CurvePoint
        >>> cost = {"sparsity": 0.0, "bit_width": 32, "params": 10, "macs": 20, "size_bytes": 40, "latency_ms": 1.0}
        >>> small = CurvePoint(alpha=0.0, width=0.25, **cost, metrics={"val_acc": 0.8})
        >>> full = CurvePoint(alpha=1.0, width=1.0, **{**cost, "macs": 90}, metrics={"val_acc": 0.9})
        >>> log_values([small, full])["lcs/val_acc/alpha_100"]
        0.9
    """
    values: dict[str, float] = {}
    for name in metric_names(curve):
        measured = [(point.alpha, point.metrics[name]) for point in curve if name in point.metrics]
        values |= {log_key(name, alpha_key(alpha)): value for alpha, value in measured}
        values[log_key(name, "mean")] = sum(value for _, value in measured) / len(measured)
    values |= {
        log_key("latency_ms", alpha_key(point.alpha)): point.latency_ms
        for point in curve
        if point.latency_ms == point.latency_ms
    }
    return values
