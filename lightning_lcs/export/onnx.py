"""Levels as ONNX: a file per level, and one file that holds all levels over shared weights."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from lightning_lcs.export.base import (
    check_difference,
    difference,
    levels_of,
    program_of,
)
from lightning_lcs.export.onnx_levels import LevelGraph, several_levels, simplified
from lightning_lcs.export.registry import ExportedFile
from lightning_lcs.graph.channels.plan import Indices, Kept, Selection
from lightning_lcs.model import SubspaceModel
from lightning_lcs.subspace.modes import Structured
from lightning_lcs.utils.extras import needed_for
from lightning_lcs.utils.files import replacing_folder

# The key of a file's metadata that holds {"alphas": [...]}; the number given as "level" counts in this list.
METADATA_KEY = "lightning_lcs"
SEVERAL = "levels.onnx"
# A protocol buffer file holds at most 2 GiB.
_LARGEST = (1 << 31) - (1 << 20)


def export_onnx(
    model: SubspaceModel,
    folder: str | os.PathLike[str],
    alphas: Sequence[float] = (0.0, 0.5, 1.0),
    *,
    several: bool = True,
) -> list[ExportedFile]:
    """Write one ``alpha_A.onnx`` per level, and ``levels.onnx`` with all levels.

    The batch size stays open. ``levels.onnx`` has one more input: ``level``, an int64 scalar that counts from 0, which
    is the smallest alpha; a number beyond either end runs the level at that end. Its metadata hold the alphas. Weights
    that are a part of those of the largest level, as on a point, or that are its magnitudes above a threshold, are in
    the file once; weights that a line moves are in it once per level. A runtime that folds constants, such as
    onnxruntime, holds all levels in memory and runs each of them as fast as its own file.

    Every level of every file is run with onnxruntime and compared with the level in torch. Either all files are written
    or none.

    Args:
        model: A subspace with a single network, in evaluation.
        folder: The output folder, which is made if it does not exist.
        alphas: The levels in [0, 1]; with stored batch-norm statistics, the nearest stored levels. The default is 0,
            0.5 and 1.
        several: Whether to write ``levels.onnx`` if there is more than one level. The default is that it is written.

    Returns:
        The files: those of single levels by ascending alpha, then ``levels.onnx``.

    Raises:
        ModuleNotFoundError: onnx, onnxscript or onnxruntime is not installed.
        ValueError: A level is outside [0, 1], the network has more than 2 GiB, or it has control flow of its own, which
            ``levels.onnx`` can't hold.
        RuntimeError: The input of the network is not known, the network can't be exported, or a file computes something
            else than its level.

    Example:
        >>> import torch
        >>> from lightning_lcs import SubspaceModel
        >>> from lightning_lcs.export import export_onnx
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
        >>> model = SubspaceModel(net, torch.randn(2, 8), subspace="point").eval()
        >>> files = export_onnx(model, "onnx", [0.0, 1.0])
        >>> [file.path.name for file in files]
        ['alpha_0.onnx', 'alpha_1.onnx', 'levels.onnx']
    """
    require_onnx()
    chosen = levels_of(model, alphas)
    networks: list[nn.Module] = []
    levels: list[LevelGraph] = []
    found: list[tuple[str, tuple[float, ...], int, float]] = []
    with replacing_folder(folder) as scratch:
        for alpha in chosen:
            network = model.materialize(alpha)
            proto = onnx_of(model, network)
            path = scratch / f"alpha_{alpha:g}.onnx"
            write_onnx(proto, path, [alpha])
            off = difference(model, network, _runner(path))
            check_difference(off, path.name)
            found.append((path.name, (alpha,), path.stat().st_size, off))
            networks.append(network)
            levels.append(LevelGraph(proto, _selection(model, alpha, chosen[-1])))
        if several and len(chosen) > 1:
            path = scratch / SEVERAL
            write_onnx(several_levels(levels), path, chosen)
            offs = [difference(model, network, _runner(path, k)) for k, network in enumerate(networks)]
            check_difference(max(offs), path.name)
            found.append((path.name, tuple(chosen), path.stat().st_size, max(offs)))
    return [
        ExportedFile(path=Path(folder) / name, alphas=own, size_bytes=size, difference=off)
        for name, own, size, off in found
    ]


def require_onnx() -> None:
    """Raise an error if a package is missing.

    Raises:
        ModuleNotFoundError: onnx, onnxscript or onnxruntime is missing.
    """
    with needed_for("an export to ONNX"):
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401


def onnx_of(model: SubspaceModel, network: nn.Module) -> Any:
    """The network of a level as an ``onnx.ModelProto``, which is simplified without changing weights.

    Weights have the names of the network's parameters and buffers, and batch norms are nodes of their own, which
    runtimes fold when they open the file. A single input is called "input", the first of several inputs "input_0";
    outputs are named likewise.
    """
    exported = program_of(model, network)
    taken = [leaf for leaf in pytree.tree_leaves(model.parts[0].network.example_inputs()) if isinstance(leaf, Tensor)]
    inputs = ["input"] if len(taken) == 1 else [f"input_{number}" for number in range(len(taken))]
    results = len(exported.graph_signature.user_outputs)
    names = ["output"] if results == 1 else [f"output_{number}" for number in range(results)]
    program = torch.onnx.export(
        exported, dynamo=True, optimize=False, verbose=False, input_names=inputs, output_names=names
    )
    return simplified(program.model_proto)  # type: ignore[union-attr]


def session(path: str | os.PathLike[str]) -> Any:
    """An inference session of onnxruntime on the CPU with one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])


