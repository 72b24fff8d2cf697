"""How strongly a level compresses while training goes on (arXiv 2110.04252, warm-up of the unstructured mode)."""

from __future__ import annotations


def linear_warmup(progress: float, share: float) -> float:
    """Compression that grows linearly from nothing to the whole over the first ``share`` of all steps.

    Args:
        progress: share of all steps that is done, in [0, 1].
        share: length of the warm-up, in [0, 1].

    Returns:
        Share of the level's compression that applies, in [0, 1].
    """
    return 1.0 if progress >= share else max(0.0, progress) / share


def delayed(progress: float, share: float) -> float:
    """No compression over the first ``share`` of all steps, then the whole; arguments as in :func:`linear_warmup`."""
    return 1.0 if progress >= share else 0.0


SCHEDULES = {"linear": linear_warmup, "delayed": delayed}
