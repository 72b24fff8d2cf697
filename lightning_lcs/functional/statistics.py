"""Distance between the batch-norm statistics of two levels."""

from __future__ import annotations

import torch
from torch import Tensor


def statistics_drift(mean: Tensor, variance: Tensor, full_mean: Tensor, full_variance: Tensor) -> Tensor:
    """Distance of each channel's distribution from that at alpha = 1, in standard deviations of the latter.

    This is the 2-Wasserstein distance between two normal distributions, divided by the standard deviation at alpha = 1:
    ``sqrt((mean - full_mean)^2 + (std - full_std)^2) / full_std``. It is 0 for equal statistics, and 1 where only the
    mean differs, by one standard deviation.

    Args:
        mean: Means at the level, of shape ``(C,)``.
        variance: Variances at the level, of shape ``(C,)``, 0 or more.
        full_mean: Means of the same channels at alpha = 1, of shape ``(C,)``.
        full_variance: Variances of the same channels at alpha = 1, of shape ``(C,)``.

    Returns:
        A float64 tensor of shape ``(C,)``, 0 or more. 1e-5 is added to each variance, as batch norm does, so a channel
        that is constant at alpha = 1 has a standard deviation of 0.003.

    Example:
        >>> import torch
        >>> from lightning_lcs.functional.statistics import statistics_drift
        >>> zeros, ones = torch.zeros(2), torch.ones(2)
        >>> statistics_drift(torch.tensor([0.0, 1.0]), ones, zeros, ones).round(decimals=3).tolist()
        [0.0, 1.0]
    """
    deviation, full_deviation = ((v.double() + 1e-5).sqrt() for v in (variance, full_variance))
    return torch.hypot(mean.double() - full_mean.double(), deviation - full_deviation) / full_deviation
