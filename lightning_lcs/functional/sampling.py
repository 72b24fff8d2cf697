"""Which alphas a training step visits (arXiv 2110.04252, Algorithm 1 and section 4)."""

from __future__ import annotations

import hashlib

import torch


def step_generator(seed: int, step: int, purpose: str = "") -> torch.Generator:
    """A generator that depends on its arguments alone: the same on every rank and after a resume."""
    # torch reads 32 bits of a seed: hashed, so that neighbouring seeds and steps have nothing in common.
    digest = hashlib.blake2b(f"{seed},{step}{purpose and ','}{purpose}".encode(), digest_size=4).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


def sandwich(generator: torch.Generator, count: int) -> list[float]:
    """The sandwich rule: both ends, and ``count - 2`` uniform draws between them.

    Returns:
        ``count`` alphas in ascending order, the first 0 and the last 1.

    Raises:
        ValueError: ``count`` is below 2.
    """
    if count < 2:
        raise ValueError(f"alphas_per_step={count} is below 2: the sandwich rule visits both ends of the range")
    inner = torch.rand(count - 2, generator=generator, dtype=torch.float64).sort().values.tolist()
    return [0.0, *inner, 1.0]


def uniform(generator: torch.Generator, count: int) -> list[float]:
    """``count - 1`` uniform draws, and alpha = 1, whose numbers are the ones that the user sees.

    Returns:
        ``count`` alphas in ascending order, the last 1.

    Raises:
        ValueError: ``count`` is below 1.
    """
    if count < 1:
        raise ValueError(f"alphas_per_step={count} is below 1: a step needs at least alpha = 1")
    return [*torch.rand(count - 1, generator=generator, dtype=torch.float64).sort().values.tolist(), 1.0]


def biased_endpoints(generator: torch.Generator, count: int) -> list[float]:
    """Draws of which each is an end of the range with probability 1/2 (either evenly), else uniform.

    Arxiv 2110.04252 trains unstructured lines with one such draw per step.

    Returns:
        ``count`` alphas in ascending order.

    Raises:
        ValueError: ``count`` is below 1.
    """
    alphas = uniform_draws(generator, count)
    kinds = torch.rand(count, generator=generator, dtype=torch.float64).tolist()
    return sorted(0.0 if kind < 0.25 else 1.0 if kind < 0.5 else a for kind, a in zip(kinds, alphas, strict=True))


def uniform_draws(generator: torch.Generator, count: int) -> list[float]:
    """Uniform draws alone, alpha = 1 not among them; arXiv 2110.04252 trains unstructured points with one per step.

    Returns:
        ``count`` alphas in ascending order.

    Raises:
        ValueError: ``count`` is below 1.
    """
    if count < 1:
        raise ValueError(f"alphas_per_step={count} is below 1: a step needs at least one level")
    return torch.rand(count, generator=generator, dtype=torch.float64).sort().values.tolist()


def round_to_levels(alpha: float, levels: int, sampler: str) -> float:
    """The nearest of ``levels`` evenly spaced levels to a draw.

    An end that the sampler visits at every step is left to it: draws of "sandwich" and "uniform" stay below 1, and
    those of "sandwich" above 0.

    Args:
        alpha: in [0, 1]; 0 and 1 stay as they are.
        levels: at least 3.
        sampler: a key of :data:`SAMPLERS`.
    """
    if alpha in (0.0, 1.0):
        return alpha
    lowest, highest = int(sampler == "sandwich"), levels - 1 - (sampler in VISIT_FULL)
    return min(max(round(alpha * (levels - 1)), lowest), highest) / (levels - 1)


# As uniform_draws, and each layer draws its own level of compression besides.
PER_LAYER = "uniform_draws_per_layer"
SAMPLERS = {
    "sandwich": sandwich,
    "uniform": uniform,
    "biased_endpoints": biased_endpoints,
    "uniform_draws": uniform_draws,
    PER_LAYER: uniform_draws,
}
VISIT_FULL = frozenset({"sandwich", "uniform"})  # at every step
