"""The mask of the largest entries, against an oracle in plain numpy."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_lcs.functional import sparsity as functional
from lightning_lcs.functional.sparsity import (
    block_mask,
    erdos_renyi_sparsities,
    largest_mask,
    largest_masks,
    magnitude_threshold,
    zero_count,
)


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
    assert numel - int(largest_mask(weight, sparsity).sum()) == zero_count(numel, sparsity)


def test_products_that_floats_miss_are_taken_as_exact():
    assert 0.1 * 30 != 3.0 or (1 - 0.9) * 10 != 1.0  # what goes wrong without
    assert zero_count(30, 0.1) == 3
    assert zero_count(10, 1 - 0.9) == 1


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


# Above the size from which a sample is looked at first; ordered weights are the worst that a sample can meet.
@pytest.mark.parametrize("order", ["random", "ascending", "same-but-one", "ties"])
@pytest.mark.parametrize("sparsity", [0.001, 0.3, 0.975, 0.9999])
def test_large_weights_against_the_oracle(order, sparsity):
    weight = np.random.default_rng(0).standard_normal(70_000).astype(np.float32)
    if order == "ascending":
        weight = np.sort(np.abs(weight))
    elif order == "same-but-one":
        weight = np.ones_like(weight)
        weight[12_345] = 2.0
    elif order == "ties":
        weight = np.round(weight, 2)
    assert np.array_equal(largest_mask(torch.from_numpy(weight), sparsity).numpy(), oracle(weight, sparsity))


def test_a_sample_that_misleads_is_noticed():
    # The sample holds the large entries alone, so that it says nothing of where the middle is.
    weight = np.random.default_rng(0).random(70_000).astype(np.float32)
    weight[:: functional._SAMPLE_STRIDE] += 10.0
    assert np.array_equal(largest_mask(torch.from_numpy(weight), 0.5).numpy(), oracle(weight, 0.5))


@given(values, st.data())
def test_a_threshold_divides_or_there_is_none(entries, data):
    weight = torch.tensor(entries)
    if weight.numel() > 1:
        zeros = data.draw(st.integers(1, weight.numel() - 1))
        threshold, magnitudes = magnitude_threshold(weight, zeros), sorted(map(abs, entries))
        assert (threshold is None) == (magnitudes[zeros - 1] == magnitudes[zeros])
        assert threshold in (None, magnitudes[zeros - 1])


@pytest.mark.parametrize("numel", [100, 70_000])
@pytest.mark.parametrize("at", [0, -1])
def test_nan_in_a_weight_of_any_size(numel, at):
    weight = torch.randn(numel)
    weight[at] = math.nan
    for mask in (lambda: largest_mask(weight, 0.5), lambda: block_mask(weight.view(1, -1), 2)):
        with pytest.raises(ValueError, match="NaN"):
            mask()
    with pytest.raises(ValueError, match="NaN"):
        largest_masks({"a": torch.ones(3), "b": weight}, 0.5)


@given(st.lists(values, min_size=1, max_size=4), shares)
def test_one_threshold_for_all_against_the_oracle(weights, sparsity):
    """As of one weight that holds all entries, with the first of the largest of each kept in any case."""
    arrays = {str(number): np.array(entries, dtype=np.float32) for number, entries in enumerate(weights)}
    found = largest_masks({name: torch.from_numpy(array) for name, array in arrays.items()}, sparsity)
    together = np.concatenate([np.abs(array) for array in arrays.values()])
    start = 0
    for array in arrays.values():
        together[start + int(np.abs(array).argmax())] = np.inf
        start += array.size
    zeros = min(math.floor(round(sparsity * together.size, 9)), together.size - len(arrays))
    order = np.lexsort((np.arange(together.size), -together))
    expected = np.zeros(together.size, dtype=np.float32)
    expected[order[: together.size - zeros]] = 1
    assert np.array_equal(np.concatenate([mask.numpy() for mask in found.values()]), expected)
    assert all(mask.sum() >= 1 for mask in found.values())


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.integers(0, 10**6))
def test_four_consecutive_inputs_against_the_oracle(outputs, blocks, kept, seed):
    weight = np.random.default_rng(seed).integers(-3, 4, (outputs, 4 * blocks, 2)).astype(np.float32)
    mask = block_mask(torch.from_numpy(weight), kept).numpy()
    for output in range(outputs):
        for block in range(blocks):
            for place in range(2):
                four = slice(4 * block, 4 * block + 4)
                order = sorted(range(4), key=lambda i: (-abs(weight[output, four, place][i]), i))
                assert mask[output, four, place].tolist() == [float(i in order[:kept]) for i in range(4)]


def test_blocks_out_of_range():
    with pytest.raises(ValueError, match="6 inputs, which is not a multiple of 4"):
        block_mask(torch.ones(2, 6), 2)
    with pytest.raises(ValueError, match=r"kept=0 is not in 1\.\.4"):
        block_mask(torch.ones(2, 8), 0)


shapes = st.dictionaries(
    st.text("abcdef", min_size=1, max_size=3),
    st.lists(st.integers(1, 40), min_size=2, max_size=4).map(tuple),
    min_size=1,
    max_size=6,
)


@given(shapes, st.floats(0.0, 0.99))
def test_shares_of_erdos_renyi_add_up_and_leave_small_weights_denser(sizes, sparsity):
    found = erdos_renyi_sparsities(sizes, sparsity)
    assert found.keys() == sizes.keys()
    assert all(0.0 <= share < 1.0 for share in found.values())
    numel = {name: math.prod(shape) for name, shape in sizes.items()}
    total = sum(numel.values())
    assert sum(found[name] * numel[name] for name in sizes) == pytest.approx(sparsity * total, abs=1e-6 * total)
    density = {name: sum(shape) / numel[name] for name, shape in sizes.items()}
    kept = {name: 1.0 - share for name, share in found.items()}
    ranked = sorted(sizes, key=density.__getitem__)
    assert all(kept[low] <= kept[high] + 1e-9 for low, high in pairwise(ranked))
    sparse = [name for name in sizes if found[name] > 1e-9]
    factors = [kept[name] / density[name] for name in sparse]
    assert factors == pytest.approx(factors[:1] * len(factors), rel=1e-6)


def test_nothing_is_removed_at_a_sparsity_of_zero():
    assert erdos_renyi_sparsities({"a": (3, 4), "b": (64, 64, 3, 3)}, 0.0) == {"a": 0.0, "b": 0.0}
