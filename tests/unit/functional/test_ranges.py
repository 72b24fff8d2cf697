"""Searches for ranges against every range that they try, and many tensors at once against one after the other."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_lcs.functional.quantization import fake_quantize, value_range
from lightning_lcs.functional.ranges import find_range, find_ranges, least_error_range, observe
from tests.unit.functional.affine_by_hand import oracle

numbers = st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=40)
bit_widths = st.integers(2, 8)


def squared_error(x: np.ndarray, low: float, high: float, bits: int) -> float:
    return float(np.square(oracle(x, low, high, bits) - x).sum())


@given(numbers, bit_widths)
def test_the_range_of_least_error_is_the_best_of_those_that_are_tried(entries, bits):
    x = np.array(entries, dtype=np.float32)
    low, high = (float(value) for value in least_error_range(torch.from_numpy(x), bits))
    first, last = (float(value) for value in value_range(torch.from_numpy(x)))
    errors = [squared_error(x.astype(np.float64), r * first, r * last, bits) for r in np.linspace(1, 0.25, 16)]
    # Values half-way between two steps may round to either side in float32.
    step = (max(last, 0.0) - min(first, 0.0)) / (2**bits - 1)
    slack = len(x) * (2e-3 * step) ** 2 + 2e-3 * min(errors) + 1e-9
    halfway = np.abs((x.astype(np.float64) / (step or 1.0)) % 1 - 0.5) < 1e-2
    if not halfway.any():
        assert squared_error(x.astype(np.float64), low, high, bits) <= min(errors) + slack + step**2 * 1e-2


def test_ranges_of_least_error_of_channels_are_those_of_each_channel():
    x = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0)) * torch.logspace(-2, 1, 6).view(-1, 1, 1, 1)
    low, high = least_error_range(x, 3, per_channel=True)
    for channel, ends in zip(x, zip(low, high, strict=True), strict=True):
        assert torch.stack(ends).tolist() == torch.stack(least_error_range(channel, 3)).tolist()


@pytest.mark.parametrize("bits", [2, 3, 8])
@pytest.mark.parametrize("shape", [(128, 64, 16, 16), (37, 49, 49), (1, 1_000_003), (64, 3, 32, 32)])
def test_a_sample_is_enough_even_where_large_values_share_a_column(shape, bits):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    x[..., -1] *= 5.0
    first, last = value_range(x)

    def error(low: torch.Tensor, high: torch.Tensor) -> float:
        return float((fake_quantize(x, low, high, bits) - x).square().sum())

    best = min(error(ratio * first, ratio * last) for ratio in torch.linspace(1, 0.25, 16))
    assert error(*least_error_range(x, bits)) < 1.4 * best
    if x.ndim == 4:  # which values are in the sample does not depend on their order in memory
        last_channels = x.contiguous(memory_format=torch.channels_last)
        assert torch.equal(least_error_range(last_channels, bits)[0], least_error_range(x, bits)[0])


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_end_at_zero_of_a_one_sided_range_clips_nothing(sign):
    x = sign * (10.0 + torch.randn(4000, generator=torch.Generator().manual_seed(0)))
    low, high = least_error_range(x, 8)
    assert float(low if sign < 0 else high) == pytest.approx(float(x[x.abs().argmax()]), rel=0.06)
    assert float(high if sign < 0 else low) * sign >= 0.0


def test_the_sample_of_very_many_channels_stays_small():
    """Of a head with tens of thousands of classes, ranges take little memory: its sample is tried sixteen times."""
    x = torch.randn(30_000, 96, generator=torch.Generator().manual_seed(0))
    tried = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            found = func(*args, **(kwargs or {}))
            tried.append(found.numel() if isinstance(found, torch.Tensor) else 0)
            return found

    with Sizes():
        least_error_range(x, 8, per_channel=True)
    assert max(tried) <= 2 * x.numel()


def test_more_bits_clip_less():
    x = torch.randn(5000, generator=torch.Generator().manual_seed(0))
    ends = [float(least_error_range(x, bits)[1]) for bits in range(2, 9)]
    assert ends == sorted(ends)
    assert ends[0] < 0.6 * float(x.max())


@pytest.mark.parametrize("search", ["minmax", "mse"])
@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 9000), st.booleans(), st.sampled_from([3, 4])), max_size=6),
    st.integers(0, 2**32),
)
def test_ranges_found_together_are_those_found_alone(search, tensors, seed):
    generator = torch.Generator().manual_seed(seed)
    values = [torch.randn(rows, size, generator=generator) for rows, size, *_ in tensors]
    found = find_ranges(
        [observe(x, bits, per_channel, search) for x, (*_, per_channel, bits) in zip(values, tensors, strict=True)]
    )
    for x, (*_, per_channel, bits), ends in zip(values, tensors, found, strict=True):
        alone = find_range(x, bits, per_channel, search)
        assert [end.shape for end in ends] == [end.shape for end in alone]
        for ours, theirs in zip(ends, alone, strict=True):
            # Sums in another order may decide between two ranges whose errors are the same to seven digits.
            assert (ours - theirs).abs().gt(1e-6).float().mean() <= 0.1
