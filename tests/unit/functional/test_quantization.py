"""Affine quantization against an oracle in plain numpy (double precision)."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_lcs.functional.quantization import (
    affine_grid,
    affine_grids,
    affine_parameters,
    dequantize,
    dequantize_narrowed,
    fake_quantize,
    integer_range,
    narrow_bits,
    quantize,
    value_range,
)
from tests.unit.functional.affine_by_hand import oracle

numbers = st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=40)
bit_widths = st.integers(2, 8)


@given(numbers, bit_widths)
def test_against_the_oracle(entries, bits):
    x = np.array(entries, dtype=np.float32)
    low, high = (float(value) for value in value_range(torch.from_numpy(x)))
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
    low, high = value_range(x)
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
    found = fake_quantize(x, *value_range(x), bits)
    # The end of a one-sided range is an integer step from 0, and so is exact up to float32.
    assert float(found.abs().max()) == pytest.approx(float(x.abs().max()), rel=1e-6)
    assert torch.isfinite(found).all()


def test_denormal_ranges_do_not_become_nan():
    x = torch.tensor([1e-44, -1e-44])
    assert torch.equal(fake_quantize(x, *value_range(x), 8), torch.zeros(2))


def test_gradients_pass_straight_through_outside_of_the_range_too():
    x = torch.tensor([-10.0, 0.3, 10.0], requires_grad=True)
    (fake_quantize(x, torch.tensor(-1.0), torch.tensor(1.0), 3) * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert x.grad.tolist() == [1.0, 2.0, 3.0]


def test_a_range_per_channel():
    weight = (
        torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
        * torch.tensor([1.0, 10.0, 0.1, 5.0])[:, None, None, None]
    )
    found = fake_quantize(weight, *value_range(weight, per_channel=True), 4)
    for channel, values in zip(found, weight, strict=True):
        assert torch.equal(channel, fake_quantize(values, *value_range(values), 4))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_types_keep_their_type(dtype):
    x = torch.linspace(-1, 1, 9).to(dtype)
    assert fake_quantize(x, *value_range(x), 8).dtype == dtype


@pytest.mark.parametrize("bits", [1, 9, 0])
def test_bits_out_of_range(bits):
    with pytest.raises(ValueError, match=f"bits={bits}"):
        integer_range(bits)


def test_parameters_of_a_known_range():
    scale, zero_point = affine_parameters(torch.tensor(-1.0), torch.tensor(3.0), 2)
    assert float(scale) == pytest.approx(4 / 3)
    assert int(zero_point) == round(-2 + 1 / (4 / 3))
    assert math.isclose(float((0 - zero_point + zero_point) * scale), 0.0)


def quantized(entries, bits, channels=None):
    x = torch.tensor(entries)
    x = x if channels is None else x[: len(x) // channels * channels].view(channels, -1)
    low, high = value_range(x, per_channel=channels is not None)
    scale, zero_point = affine_parameters(low, high, bits)
    return x, scale, zero_point, quantize(x, scale, zero_point, bits)


@given(st.lists(st.floats(-100, 100, width=32), min_size=4, max_size=40), bit_widths, st.sampled_from([None, 2]))
def test_integers_and_their_values_are_the_simulated_quantization(entries, bits, channels):
    x, scale, zero_point, integers = quantized(entries, bits, channels)
    low, high = integer_range(bits)
    assert low <= int(integers.min())
    assert int(integers.max()) <= high
    simulated = fake_quantize(x, *value_range(x, per_channel=channels is not None), bits)
    assert torch.equal(dequantize(integers, scale, zero_point), simulated)


@given(st.lists(st.floats(-100, 100, width=32), min_size=2, max_size=40), bit_widths)
def test_a_shifted_master_is_within_half_a_step(entries, bits):
    x, scale, zero_point, master = quantized(entries, 8)
    lower = narrow_bits(master, bits)
    low, high = integer_range(bits)
    assert low <= int(lower.min())
    assert int(lower.max()) <= high
    found = dequantize_narrowed(lower, scale, zero_point, bits)
    # Half of the master's steps that became one; clipping at the ends of the range, where the zero point was rounded.
    step = float(scale) * 2 ** (8 - bits)
    assert float((found - x).abs().max()) <= (step / 2 + float(scale) / 2) * 1.001 + 1e-5
    master_off = (dequantize(master, scale, zero_point) - found).abs().max()
    assert float(master_off) <= (step - float(scale)) / 2 * 1.001 + 1e-5


@pytest.mark.parametrize("bits", range(2, 8))
def test_the_half_step_takes_the_bias_away(bits):
    x = torch.randn(20000, generator=torch.Generator().manual_seed(0))
    low, high = value_range(x)
    scale, zero_point = affine_parameters(low, high, 8)
    lower = narrow_bits(quantize(x, scale, zero_point, 8), bits)
    step = float(scale) * 2 ** (8 - bits)
    corrected = dequantize_narrowed(lower, scale, zero_point, bits)
    plain = dequantize(lower.float() * 2 ** (8 - bits), scale, zero_point)
    # Without it every value is too small by half a step less half a unit in the mean: the control. The coarsest steps
    # are not evenly filled, hence the margins.
    assert abs(float((corrected - x).mean())) < 0.12 * step
    assert float((x - plain).mean()) > 0.7 * (step - float(scale)) / 2
    direct = fake_quantize(x, low, high, bits)
    assert float((corrected - x).square().mean()) < 1.2 * float((direct - x).square().mean())


def test_eight_bits_of_a_master_are_the_master():
    _, scale, zero_point, master = quantized([-1.0, 0.0, 0.3, 2.0], 8)
    assert torch.equal(narrow_bits(master, 8), master)
    assert torch.equal(dequantize_narrowed(master, scale, zero_point, 8), dequantize(master, scale, zero_point))


@pytest.mark.parametrize("bits", [1, 9])
def test_a_master_has_two_to_eight_bits(bits):
    with pytest.raises(ValueError, match=r"2\.\.8"):
        narrow_bits(torch.zeros(1, dtype=torch.int8), bits)


@given(
    channels=st.lists(st.one_of(st.none(), st.integers(1, 4)), min_size=1, max_size=6),
    bits=st.lists(st.integers(2, 8), min_size=6, max_size=6),
    seed=st.integers(0, 99),
)
def test_grids_of_many_ranges_are_those_of_each(channels, bits, seed):
    generator = torch.Generator().manual_seed(seed)
    ends = {
        f"{number}": tuple(torch.randn(() if count is None else count, generator=generator) for _ in range(2))
        for number, count in enumerate(channels)
    }
    ranges = {name: (torch.minimum(*pair), torch.maximum(*pair)) for name, pair in ends.items()}
    found = affine_grids(ranges, {name: bits[int(name)] for name in ranges})
    assert found.keys() == ranges.keys()
    for name, (low, high) in ranges.items():
        ours, expected = found[name], affine_grid(low, high, bits[int(name)])
        assert torch.equal(ours.scale, expected.scale)
        assert torch.equal(ours.zero_point, expected.zero_point)
        assert ours.bits == expected.bits
