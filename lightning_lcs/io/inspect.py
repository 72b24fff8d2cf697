"""What is in a file, without its network."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from lightning_lcs.graph.tracing.trace import InputSpec
from lightning_lcs.io import container, lcs_file
from lightning_lcs.io.graph_json import network_from_data
from lightning_lcs.subspace.curves.level_table import NamedLevel
from lightning_lcs.subspace.mode import Mode


@dataclasses.dataclass(frozen=True)
class FileContents:
    """What is in a file whose checksums are right.

    Attributes:
        path: The path of the file.
        size_bytes: The size of the file in bytes.
        version: The version of the format.
        mode: The compression mode, with its options.
        subspace: "line" or "point".
        sections: The number of tensors, each of which has a checksum.
        tensors: By kind of tensor, how many there are and their size in bytes.
        statistics: The levels with batch-norm statistics of their own.
        inputs: The shape and the type of each tensor that the network takes. The batch is open, and so is a size that
            is "any". It is empty if the file holds no network.
        ops: The number of ops of the network; 0 if the file holds no network.
        levels: The level table.
        class_names: The names of the classes.
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


def inspect_file(path: str | os.PathLike[str]) -> FileContents:
    """Verify the checksums of a file and say what is in it, without its network and without running it.

    Args:
        path: The path of the file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not a file that ``SubspaceModel.save`` wrote, or it is damaged.

    Example:
        >>> import torch
        >>> from lightning_lcs import SubspaceModel
        >>> from lightning_lcs.io.inspect import inspect_file
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
        >>> SubspaceModel(net, torch.randn(2, 8), subspace="point").eval().save("model.lcs")
        >>> inspect_file("model.lcs").ops
        3
    """
    header, tensors = container.read(path)
    content = lcs_file.Content(header, tensors)
    kinds: dict[str, tuple[int, int]] = {}
    for name, value in tensors.items():
        kind = name.partition(".")[0]
        count, size = kinds.get(kind, (0, 0))
        kinds[kind] = (count + 1, size + value.numel() * value.element_size())
    inputs, ops = [], 0
    if content.mode.runs_as_graph:
        program, _ = network_from_data(header["network"], content.constants())
        ops = sum(node.op == "call_function" for node in program.trace.graph.nodes)
        for spec in (spec for spec in program.trace.specs if isinstance(spec, InputSpec)):
            sizes = ["batch" if size is None else str(size) for size in spec.shape]
            open_from = 2 if header["any_size"] else len(sizes)
            shape = (*sizes[:open_from], *(f"any (saved with {size})" for size in sizes[open_from:]))
            inputs.append((shape, str(spec.dtype).removeprefix("torch.")))
    return FileContents(
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
