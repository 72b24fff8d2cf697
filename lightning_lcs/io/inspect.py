"""What is in a file, without its network."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from lightning_lcs.graph.tracing.trace import InputSpec
from lightning_lcs.io import container, lcs_file
from lightning_lcs.io.graph_json import network_from_data
from lightning_lcs.subspace.level_table import NamedLevel
from lightning_lcs.subspace.modes.registry import Mode, Structured


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
    levels: tuple[NamedLevel, ...]
    class_names: tuple[str, ...]


def summary(path: str | os.PathLike[str]) -> FileSummary:
    """Check a file and say what is in it; the network is neither needed nor run.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such file, or a damaged one.
    """
    header, tensors = container.read(path)
    content = lcs_file.Content(header, tensors)
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
