"""The line between two endpoints of the weights (arXiv 2110.04252, section 3)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def interpolate(w0: Tensor, w1: Tensor, alpha: float) -> Tensor:
    """The weights at a position on the line, ``(1 - alpha) * w0 + alpha * w1``.

    Args:
        w0: Endpoint 0, of any shape.
        w1: Endpoint 1, of the same shape.
        alpha: Position on the line, in [0, 1].

    Returns:
        A tensor of the same shape. At alpha = 0 and alpha = 1 it is the endpoint itself, bitwise.
    """
    if alpha == 0.0:
        return w0
    if alpha == 1.0:
        return w1
    return torch.lerp(w0, w1, alpha)


def endpoint_cosine(pairs: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Cosine of the angle between the endpoints, over all parameters of the line together.

    ``cos = <w0, w1> / (|w0| |w1|)``, where the dot product and the squared norms are first summed over all tensors.

    Args:
        pairs: The endpoints ``(w0, w1)`` of every parameter on the line, of equal shapes within each pair. At least one
            pair is needed.

    Returns:
        A scalar in [-1, 1], differentiable in both endpoints. It is 0 if an endpoint is all zeros.

    Raises:
        ValueError: ``pairs`` is empty.
    """
    dots, norms0, norms1 = [], [], []
    for w0, w1 in pairs:
        # In half precision the sums of squares would overflow.
        wide = torch.promote_types(w0.dtype, torch.float32)
        w0, w1 = w0.to(wide), w1.to(wide)
        dots.append((w0 * w1).sum())
        norms0.append((w0 * w0).sum())
        norms1.append((w1 * w1).sum())
    if not dots:
        raise ValueError("pairs is empty: a line needs at least one parameter with two endpoints")
    dot, norm0, norm1 = (torch.stack(values).sum() for values in (dots, norms0, norms1))
    tiny = torch.finfo(dot.dtype).tiny
    return dot * norm0.clamp_min(tiny).rsqrt() * norm1.clamp_min(tiny).rsqrt()


def endpoint_distance(pairs: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Distance between the endpoints relative to endpoint 1, ``|w0 - w1| / |w1|``, over all parameters together.

    Args:
        pairs: The endpoints ``(w0, w1)`` of every parameter on the line, as for :func:`endpoint_cosine`.

    Returns:
        A float64 scalar, which is 0 if the endpoints are equal.

    Raises:
        ValueError: ``pairs`` is empty.
    """
    squares = [
        torch.stack([(w0.double() - w1.double()).square().sum(), w1.double().square().sum()]) for w0, w1 in pairs
    ]
    if not squares:
        raise ValueError("pairs is empty: a line needs at least one parameter with two endpoints")
    distance, norm1 = torch.stack(squares).sum(0).sqrt().unbind()
    return torch.div(distance, norm1.clamp_min(torch.finfo(norm1.dtype).tiny))


def redraw(weight: Tensor, generator: torch.Generator) -> Tensor:
    """Random normal weights with the mean and the standard deviation of ``weight``, for an independent second endpoint.

    Args:
        weight: A tensor of any shape. One with fewer than two dimensions (a bias, or a parameter of a norm) is copied
            instead, because such parameters start at a constant.
        generator: A generator on the CPU, so that the draw does not depend on the device of ``weight``.

    Returns:
        A new tensor of the same shape, dtype and device.
    """
    if weight.ndim < 2:
        return weight.detach().clone()
    noise = torch.randn(weight.shape, generator=generator, dtype=torch.float32).to(weight)
    return noise * weight.detach().std(correction=0) + weight.detach().mean()
