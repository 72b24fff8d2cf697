"""Files without the network: what is in one, and a file of one level out of a file of all."""

from __future__ import annotations

import dataclasses
import math
import os
from pathlib import Path
from typing import Any

from lightning_lcs import _artifact, _container
from lightning_lcs.channels.serial import level_to_data, network_from_data
from lightning_lcs.channels.stored import runs_at_any_size
from lightning_lcs.channels.trace import InputSpec
from lightning_lcs.efficiency import CurvePoint
from lightning_lcs.level_table import Level, make_table, table_to_data
from lightning_lcs.model import SubspaceModel
from lightning_lcs.modes import Mode, Structured, mode_to_dict


@dataclasses.dataclass(frozen=True)
class FileSummary:
    """What is in a file whose checksums are right.

    Attributes:
        path: of the file.
        size_bytes: of the file.
        version: of the format.
        mode: of compression, with its options.
        subspace: "line" or "point".
        sections: number of tensors, each with a checksum.
        tensors: tensors by kind: how many, and their bytes.
        statistics: levels with batch-norm statistics of their own.
        inputs: shape and type of each tensor that it takes; the batch is open, and so is a size that is "any". Empty
            where the file holds no network.
        ops: number of ops of the network; 0 where the file holds none.
        levels: the level table.
        class_names: names of the classes.
    """

    path: Path
    size_bytes: int
    version: int
    mode: Mode
    subspace: str
    sections: int
    tensors: dict[str, tuple[int, int]]
    statistics: tuple[float, ...]
    inputs: tuple[tuple[tuple[str, ...], str], ...]
    ops: int
    levels: tuple[Level, ...]
    class_names: tuple[str, ...]


def summary(path: str | os.PathLike[str]) -> FileSummary:
    """Check a file and say what is in it; the network is neither needed nor run.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such file, or a damaged one.
    """
    header, tensors = _container.read(path)
    content = _artifact.Content(header, tensors)
    kinds: dict[str, tuple[int, int]] = {}
    for name, value in tensors.items():
        kind = name.partition(".")[0]
        count, size = kinds.get(kind, (0, 0))
        kinds[kind] = (count + 1, size + value.numel() * value.element_size())
    inputs, ops = [], 0
    if isinstance(content.mode, Structured):
        constants = [value for _, value in sorted(content.of("constant").items(), key=lambda item: int(item[0]))]
        program, _ = network_from_data(header["network"], constants)
        ops = sum(node.op == "call_function" for node in program.trace.graph.nodes)
        for spec in (spec for spec in program.trace.specs if isinstance(spec, InputSpec)):
            sizes = ["batch" if size is None else str(size) for size in spec.shape]
            open_from = 2 if header["any_size"] else len(sizes)
            shape = (*sizes[:open_from], *(f"any (saved with {size})" for size in sizes[open_from:]))
            inputs.append((shape, str(spec.dtype).removeprefix("torch.")))
    return FileSummary(
        path=Path(path),
        size_bytes=Path(path).stat().st_size,
        version=header["version"],
        mode=content.mode,
        subspace=content.subspace,
        sections=len(tensors),
        tensors=kinds,
        statistics=tuple(sorted(content.levels("statistics"))),
        inputs=tuple(inputs),
        ops=ops,
        levels=content.table,
        class_names=content.classes,
    )


def save_level(model: SubspaceModel, alpha: float, path: str | os.PathLike[str]) -> Level:
    """Write a file that holds one level only, which is its alpha = 1.

    Name and measurements of the level come from the model's level table where it has the level.

    Args:
        model: structured, with a single network.
        alpha: in [0, 1]; with stored batch-norm statistics, the nearest stored level.
        path: of the file, written whole or not at all.

    Returns:
        The level as it stands in the table of the new file.

    Raises:
        ValueError: the model is not structured, or ``alpha`` is outside [0, 1].
    """
    if not isinstance(model.mode, Structured) or len(model.parts) > 1:
        raise ValueError("a file of one level is made from a structured subspace of one network")
    level, part, mode = model.nearest_level(alpha), model.parts[0], Structured(min_width=1.0)
    program = part.network.in_mode(False)
    data = level_to_data(program, part.selection(model.mode, level))
    small = model.materialize(level)
    parameters = dict(small.named_parameters(remove_duplicate=False))
    values = {**parameters, **dict(small.named_buffers(remove_duplicate=False))}
    own = {f"{'parameter' if n in parameters else 'buffer'}.{n}": values[n] for n in program.names}
    constants = list(program.trace.constants.values())
    own |= {f"constant.{number}": value for number, value in enumerate(constants)}
    _artifact.check_network(*network_from_data(data, constants), mode, {n: values[n].dtype for n in program.names})
    known = next((entry for entry in model.levels if entry.alpha == level), None)
    cost: dict[str, Any] = {**vars(model.efficiency(level)), "alpha": 1.0, "width": 1.0}
    latency, metrics = (math.nan, {}) if known is None else (known.latency_ms, known.metrics)
    point = CurvePoint(**cost, latency_ms=latency, metrics=metrics)
    table = make_table({"full" if known is None else known.name: point}, mode, lambda _: point)
    header = {
        "version": _artifact.VERSION,
        "mode": mode_to_dict(mode),
        "subspace": "point",
        "line_parameters": model.line_parameters,
        "norm": model.norm,
        "level_table": table_to_data(table),
        "classes": list(model.class_names),
        "statistics": [],
        "network": data,
        "any_size": runs_at_any_size(part.network),
        "scales": [],
        "unsaved": [name for name in program.names if name not in small.state_dict()],
    }
    _artifact.write(path, header, own)
    return table[0]
