"""The tensors of a network that are kept whole at every level, and why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import nn

from lightning_lcs.subspace.weights.computed import computed_weights, source_names
from lightning_lcs.subspace.weights.endpoints import user_parameters
from lightning_lcs.subspace.weights.layers import all_weights
from lightning_lcs.subspace.weights.tied import tied_parameters
from lightning_lcs.utils.warning import warn

# Below this share of all parameters, tensors such as position embeddings get a line in the report, but no warning.
WORTH_A_WARNING = 0.05
NO_LAYER = "not the weight of a convolution, or of a linear, recurrent or attention layer"
BY_OPTION = "left out by the mode's options"


def kept_whole(
    module: nn.Module, compressed: Iterable[str], reasons: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The weights of two or more dimensions that are not compressed, by name, each with the reason.

    A parameter that several places share stands here once, by its first name.

    Args:
        module: The network.
        compressed: The names of the weights that are compressed.
        reasons: The reasons that a mode has for single weights.
    """
    of_layers, taken = dict.fromkeys(all_weights(module), BY_OPTION), set(compressed)
    sources, tied = source_names(computed_weights(module)), tied_parameters(module)
    known = {**of_layers, **(reasons or {})}
    found: dict[str, str] = {}
    for name, parameter in user_parameters(module):
        places = tied.get(name, (name,))
        weights = [sources.get(place, place) for place in places]
        if parameter.ndim >= 2 and taken.isdisjoint(weights):
            whys = dict(zip(places, (known.get(weight, NO_LAYER) for weight in weights), strict=True))
            found[name] = _reason(whys)
    return found


def _reason(whys: Mapping[str, str]) -> str:
    """Why a parameter is whole, by the reasons of the places that share it."""
    # In a layer that could be compressed it is whole because of the other place.
    place = max(whys, key=lambda name: (whys[name] == NO_LAYER, whys[name] != BY_OPTION))
    others = [name for name in whys if name != next(iter(whys))]
    return f"one parameter with {', '.join(others)}; {place}: {whys[place]}" if others else whys[place]


def warn_of_whole(module: nn.Module, whole: Mapping[str, str]) -> None:
    """Warn if much of a network stays whole at every level although the user did not ask for it."""
    whole = {name: why for name, why in whole.items() if why != BY_OPTION}
    sizes = {name: parameter.numel() for name, parameter in user_parameters(module)}
    share = sum(sizes.get(name, 0) for name in whole) / max(1, sum(sizes.values()))
    if share > WORTH_A_WARNING:
        named = ", ".join(f"{name} ({why})" for name, why in list(whole.items())[:3])
        named += f" and {len(whole) - 3} more" if len(whole) > 3 else ""
        warn(
            f"{share:.0%} of the parameters of {type(module).__name__} stay whole at every level: {named}; report() "
            "lists all"
        )


def issue_pending_warnings(pending: list[str]) -> None:
    """Issue the warnings that tracing a network has left, and clear the list."""
    while pending:
        warn(pending.pop(0))
