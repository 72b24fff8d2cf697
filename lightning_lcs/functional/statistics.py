"""How far batch-norm statistics of a level are from those of another."""

from __future__ import annotations

import torch
from torch import Tensor


def statistics_drift(mean: Tensor, variance: Tensor, full_mean: Tensor, full_variance: Tensor) -> Tensor:
    """How far each channel's distribution has moved, in standard deviations of the full network's.

    The 2-Wasserstein distance of two normal distributions, per channel, over the full one's deviation:
    ``sqrt((mean - full_mean)^2 + (std - full_std)^2) / full_std``. 0 for equal statistics, 1 for a mean that has moved
    by one standard deviation.

    Args:
        mean: of a level, shape ``(C,)``.
        variance: of the level, same shape, not negative.
        full_mean: of the same channels at alpha = 1.
        full_variance: of the same channels at alpha = 1.

    Returns:
        Shape ``(C,)``, not negative. A channel that is constant at alpha = 1 counts with a deviation of 0.003, the root
        of what batch norm adds to a variance.
    """
    deviation, full_deviation = ((v.double() + 1e-5).sqrt() for v in (variance, full_variance))
    return torch.hypot(mean.double() - full_mean.double(), deviation - full_deviation) / full_deviation
