"""A subspace as plain data for summaries, logs and reports."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import torch
from torch import Tensor

from lightning_lcs.functional.statistics import statistics_drift
from lightning_lcs.functional.subspace import endpoint_distance
from lightning_lcs.graph.channels.plan import select
from lightning_lcs.subspace.mode import Level
from lightning_lcs.subspace.modes.registry import mode_to_dict
from lightning_lcs.subspace.part import Part, cosine_between, endpoint_pairs
from lightning_lcs.subspace.state import LevelTensors, SubspaceState

VERSION = 1
_PACKAGES = ("torch", "lightning", "pytorch-lightning", "timm", "lightning-lcs")


def describe(state: SubspaceState, parts: Sequence[Part], replaced_norms: Sequence[str]) -> dict[str, Any]:
    """A subspace as plain data: its settings, what it compresses, its endpoints, its batch-norm statistics.

    Args:
        state: The state of the subspace.
        parts: The networks, which have run below alpha = 1.
        replaced_norms: The norms that were replaced, a line each.
    """
    return {
        "version": VERSION,
        "settings": settings_of(state, parts),
        "plan": plan_of(state, parts, replaced_norms),
        "endpoints": endpoints_of(parts),
        "statistics": {"levels": len(state.statistics), "size_bytes": size_of(state.statistics)},
        "drift": [[alpha, drift] for alpha, drift in drifts_of(state, parts).items()],
        "environment": environment(),
    }


def settings_of(state: SubspaceState, parts: Sequence[Part]) -> dict[str, Any]:
    """The settings: network, mode, subspace, and so on."""
    parameters = {parameter for part in parts for parameter in part.network.module.parameters()}
    return {
        "network": ", ".join(type(part.network.module).__name__ for part in parts),
        "mode": mode_to_dict(state.mode),
        "subspace": state.subspace,
        "line_parameters": state.line_parameters if state.subspace == "line" else None,
        "norm": state.norm,
        "trainable_parameters": sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
    }


def plan_of(state: SubspaceState, parts: Sequence[Part], replaced_norms: Sequence[str]) -> dict[str, Any]:
    """The part of every tensor that the most compressed level (alpha = 0) keeps.

    Returns:
        "compressed": ``[name, shape, what is left]`` of each tensor that shrinks; "whole": ``[what, why]`` of what
        could shrink and does not; "replaced": the norms that were replaced; "numbers" and "kept_numbers": the entries
        of all tensors, in full and at alpha = 0 (quantized mode keeps as many, of fewer bits).
    """
    found = [(part, state.mode.describe(part)) for part in parts]
    return {
        "compressed": [list(row) for _, description in found for row in description.rows],
        "whole": [[part.prefix + what, why] for part, description in found for what, why in description.whole],
        "replaced": list(replaced_norms),
        "numbers": sum(description.full for _, description in found),
        "kept_numbers": sum(description.kept for _, description in found),
    }


def endpoints_of(parts: Sequence[Part]) -> dict[str, float]:
    """The cosine between the endpoints of a line, and their distance relative to endpoint 1; empty for a point."""
    pairs = endpoint_pairs(parts)
    if not pairs:
        return {}
    with torch.no_grad():
        return {"cosine": float(cosine_between(pairs)), "distance": float(endpoint_distance(pairs))}


def drifts_of(state: SubspaceState, parts: Sequence[Part]) -> dict[float, float]:
    """The drift of the batch-norm statistics of each stored level from those of alpha = 1, averaged over the channels.

    See :func:`statistics_drift`. The result is empty if no statistics are stored. Quantized mode stores alpha = 1 as a
    level, too; the network's own running statistics are still the reference then.
    """
    drifts: dict[float, float] = {}
    for alpha, stored in sorted(state.statistics.items()):
        channels = [_channels(part, Level(state.mode, alpha, statistics=stored), stored) for part in parts]
        found = [drift for drifts_of_part in channels for drift in drifts_of_part]
        if found:
            drifts[alpha] = float(torch.cat(found).mean())
    return drifts


@torch.no_grad()
def _channels(part: Part, level: Level, stored: Mapping[str, Tensor]) -> list[Tensor]:
    execution = level.mode.example_execution(part, level, training=False)
    found = []
    for mean, (variance, _) in execution.statistics.items():
        names = (mean, variance)
        if all(part.prefix + name in stored for name in names):
            own = [stored[part.prefix + name].cpu() for name in names]
            full = [select(part.network.tensor(name), execution.cut(name)).cpu() for name in names]
            found.append(statistics_drift(*own, *full))
    return found


def size_of(levels: LevelTensors) -> int:
    """The bytes of the tensors of all levels."""
    return sum(value.numel() * value.element_size() for tensors in levels.values() for value in tensors.values())


def environment() -> dict[str, str]:
    """The versions of the packages, and the machine."""
    versions = {name: version for name in _PACKAGES if (version := _version(name))}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        "python": platform.python_version(),
        **versions,
        "system": f"{platform.system()} {platform.machine()}",
        "cpus": str(os.cpu_count()),
        "torch_threads": str(torch.get_num_threads()),
        "gpu": device,
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
