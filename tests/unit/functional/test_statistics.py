"""Drift of batch-norm statistics: its definition on samples, and its scale."""

import torch

from lightning_lcs.functional.statistics import statistics_drift

TOLERANCE = 1e-4


def test_equal_statistics_have_not_moved():
    mean, variance = torch.randn(8), torch.rand(8)
    assert torch.equal(statistics_drift(mean, variance, mean, variance), torch.zeros(8, dtype=torch.float64))


def test_a_mean_that_moves_by_a_deviation_is_1_and_a_doubled_deviation_too():
    mean, variance = torch.tensor([3.0, 3.0]), torch.tensor([4.0, 4.0])
    moved = statistics_drift(mean + torch.tensor([2.0, 0.0]), torch.tensor([4.0, 16.0]), mean, variance)
    assert torch.allclose(moved, torch.ones(2, dtype=torch.float64), atol=TOLERANCE)


def test_it_is_the_wasserstein_distance_of_normal_distributions():
    # In one dimension: the root mean square difference of equal quantiles.
    quantiles = torch.linspace(1e-5, 1 - 1e-5, 200_001, dtype=torch.float64)
    normal = torch.special.ndtri(quantiles)
    squares = ((0.7 + 1.5 * normal) - (0.2 + 0.5 * normal)).square().mean()
    drift = statistics_drift(*map(torch.tensor, (0.7, 2.25, 0.2, 0.25)))
    assert abs(drift - squares.sqrt() / 0.5) < 1e-3


def test_scaling_a_channel_changes_nothing():
    values = [torch.tensor([v]) for v in (0.7, 2.25, 0.2, 0.25)]
    scaled = [v * f for v, f in zip(values, (10, 100, 10, 100), strict=True)]
    assert abs(statistics_drift(*values) - statistics_drift(*scaled)) < TOLERANCE


def test_a_constant_channel_gives_a_number():
    zero = torch.zeros(1)
    assert torch.isfinite(statistics_drift(torch.ones(1), torch.ones(1), zero, zero)).all()
