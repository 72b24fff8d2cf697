"""What a mode compresses in a network, what it leaves whole, and why."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence

from torch import nn

from lightning_lcs.functional.sparsity import BLOCK
from lightning_lcs.graph.channels.plan import ChannelPlan
from lightning_lcs.subspace import endpoints
from lightning_lcs.subspace.forward import layer_weights
from lightning_lcs.subspace.modes.registry import Mode, Unstructured

# Of all parameters: below it, position embeddings and the like are worth a line in the report, and no warning.
WORTH_A_WARNING = 0.05
BY_OPTION = "left out by the mode's options"


def left_whole(module: nn.Module, mode: Mode, compressed: Iterable[str]) -> dict[str, str]:
    """Weights of two or more dimensions that a mode leaves as they are, by name, each with the reason."""
    options, taken = set(layer_weights(module)), set(compressed)
    in_blocks = isinstance(mode, Unstructured) and mode.scope == "block"
    asked = set(layer_weights(module, mode.dense)) if isinstance(mode, Unstructured) and in_blocks else set()
    reasons: dict[str, str] = {}
    for name, parameter in endpoints.user_parameters(module):
        if parameter.ndim < 2 or name in taken:
            continue
        if name in asked and parameter.shape[1] % BLOCK:
            reasons[name] = f"its {parameter.shape[1]} inputs are no multiple of {BLOCK}"
        elif name in options:
            reasons[name] = BY_OPTION
        else:
            reasons[name] = "not the weight of a convolution or linear layer"
    return reasons


def warn_of_whole(module: nn.Module, mode: Mode, compressed: Iterable[str]) -> None:
    """Warn where much of a network is left whole without having been asked for."""
    whole = {name: why for name, why in left_whole(module, mode, compressed).items() if why != BY_OPTION}
    _warn(module, whole, stacklevel=5)


def warn_of_kept_whole(module: nn.Module, plan: ChannelPlan) -> None:
    """The same in structured mode, where ops without a rule keep what they touch at full width."""
    _warn(module, plan.tensors_kept_whole(), stacklevel=5)


def issue_pending_warnings(pending: list[str]) -> None:
    """Warn of what the trace of a network does without, and take it off the list."""
    while pending:
        warnings.warn(pending.pop(0), stacklevel=4)


def _warn(module: nn.Module, whole: Mapping[str, str], stacklevel: int) -> None:
    sizes = {name: parameter.numel() for name, parameter in endpoints.user_parameters(module)}
    share = sum(sizes.get(name, 0) for name in whole) / max(1, sum(sizes.values()))
    if share > WORTH_A_WARNING:
        named = ", ".join(f"{name} ({why})" for name, why in list(whole.items())[:3])
        named += f" and {len(whole) - 3} more" if len(whole) > 3 else ""
        warnings.warn(
            f"{share:.0%} of the parameters of {type(module).__name__} stay whole at every level: {named}; report() "
            "lists all",
            stacklevel=stacklevel,
        )


def report(module: nn.Module, mode: Mode, compressed: Sequence[str], converted: Sequence[str]) -> str:
    """What is compressed and what is kept whole, a line each; then the norms that were replaced."""
    sizes = {name: parameter.numel() for name, parameter in endpoints.user_parameters(module)}
    inside = sum(sizes.get(name, 0) for name in compressed)
    lines = [f"{inside:,} of {sum(sizes.values()):,} parameters are in the {len(compressed)} compressed weights"]
    whole = left_whole(module, mode, compressed)
    lines.extend(f"  kept whole: {name}, {sizes[name]:,} parameters ({why})" for name, why in whole.items())
    return "\n".join([*lines, *norm_lines(converted)])


def norm_lines(converted: Sequence[str]) -> list[str]:
    """The norms that were replaced, a line each."""
    return [f"  norm replaced: {line}" for line in converted]
