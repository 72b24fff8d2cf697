"""What a mode compresses in a network, what it leaves whole, and why."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence

from torch import nn

from lightning_lcs import _endpoints
from lightning_lcs._execution import layer_weights

# Of all parameters: below it, position embeddings and the like are worth a line in the report, and no warning.
WORTH_A_WARNING = 0.05


def left_whole(module: nn.Module, compressed: Iterable[str]) -> dict[str, str]:
    """Weights of two or more dimensions that a mode leaves as they are, by name, each with the reason."""
    options, taken = set(layer_weights(module)), set(compressed)
    return {
        name: "left out by the mode's options" if name in options else "not the weight of a convolution or linear layer"
        for name, parameter in _endpoints.user_parameters(module)
        if parameter.ndim > 1 and name not in taken
    }


def warn_of_whole(module: nn.Module, compressed: Iterable[str]) -> None:
    """Warn where much of a network is left whole without having been asked for."""
    whole = [name for name, why in left_whole(module, compressed).items() if not why.startswith("left out")]
    sizes = {name: parameter.numel() for name, parameter in _endpoints.user_parameters(module)}
    share = sum(sizes[name] for name in whole) / sum(sizes.values())
    if share > WORTH_A_WARNING:
        named = ", ".join(whole[:3]) + (f" and {len(whole) - 3} more" if len(whole) > 3 else "")
        warnings.warn(
            f"{share:.0%} of the parameters of {type(module).__name__} stay whole at every level, for they are not the "
            f"weights of convolutions or linear layers: {named}; report() lists all",
            stacklevel=4,
        )


def report(module: nn.Module, compressed: Sequence[str], converted: Sequence[str]) -> str:
    """What is compressed and what is kept whole, a line each; then the norms that were replaced."""
    sizes = {name: parameter.numel() for name, parameter in _endpoints.user_parameters(module)}
    inside = sum(sizes.get(name, 0) for name in compressed)
    lines = [f"{inside:,} of {sum(sizes.values()):,} parameters are in the {len(compressed)} compressed weights"]
    whole = left_whole(module, compressed)
    lines.extend(f"  kept whole: {name}, {sizes[name]:,} parameters ({why})" for name, why in whole.items())
    return "\n".join([*lines, *norm_lines(converted)])


def norm_lines(converted: Sequence[str]) -> list[str]:
    """The norms that were replaced, a line each."""
    return [f"  norm replaced: {line}" for line in converted]
