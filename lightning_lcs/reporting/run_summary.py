"""What a run is beside its curves, as plain data: the file ``summary.json``, and the configuration in W&B."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from importlib import metadata
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_lcs.functional.statistics import statistics_drift
from lightning_lcs.functional.subspace import endpoint_distance
from lightning_lcs.graph.channels.plan import select
from lightning_lcs.model import SubspaceModel
from lightning_lcs.subspace.calibration import statistics_size_bytes
from lightning_lcs.subspace.coverage import left_whole
from lightning_lcs.subspace.modes.registry import Mode, Quantized, Structured, mode_to_dict
from lightning_lcs.subspace.network import Part
from lightning_lcs.subspace.weights import Compression, setting_of
from lightning_lcs.utils.files import write_text

VERSION = 1
SUMMARY = "summary.json"
_PACKAGES = ("torch", "lightning", "pytorch-lightning", "timm", "lightning-lcs")


def summary_of(model: SubspaceModel) -> dict[str, Any]:
    """A subspace model as plain data: its settings, what it compresses, its endpoints, its batch-norm statistics.

    Args:
        model: a subspace model that has run below alpha = 1.
    """
    return {
        "version": VERSION,
        "settings": settings_of(model),
        "plan": plan_of(model),
        "endpoints": endpoints_of(model),
        "statistics": {"levels": len(model.statistics), "size_bytes": statistics_size_bytes(model)},
        "drift": [[alpha, drift] for alpha, drift in drifts_of(model).items()],
        "environment": environment(),
    }


def settings_of(model: SubspaceModel) -> dict[str, Any]:
    """What was chosen: network, mode, subspace, and so on."""
    return {
        "network": ", ".join(type(part.network.module).__name__ for part in model.parts),
        "mode": mode_to_dict(model.mode),
        "subspace": model.subspace,
        "line_parameters": model.line_parameters if model.subspace == "line" else None,
        "norm": model.norm,
        "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
    }


def plan_of(model: SubspaceModel) -> dict[str, Any]:
    """What the most compressed level (alpha = 0) has of every tensor.

    Returns:
        "compressed": ``[name, shape, what is left]`` of each tensor that shrinks; "whole": ``[what, why]`` of what
        could shrink and does not; "replaced": norms that were replaced; "numbers" and "kept_numbers": entries of all
        tensors, in full and at alpha = 0 (in quantized mode they are as many, of fewer bits).
    """
    compressed: list[list[str]] = []
    whole: list[list[str]] = []
    numbers = kept_numbers = 0
    for part in model.parts:
        rows, kept, full = (_sliced if isinstance(model.mode, Structured) else _replaced)(part, model.mode)
        compressed += rows
        numbers, kept_numbers = numbers + full, kept_numbers + kept
        whole += [[part.prefix + name, why] for name, why in _whole(part, model.mode)]
    return {
        "compressed": compressed,
        "whole": whole,
        "replaced": list(model._converted),
        "numbers": numbers,
        "kept_numbers": kept_numbers,
    }


def _sliced(part: Part, mode: Mode) -> tuple[list[list[str]], int, int]:
    """Rows, kept entries and all entries in structured mode."""
    assert isinstance(mode, Structured)
    part.network.in_mode(False)
    plan, at = part.network.plan, part.selection(mode, 0.0)
    shapes = {name: [plan.structure.size(dim) for dim in dims] for name, dims in plan.tensors.items()}
    rows = [
        [part.prefix + name, _shape(shapes[name]), _shape(at.shape(name))]
        for name, sliced in plan.sliced().items()
        if sliced
    ]
    return rows, sum(prod(at.shape(name)) for name in shapes), sum(map(prod, shapes.values()))


def _replaced(part: Part, mode: Mode) -> tuple[list[list[str]], int, int]:
    """The same in the other modes."""
    level = Compression(part, setting_of(mode, 0.0))
    parameters = dict(part.network.module.named_parameters())
    sizes = {name: parameters[name].numel() for name in part.compressed}
    kept = sizes if isinstance(mode, Quantized) else {name: level.kept_entries(name) for name in sizes}
    rows = []
    for name in part.compressed:
        left = f"{kept[name]:,} of {sizes[name]:,} entries"
        if isinstance(mode, Quantized):
            left = f"{part.fixed_bits.get(name, mode.bit_width(0.0))} bits"
        rows.append([part.prefix + name, _shape(list(parameters[name].shape)), left])
    return rows, sum(kept.values()), sum(sizes.values())


def _whole(part: Part, mode: Mode) -> list[tuple[str, str]]:
    if isinstance(mode, Structured):
        kept = part.network.plan.whole().items()
        return [(f"{name}, dimension {axis}", why) for name, dims in kept for axis, why in dict.fromkeys(dims)]
    return list(left_whole(part.network.module, mode, part.compressed).items())


def _shape(sizes: list[int]) -> str:
    return " \N{MULTIPLICATION SIGN} ".join(map(str, sizes)) or "1"


def endpoints_of(model: SubspaceModel) -> dict[str, float]:
    """Cosine between the endpoints of a line, and their distance relative to endpoint 1; empty for a point."""
    pairs = model.endpoint_pairs()
    if not pairs:
        return {}
    with torch.no_grad():
        return {"cosine": float(model.endpoint_cosine()), "distance": float(endpoint_distance(pairs))}


def drifts_of(model: SubspaceModel) -> dict[float, float]:
    """By stored level: how far its batch-norm statistics are from those of alpha = 1, the mean over all channels.

    See :func:`statistics_drift`. Empty where no statistics are stored, or nothing is compared with them (quantized mode
    stores alpha = 1 as a level, too: its own running statistics are then still the reference).
    """
    drifts: dict[float, float] = {}
    for alpha, stored in sorted(model.statistics.items()):
        channels = [_channels(part, model.mode, alpha, stored) for part in model.parts]
        found = [drift for drifts_of_part in channels for drift in drifts_of_part]
        if found:
            drifts[alpha] = float(torch.cat(found).mean())
    return drifts


@torch.no_grad()
def _channels(part: Part, mode: Mode, alpha: float, stored: Mapping[str, Tensor]) -> list[Tensor]:
    execution = part.example_execution(mode, alpha, False)
    found = []
    for mean, (variance, _) in execution.statistics.items():
        names = (mean, variance)
        if all(part.prefix + name in stored for name in names):
            level = [stored[part.prefix + name].cpu() for name in names]
            full = [select(part.network.tensor(name), execution.cut(name)).cpu() for name in names]
            found.append(statistics_drift(*level, *full))
    return found


def environment() -> dict[str, str]:
    """Versions, and the machine."""
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


def write_summary(summary: Mapping[str, Any], path: str | os.PathLike[str]) -> Path:
    """Write a summary as JSON, whole or not at all."""
    return write_text(json.dumps(summary, indent=1, ensure_ascii=False) + "\n", path)


def name_method(folder: Path, method: str) -> None:
    """Note in the ``summary.json`` of a run by which training method it was made.

    A network that was trained plainly is measured as a structured point, and is not one.

    Args:
        folder: The folder of the run.
        method: The name of the method; see :meth:`LCSCallback.method`.
    """
    path = folder / SUMMARY
    if path.exists():
        write_summary({**read_summary(path), "method": method}, path)


def read_summary(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A summary as :func:`write_summary` wrote it.

    Raises:
        ValueError: not such a file, or one of another version.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a summary of a run: {error}") from error
    version = found.get("version") if isinstance(found, dict) else None
    if version != VERSION:
        raise ValueError(f"{path} is of version {version}, and this is version {VERSION}: measure the curve anew")
    return dict(found)
