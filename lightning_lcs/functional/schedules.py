"""Warm-up schedules: how strongly a level compresses at each step of training.

arXiv 2110.04252 warms up the unstructured mode in this way.
"""

from __future__ import annotations


def linear_warmup(progress: float, share: float) -> float:
    """Compression that grows linearly from none to all of it over the warm-up.

    Args:
        progress: Share of all training steps that is done, in [0, 1].
        share: Length of the warm-up as a share of all steps, in [0, 1].

    Returns:
        The share of the level's compression that applies, in [0, 1].
    """
    return 1.0 if progress >= share else max(0.0, progress) / share


def cubic_warmup(progress: float, share: float) -> float:
    """Compression that grows fast at first and slowly at the end of the warm-up: ``1 - (1 - progress / share)^3``.

    Args:
        progress: Share of all training steps that is done, in [0, 1].
        share: Length of the warm-up as a share of all steps, in [0, 1].

    Returns:
        The share of the level's compression that applies, in [0, 1].
    """
    return float(1.0 - (1.0 - linear_warmup(progress, share)) ** 3)


def delayed(progress: float, share: float) -> float:
    """No compression during the warm-up, and all of it afterwards.

    Args:
        progress: Share of all training steps that is done, in [0, 1].
        share: Length of the warm-up as a share of all steps, in [0, 1].

    Returns:
        The share of the level's compression that applies: 0 or 1.
    """
    return 1.0 if progress >= share else 0.0


SCHEDULES = {"linear": linear_warmup, "cubic": cubic_warmup, "delayed": delayed}
