"""Which alphas a training step visits (arXiv 2110.04252, Algorithm 1 and section 4)."""

from __future__ import annotations

import hashlib

import torch


def step_generator(seed: int, step: int) -> torch.Generator:
    """A generator that depends on ``(seed, step)`` alone: the same on every rank and after a resume."""
    # torch reads 32 bits of a seed: hashed, so that neighbouring seeds and steps have nothing in common.
    digest = hashlib.blake2b(f"{seed},{step}".encode(), digest_size=4).digest()
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


SAMPLERS = {"sandwich": sandwich, "uniform": uniform}
