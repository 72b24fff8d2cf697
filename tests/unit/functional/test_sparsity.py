"""The mask of the largest entries, against an oracle in plain numpy."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_lcs.functional.sparsity import largest_mask, zeros_at


def oracle(weight: np.ndarray, sparsity: float) -> np.ndarray:
    """Sort by magnitude, largest first and earlier entries first among equals; cut off the rest."""
    zeros = math.floor(round(sparsity * weight.size, 9))
    order = np.lexsort((np.arange(weight.size), -np.abs(weight.ravel())))
    mask = np.zeros(weight.size, dtype=weight.dtype)
    mask[order[: weight.size - zeros]] = 1
    return mask.reshape(weight.shape)


# Few distinct values, so that there are ties, zeros and weights that are all equal.
values = st.lists(st.sampled_from([-2.0, -1.0, 0.0, 0.5, 1.0, 2.0]), min_size=1, max_size=60)
shares = st.one_of(st.floats(0.0, 0.999), st.sampled_from([0.0, 0.1, 0.5, 0.9, 0.95, 0.975]))


@given(values, shares)
def test_against_the_oracle(entries, sparsity):
    weight = np.array(entries, dtype=np.float32)
    assert np.array_equal(largest_mask(torch.from_numpy(weight), sparsity).numpy(), oracle(weight, sparsity))


@pytest.mark.parametrize("fill", [0.0, 1.0, -3.0])
def test_weights_that_are_all_equal(fill):
    weight = np.full((4, 5), fill, dtype=np.float32)
    mask = largest_mask(torch.from_numpy(weight), 0.6)
    assert np.array_equal(mask.numpy(), oracle(weight, 0.6))
    assert mask.sum() == 8


@given(st.integers(1, 5000), st.floats(0.0, 0.999))
def test_the_number_of_zeros_is_exact(numel, sparsity):
    weight = torch.randn(numel, generator=torch.Generator().manual_seed(numel))
    assert numel - int(largest_mask(weight, sparsity).sum()) == zeros_at(numel, sparsity)


def test_products_that_floats_miss_are_taken_as_exact():
    assert 0.1 * 30 != 3.0 or (1 - 0.9) * 10 != 1.0  # what goes wrong without
    assert zeros_at(30, 0.1) == 3
    assert zeros_at(10, 1 - 0.9) == 1


def test_something_is_always_kept():
    assert largest_mask(torch.randn(1), 0.999).sum() == 1


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 1.5, math.nan])
def test_shares_out_of_range(sparsity):
    with pytest.raises(ValueError, match="sparsity="):
        largest_mask(torch.randn(4), sparsity)


def test_nan_is_refused_by_name():
    with pytest.raises(ValueError, match="NaN"):
        largest_mask(torch.tensor([1.0, math.nan, 2.0, 3.0]), 0.25)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_types(dtype):
    weight = torch.randn(64, generator=torch.Generator().manual_seed(0)).to(dtype)
    mask = largest_mask(weight, 0.5)
    assert mask.dtype == dtype
    assert mask.sum() == 32
    assert weight[mask == 0].abs().max() <= weight[mask == 1].abs().min()
