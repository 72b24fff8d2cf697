"""Samplers: which alphas a training step visits (arXiv 2110.04252, Algorithm 1 and section 4)."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence

import torch


def step_generator(seed: int, step: int, purpose: str = "") -> torch.Generator:
    """A random generator that depends on the arguments alone, so it is the same on every rank and after a resume.

    Args:
        seed: The user's seed.
        step: Number of the training step.
        purpose: What the numbers are for; different purposes get independent generators.
    """
    # torch uses 32 bits of a seed. The hash makes neighbouring seeds and steps independent.
    digest = hashlib.blake2b(f"{seed},{step}{purpose and ','}{purpose}".encode(), digest_size=4).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


def sandwich(generator: torch.Generator, count: int) -> list[float]:
    """The sandwich rule: both ends of the range, and ``count - 2`` uniform draws between them.

    Args:
        generator: The source of random numbers.
        count: Number of alphas, 2 or more.

    Returns:
        ``count`` alphas in ascending order, of which the first is 0 and the last is 1.

    Raises:
        ValueError: ``count`` is below 2.
    """
    if count < 2:
        raise ValueError(f"alphas_per_step={count} is below 2: the sandwich rule visits both ends of the range")
    return [0.0, *_sorted_draws(generator, count - 2), 1.0]


def uniform(generator: torch.Generator, count: int) -> list[float]:
    """``count - 1`` uniform draws and alpha = 1, at which the user's own metrics are logged.

    Args:
        generator: The source of random numbers.
        count: Number of alphas, 1 or more.

    Returns:
        ``count`` alphas in ascending order, of which the last is 1.

    Raises:
        ValueError: ``count`` is below 1.
    """
    if count < 1:
        raise ValueError(f"alphas_per_step={count} is below 1: a step needs at least alpha = 1")
    return [*_sorted_draws(generator, count - 1), 1.0]


def biased_endpoints(generator: torch.Generator, count: int) -> list[float]:
    """Draws that are 0 with probability 1/4, 1 with probability 1/4, and uniform otherwise.

    arXiv 2110.04252 trains unstructured lines with one such draw per step.

    Args:
        generator: The source of random numbers.
        count: Number of alphas, 1 or more.

    Returns:
        ``count`` alphas in ascending order.

    Raises:
        ValueError: ``count`` is below 1.
    """
    return _with_ends(generator, count, 0.25)


def uniform_draws(generator: torch.Generator, count: int) -> list[float]:
    """Uniform draws only, without alpha = 1.

    arXiv 2110.04252 trains unstructured points with one such draw per step.

    Args:
        generator: The source of random numbers.
        count: Number of alphas, 1 or more.

    Returns:
        ``count`` alphas in ascending order.

    Raises:
        ValueError: ``count`` is below 1.
    """
    if count < 1:
        raise ValueError(f"alphas_per_step={count} is below 1: a step needs at least one level")
    return _sorted_draws(generator, count)


def weighted_draws(generator: torch.Generator, count: int) -> list[float]:
    """Draws that are 0 with probability 1/5, 1 with probability 1/5, and uniform otherwise.

    The mode weights the draws between the ends; see :func:`weighted`.

    Args:
        generator: The source of random numbers.
        count: Number of alphas, 1 or more.

    Returns:
        ``count`` alphas in ascending order.

    Raises:
        ValueError: ``count`` is below 1.
    """
    return _with_ends(generator, count, 0.2)


def weighted_and_full(generator: torch.Generator, count: int) -> list[float]:
    """``count - 1`` draws that are 0 with probability 1/3 and uniform otherwise, and alpha = 1.

    The mode weights the draws between the ends; see :func:`weighted`.

    Args:
        generator: The source of random numbers.
        count: Number of alphas, 1 or more.

    Returns:
        ``count`` alphas in ascending order, of which the last is 1.

    Raises:
        ValueError: ``count`` is below 1.
    """
    alphas = uniform(generator, count)
    lowest = torch.rand(count, generator=generator, dtype=torch.float64).lt(1 / 3).tolist()
    drawn = [0.0 if low else alpha for low, alpha in zip(lowest[1:], alphas[:-1], strict=True)]
    return [*sorted(drawn), 1.0]


def _with_ends(generator: torch.Generator, count: int, each: float) -> list[float]:
    alphas = uniform_draws(generator, count)
    kinds = torch.rand(count, generator=generator, dtype=torch.float64).tolist()
    return sorted(0.0 if kind < each else 1.0 if kind < 2 * each else a for kind, a in zip(kinds, alphas, strict=True))


def weighted(drawn: Sequence[float], weight: Callable[[float], float]) -> list[float]:
    """Draws of a weighted sampler, with those between the ends as the mode weights them.

    Args:
        drawn: Draws in ascending order.
        weight: Maps (0, 1) to (0, 1), ascending.

    Example:
        >>> from lightning_lcs.functional.sampling import weighted
        >>> weighted([0.0, 0.5, 1.0], lambda draw: draw**2)
        [0.0, 0.25, 1.0]
    """
    return [alpha if alpha in (0.0, 1.0) else weight(alpha) for alpha in drawn]


def _sorted_draws(generator: torch.Generator, count: int) -> list[float]:
    return torch.rand(count, generator=generator, dtype=torch.float64).sort().values.tolist()


def round_to_levels(alpha: float, levels: int, sampler: str) -> float:
    """The nearest of ``levels`` evenly spaced levels to a draw.

    A draw is not rounded to an end of the range that the sampler visits at every step anyway: draws of "sandwich" and
    "uniform" stay below 1, and those of "sandwich" above 0.

    Args:
        alpha: The draw, in [0, 1]; 0 and 1 are returned as they are.
        levels: Number of levels, 3 or more.
        sampler: A key of :data:`SAMPLERS`.
    """
    if alpha in (0.0, 1.0):
        return alpha
    lowest, highest = int(sampler in VISIT_LOWEST), levels - 1 - (sampler in VISIT_FULL)
    return min(max(round(alpha * (levels - 1)), lowest), highest) / (levels - 1)


def levels_for(draws: float) -> int:
    """The number of levels to which draws are rounded, so that each level between the ends is drawn often enough.

    Each width needs training of its own: EfficientNet-Lite0, fine-tuned for 44 steps, reaches 92 % at width 0.5 with
    four levels, and 66 % with 25 (docs/results.md).

    Args:
        draws: The number of draws between the ends in the whole training; it may be infinite.

    Returns:
        The largest of 25, 13 and 7 of which each level between the ends is drawn 20 times on average, or else 4.

    Example:
        >>> from lightning_lcs.functional.sampling import levels_for
        >>> [levels_for(draws) for draws in (44, 100, 220, 460)]
        [4, 7, 13, 25]
    """
    return next((levels for levels in (25, 13, 7) if draws >= 20 * (levels - 2)), 4)


# Draws alphas as uniform_draws does; in addition, each layer draws a compression level of its own.
PER_LAYER = "uniform_draws_per_layer"
SAMPLERS = {
    "sandwich": sandwich,
    "uniform": uniform,
    "biased_endpoints": biased_endpoints,
    "uniform_draws": uniform_draws,
    PER_LAYER: uniform_draws,
    "weighted_draws": weighted_draws,
    "weighted_sandwich": sandwich,
    "weighted": weighted_and_full,
}
# The samplers whose draws between the ends are weighted by the mode.
WEIGHTED = frozenset({"weighted_draws", "weighted_sandwich", "weighted"})
# The samplers that visit alpha = 1, and alpha = 0, at every step.
VISIT_FULL = frozenset({"sandwich", "weighted_sandwich", "uniform", "weighted"})
VISIT_LOWEST = frozenset({"sandwich", "weighted_sandwich"})


@dataclasses.dataclass(frozen=True)
class SamplingDefaults:
    """How a training step visits the levels of a mode unless the user says otherwise.

    Attributes:
        sampler: A key of :data:`SAMPLERS`.
        warmup: The share of all steps in which the compression grows, in [0, 1].
        warmup_schedule: A key of :data:`lightning_lcs.functional.schedules.SCHEDULES`.
    """

    sampler: str = "uniform_draws"
    warmup: float = 0.0
    warmup_schedule: str = "linear"
