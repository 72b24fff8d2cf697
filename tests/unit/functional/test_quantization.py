"""Affine quantization against an oracle in plain numpy (double precision)."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_lcs.functional.quantization import affine_parameters, fake_quantize, integer_range, range_of


def oracle(x: np.ndarray, low: float, high: float, bits: int) -> np.ndarray:
    """The formulas of arXiv 2110.04252, one after the other."""
    qmin, qmax = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / (2**bits - 1) or 1.0
    zero_point = np.clip(np.round(qmin - low / scale), qmin, qmax)
    q = np.clip(np.round(x / scale) + zero_point, qmin, qmax)
    return (q - zero_point) * scale


numbers = st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=40)
bit_widths = st.integers(2, 8)


@given(numbers, bit_widths)
def test_against_the_oracle(entries, bits):
    x = np.array(entries, dtype=np.float32)
    low, high = (float(value) for value in range_of(torch.from_numpy(x)))
    found = fake_quantize(torch.from_numpy(x), torch.tensor(low), torch.tensor(high), bits).numpy()
    expected = oracle(x.astype(np.float64), low, high, bits)
    step = (max(high, 0.0) - min(low, 0.0)) / (2**bits - 1)
    # A value half-way between two steps, or a zero point half-way between two integers, may round to either side in
    # float32: one step apart then, and never more.
    assert np.abs(found - expected).max() <= step * 1.001 + 1e-6
    off = np.abs(found - expected) > 1e-3 * step + 1e-6
    zero_point = -128 - min(low, 0.0) / step if step else 0.0
    halfway = np.abs((x.astype(np.float64) / step if step else x) % 1 - 0.5) < 1e-3
    assert not (off & ~halfway).any() or abs(zero_point % 1 - 0.5) < 1e-2


@given(numbers, bit_widths)
def test_zero_is_exact_and_values_stay_in_range(entries, bits):
    x = torch.tensor([*entries, 0.0])
    low, high = range_of(x)
    found = fake_quantize(x, low, high, bits)
    assert found[-1] == 0.0
    assert len(found.unique()) <= 2**bits
    step = (high - low) / (2**bits - 1)
    assert found.min() >= low - step
    assert found.max() <= high + step


@pytest.mark.parametrize("bits", [2, 3, 8])
@pytest.mark.parametrize("entries", [[1.0, 2.0, 5.0], [-5.0, -2.0, -1.0], [3.0], [-3.0], [2.0, 2.0, 2.0], [0.0, 0.0]])
def test_one_sided_ranges_constants_and_single_elements(entries, bits):
    x = torch.tensor(entries)
    found = fake_quantize(x, *range_of(x), bits)
    # The end of a one-sided range is an integer step from 0, and so is exact up to float32.
    assert float(found.abs().max()) == pytest.approx(float(x.abs().max()), rel=1e-6)
    assert torch.isfinite(found).all()


def test_denormal_ranges_do_not_become_nan():
    x = torch.tensor([1e-44, -1e-44])
    assert torch.equal(fake_quantize(x, *range_of(x), 8), torch.zeros(2))


def test_gradients_pass_straight_through_outside_of_the_range_too():
    x = torch.tensor([-10.0, 0.3, 10.0], requires_grad=True)
    (fake_quantize(x, torch.tensor(-1.0), torch.tensor(1.0), 3) * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert x.grad.tolist() == [1.0, 2.0, 3.0]


def test_a_range_per_channel():
    weight = (
        torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
        * torch.tensor([1.0, 10.0, 0.1, 5.0])[:, None, None, None]
    )
    found = fake_quantize(weight, *range_of(weight, per_channel=True), 4)
    for channel, values in zip(found, weight, strict=True):
        assert torch.equal(channel, fake_quantize(values, *range_of(values), 4))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_types_keep_their_type(dtype):
    x = torch.linspace(-1, 1, 9).to(dtype)
    assert fake_quantize(x, *range_of(x), 8).dtype == dtype


@pytest.mark.parametrize("bits", [1, 9, 0])
def test_bits_out_of_range(bits):
    with pytest.raises(ValueError, match=f"bits={bits}"):
        integer_range(bits)


def test_parameters_of_a_known_range():
    scale, zero_point = affine_parameters(torch.tensor(-1.0), torch.tensor(3.0), 2)
    assert float(scale) == pytest.approx(4 / 3)
    assert int(zero_point) == round(-2 + 1 / (4 / 3))
    assert math.isclose(float((0 - zero_point + zero_point) * scale), 0.0)
