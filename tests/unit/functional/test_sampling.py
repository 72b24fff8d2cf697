from collections.abc import Callable

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from lightning_lcs import Line, Loss, Quantized, Sampling, Structured, Unstructured
from lightning_lcs.functional.sampling import SAMPLERS, round_to_levels, sandwich, step_generator, uniform
from lightning_lcs.functional.schedules import SCHEDULES
from lightning_lcs.training.step.sweep_options import sweep_options

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


def test_the_full_network_and_one_weighted_draw() -> None:
    options = sweep_options(Unstructured(max_sparsity=0.96), "point", Sampling(sampler="weighted"), Loss(), Line())
    steps = [options.alphas(0, step) for step in range(2000)]
    assert all(len(drawn) == 2 and drawn[1] == 1.0 for drawn in steps)
    assert options.visits_full
    drawn = torch.tensor([alpha for alpha, _ in steps])
    # 2,000 draws, an error of .011; and 1,333 between the ends, of .014.
    assert abs((drawn == 0.0).double().mean() - 1 / 3) < 5 * 0.011
    between = drawn[drawn > 0.0] * 0.96 + 0.04
    assert abs((between < 0.2).double().mean() - 0.5) < 5 * 0.014


@pytest.mark.parametrize("sampler", ["weighted_draws", "weighted_sandwich"])
def test_sparsities_are_drawn_by_the_logarithm_of_the_share_that_is_kept(sampler: str) -> None:
    mode = Unstructured(max_sparsity=0.96)
    options = sweep_options(mode, "line", Sampling(sampler=sampler, alphas_per_step=3), Loss(), Line())
    steps = [options.alphas(0, step) for step in range(1000)]
    assert all(drawn == sorted(drawn) for drawn in steps)
    alphas = torch.tensor([alpha for drawn in steps for alpha in drawn])
    ends = (alphas == 0.0).double().mean(), (alphas == 1.0).double().mean()
    # 3,000 draws: one standard error of a share is below .0095; five of them.
    expected = 1 / 3 if sampler == "weighted_sandwich" else 1 / 5
    assert all(abs(share - expected) < 5 * 0.0095 for share in ends)
    between = alphas[(alphas > 0.0) & (alphas < 1.0)]
    # From .04 to .2, and from .2 to 1: the same factor. 1,000 draws or more, an error of .016.
    sparse = (between * 0.96 + 0.04 < 0.2).double().mean()
    assert abs(sparse - 0.5) < 5 * 0.016
    even = sweep_options(mode, "line", Sampling(sampler="uniform_draws"), Loss(), Line())
    few = torch.tensor([even.alphas(0, step)[0] for step in range(1000)])
    assert (few * 0.96 + 0.04 < 0.2).double().mean() < 0.25, "negative control"


def test_low_bits_are_drawn_more_often() -> None:
    mode = Quantized()
    options = sweep_options(mode, "point", Sampling(sampler="weighted_draws"), Loss(), Line())
    drawn = [mode.bit_width(options.alphas(0, step)[0]) for step in range(4000)]
    # Ends of one fifth each, and 2, 2, 1, 1, 1, 1 eighths of the rest; one standard error is below .008.
    for bits, expected in zip(range(3, 9), (0.35, 0.15, 0.075, 0.075, 0.075, 0.275), strict=True):
        assert abs(drawn.count(bits) / 4000 - expected) < 5 * 0.008, bits


def test_widths_that_a_weighted_sampler_draws_are_those_of_levels() -> None:
    options = sweep_options(Structured(), "point", Sampling(sampler="weighted_sandwich", levels=5), Loss(), Line())
    drawn = [alpha for step in range(60) for alpha in options.alphas(0, step)[1:-1]]
    assert set(drawn) == {0.25, 0.5, 0.75}


@pytest.mark.parametrize(
    ("steps", "per_step", "levels"), [(99, 3, 4), (100, 3, 7), (50, 4, 7), (460, 3, 25), (9e9, 3, 25)]
)
def test_in_short_trainings_each_level_is_drawn_twenty_times(steps: float, per_step: int, levels: int) -> None:
    options = sweep_options(Structured(), "point", Sampling(alphas_per_step=per_step), Loss(), Line())
    drawn = [alpha for step in range(600) for alpha in options.alphas(0, step, steps)[1:-1]]
    assert set(drawn) == {number / (levels - 1) for number in range(1, levels - 1)}
    if steps < 600:
        assert len(drawn) / 600 * steps >= 20 * (levels - 2) or levels == 4


@given(progress=st.floats(0, 1), share=st.floats(0.01, 1))
def test_a_cubic_warm_up_is_ahead_of_a_linear_one_and_ends_with_it(progress: float, share: float) -> None:
    cubic, linear = SCHEDULES["cubic"](progress, share), SCHEDULES["linear"](progress, share)
    assert 0.0 <= linear <= cubic + 1e-12 <= 1.0 + 1e-12
    assert progress < share or cubic == 1.0


def test_every_level_is_drawn() -> None:
    for sampler in ("sandwich", "uniform", "uniform_draws"):
        draws = [SAMPLERS[sampler](step_generator(0, step), 3) for step in range(60)]
        assert {4 * round_to_levels(alpha, 5, sampler) for drawn in draws for alpha in drawn} == {0, 1, 2, 3, 4}, (
            sampler
        )
