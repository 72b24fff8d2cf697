"""Affine quantization in plain numpy, in double precision."""

import numpy as np


def oracle(x: np.ndarray, low: float, high: float, bits: int) -> np.ndarray:
    """The formulas of arXiv 2110.04252, one after the other."""
    qmin, qmax = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / (2**bits - 1) or 1.0
    zero_point = np.clip(np.round(qmin - low / scale), qmin, qmax)
    q = np.clip(np.round(x / scale) + zero_point, qmin, qmax)
    return (q - zero_point) * scale
