"""The line between two endpoints of the weights (arXiv 2110.04252, section 3)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def interpolate(w0: Tensor, w1: Tensor, alpha: float) -> Tensor:
    """``w(alpha) = (1 - alpha) * w0 + alpha * w1``.

    At alpha = 0 and 1 the endpoint itself is returned, so that the ends of the line equal the endpoints bitwise.

    Args:
        w0: endpoint 0, any shape.
        w1: endpoint 1, same shape.
        alpha: position on the line, in [0, 1].
    """
    if alpha == 0.0:
        return w0
    if alpha == 1.0:
        return w1
    return torch.lerp(w0, w1, alpha)


def endpoint_cosine(pairs: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Cosine between the endpoints, taken over all parameters of the line together.

    ``cos = <w0, w1> / (|w0| |w1|)``, with the dot product and the squared norms summed over all tensors first.

    Args:
        pairs: ``(w0, w1)`` of every parameter on the line, shapes equal within a pair; at least one pair.

    Returns:
        A scalar in [-1, 1], differentiable in both endpoints; 0 where an endpoint is all zeros.

    Raises:
        ValueError: ``pairs`` is empty.
    """
    dots, norms0, norms1 = [], [], []
    for w0, w1 in pairs:
        # Sums of squares overflow in half precision.
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
    """Distance between the endpoints relative to endpoint 1: ``|w0 - w1| / |w1|``, over all parameters together.

    Args:
        pairs: as in :func:`endpoint_cosine`.

    Returns:
        A scalar, 0 where the endpoints are equal.

    Raises:
        ValueError: ``pairs`` is empty.
    """
    squares = [
        torch.stack([(w0.double() - w1.double()).square().sum(), w1.double().square().sum()]) for w0, w1 in pairs
    ]
    if not squares:
        raise ValueError("pairs is empty: a line needs at least one parameter with two endpoints")
    apart, length = torch.stack(squares).sum(0).sqrt().unbind()
    return torch.div(apart, length.clamp_min(torch.finfo(length.dtype).tiny))


def redraw(weight: Tensor, generator: torch.Generator) -> Tensor:
    """An independent draw with the mean and the standard deviation of ``weight``: a second, unrelated endpoint.

    Args:
        weight: two or more dimensions; tensors of fewer dimensions (biases, norm parameters) are returned as a copy,
            since all of them start at one constant.
        generator: a CPU generator; the draw does not depend on the device of ``weight``.
    """
    if weight.ndim < 2:
        return weight.detach().clone()
    noise = torch.randn(weight.shape, generator=generator, dtype=torch.float32).to(weight)
    return noise * weight.detach().std(correction=0) + weight.detach().mean()
