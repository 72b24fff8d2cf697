from collections.abc import Callable

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from lightning_lcs.functional.sampling import SAMPLERS, round_to_levels, sandwich, step_generator, uniform

seeds = st.integers(0, 2**31 - 1)
steps = st.integers(0, 10**7)


def numbers(generator: torch.Generator) -> list[float]:
    return torch.rand(8, generator=generator).tolist()


@given(seed=seeds, step=steps)
def test_generator_is_a_pure_function_of_seed_and_step(seed: int, step: int) -> None:
    first = numbers(step_generator(seed, step))
    torch.rand(3)
    assert first == numbers(step_generator(seed, step))


@given(seed=seeds, step=steps, other_seed=seeds, other_step=steps)
@example(seed=0, step=0, other_seed=2, other_step=2)
def test_other_steps_and_seeds_draw_other_numbers(seed: int, step: int, other_seed: int, other_step: int) -> None:
    same = (seed, step) == (other_seed, other_step)
    assert (numbers(step_generator(seed, step)) == numbers(step_generator(other_seed, other_step))) == same


def test_generator_leaves_the_global_one_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    sandwich(step_generator(1, 2), 6)
    uniform(step_generator(1, 2), 6)
    assert torch.equal(torch.rand(3), expected)


@given(seed=seeds, step=steps, count=st.integers(2, 12))
def test_sandwich_is_both_ends_and_uniform_draws_between(seed: int, step: int, count: int) -> None:
    alphas = sandwich(step_generator(seed, step), count)
    assert len(alphas) == count
    assert alphas == sorted(alphas)
    assert alphas[0] == 0.0
    assert alphas[-1] == 1.0
    assert alphas == sandwich(step_generator(seed, step), count)


@given(seed=seeds, step=steps, count=st.integers(1, 12))
def test_uniform_ends_with_one(seed: int, step: int, count: int) -> None:
    alphas = uniform(step_generator(seed, step), count)
    assert len(alphas) == count
    assert alphas == sorted(alphas)
    assert alphas[-1] == 1.0
    assert min(alphas) >= 0.0
    assert alphas == uniform(step_generator(seed, step), count)


@pytest.mark.parametrize(("sampler", "inner"), [(sandwich, slice(1, -1)), (uniform, slice(0, -1))])
def test_draws_are_spread_evenly(sampler: Callable[..., list[float]], inner: slice) -> None:
    draws = [alpha for step in range(500) for alpha in sampler(step_generator(0, step), 6)[inner]]
    counts = torch.histc(torch.tensor(draws), bins=10, min=0, max=1)
    share = counts / len(draws)
    # 2,000 or more draws in ten bins: one standard error of a share is below .0068; five of them.
    assert (share - 0.1).abs().max().item() < 5 * 0.0068


@pytest.mark.parametrize(("sampler", "least"), [("sandwich", 2), ("uniform", 1)])
@pytest.mark.parametrize("short_of", [1, 3])
def test_too_few_alphas_is_an_error_that_names_the_argument(sampler: str, least: int, short_of: int) -> None:
    with pytest.raises(ValueError, match=f"alphas_per_step={least - short_of} is below {least}"):
        SAMPLERS[sampler](step_generator(0, 0), least - short_of)


@given(
    seed=seeds, step=steps, levels=st.integers(3, 60), sampler=st.sampled_from(list(SAMPLERS)), count=st.integers(2, 9)
)
def test_draws_rounded_to_levels(seed: int, step: int, levels: int, sampler: str, count: int) -> None:
    drawn = SAMPLERS[sampler](step_generator(seed, step), count)
    rounded = [round_to_levels(alpha, levels, sampler) for alpha in drawn]
    grid = [number / (levels - 1) for number in range(levels)]
    assert set(rounded) <= set(grid)
    # To the nearest level; further only from an end that is visited anyway.
    nearest = [min(grid, key=lambda level: abs(level - alpha)) for alpha in drawn]
    for alpha, level, near in zip(drawn, rounded, nearest, strict=True):
        assert abs(level - alpha) <= abs(near - alpha) + 1e-12 or near in (0.0, 1.0)
    if sampler == "sandwich":
        assert (rounded.count(0.0), rounded.count(1.0)) == (1, 1)
    if sampler == "uniform":
        assert rounded.count(1.0) == 1


def test_every_level_is_drawn() -> None:
    for sampler in ("sandwich", "uniform", "uniform_draws"):
        draws = [SAMPLERS[sampler](step_generator(0, step), 3) for step in range(60)]
        assert {4 * round_to_levels(alpha, 5, sampler) for drawn in draws for alpha in drawn} == {0, 1, 2, 3, 4}, (
            sampler
        )