def feed(opened: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    """The arguments of the network by the names that they have in a session."""
    leaves = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    names = [value.name for value in opened.get_inputs() if value.name != "level"]
    return {name: leaf.detach().cpu().numpy() for name, leaf in zip(names, leaves, strict=True)}


def _runner(path: Path, number: int | None = None) -> Any:
    opened = session(path)
    level = {} if number is None else {"level": np.array(number, np.int64)}

    def run(args: Any, kwargs: Any) -> list[Tensor]:
        return [torch.from_numpy(result) for result in opened.run(None, feed(opened, args, kwargs) | level)]

    return run


def write_onnx(proto: Any, path: Path, alphas: Sequence[float]) -> None:
    """Write a model with its levels in its metadata.

    Raises:
        ValueError: The model has more than 2 GiB.
    """
    import onnx

    if proto.ByteSize() > _LARGEST:
        raise ValueError(f"{path.name} would have {proto.ByteSize()} bytes, and an ONNX file holds at most 2 GiB")
    _name_batch(proto.graph)
    onnx.helper.set_model_props(proto, {METADATA_KEY: json.dumps({"alphas": list(alphas)})})
    onnx.save(proto, path)


def _name_batch(graph: Any) -> None:
    """Name the open dimension "batch", and remove the exporter's own metadata."""
    dims = [dim for value in graph.input for dim in value.type.tensor_type.shape.dim[:1] if dim.dim_param]
    symbol = dims[0].dim_param if dims else ""
    for value in (*graph.input, *graph.output):
        del value.metadata_props[:]
        for dim in value.type.tensor_type.shape.dim:
            if symbol and dim.dim_param == symbol:
                dim.dim_param = "batch"
    del graph.value_info[:]
    del graph.metadata_props[:]
    for node in graph.node:
        del node.metadata_props[:]
        node.doc_string = ""


def _selection(model: SubspaceModel, alpha: float, largest: float) -> Mapping[str, Selection]:
    """The part of each tensor of the largest level that a level keeps."""
    if not isinstance(model.mode, Structured):
        return {}
    part = model.parts[0]
    small, large = (model.mode.selection(part, level) for level in (alpha, largest))
    found = {}
    for name in part.network.plan.tensors:
        pairs = zip(small.of(name), large.of(name), strict=True)
        found[name] = tuple(_within(kept, of) for kept, of in pairs)
    return found


def _within(kept: Kept, of: Kept) -> Kept:
    """The positions of the kept entries among those that the largest level keeps."""
    if kept is None or not isinstance(of, Indices):
        return kept
    place = {index: number for number, index in enumerate(of)}
    indices = range(kept) if isinstance(kept, int) else kept
    return Indices(place[index] for index in indices if index in place)
