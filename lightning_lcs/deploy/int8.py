"""A level of eight bits as ONNX that runs with integers."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_lcs._activations import QuantizedInput, Reading, range_key
from lightning_lcs._parts import layer_of
from lightning_lcs.deploy._programs import written_whole
from lightning_lcs.deploy._qdq import Graph, Grid, Weight, grid_after, settle_convolutions, to_integers
from lightning_lcs.deploy.bits import quantized_weights
from lightning_lcs.deploy.onnx import feed, onnx_of, require_onnx, session, write_onnx
from lightning_lcs.functional.quantization import affine_parameters
from lightning_lcs.model import SubspaceModel
from lightning_lcs.modes import Quantized, check_alpha

_BITS = 8


@dataclasses.dataclass(frozen=True)
class Int8File:
    """A file that was written, and compared with the simulated quantization.

    Attributes:
        path: of the file.
        alpha: its level.
        size_bytes: of the file.
        agreement: share of the images given of which the largest output is the same one.
        difference: mean difference of outputs, relative to the mean of their magnitudes.
        kept_float: weights that are quantized in the simulation and stay float in the file, as no op of integers fits
            what reads them.
    """

    path: Path
    alpha: float
    size_bytes: int
    agreement: float
    difference: float
    kept_float: tuple[str, ...]


def export_int8(
    model: SubspaceModel,
    path: str | os.PathLike[str],
    images: Tensor | Iterable[Tensor],
    alpha: float = 1.0,
    *,
    min_agreement: float = 0.9,
) -> Int8File:
    """Write a level of eight bits as ONNX with weights and inputs of layers as integers (QDQ), for onnxruntime.

    Weights and inputs of layers have the scales and zero points of the simulated quantization, batch norms folded in.
    Three roundings come in addition, as convolutions run with integers only if their outputs are integers, too: those
    outputs, with the range that ``images`` have there; shortcuts, with the range of the layer beside them; and biases,
    which is a small one. Linear layers give floats, with none.

    Args:
        model: a single network in quantized mode, in evaluation, with the ranges of this level.
        path: of the file, such as "model_int8.onnx".
        images: real ones, a batch or several; they give the ranges and serve the comparison. A hundred or so.
        alpha: a level at which all quantized layers have eight bits.
        min_agreement: share of images whose largest output must be that of the simulation.

    Returns:
        The file.

    Raises:
        ImportError: onnx, onnxscript or onnxruntime is missing.
        ValueError: another mode, or a layer of other than eight bits.
        RuntimeError: ranges were never observed, or the file agrees with the simulation less than asked.
    """
    require_onnx()
    import onnx

    level = _eight_bits(model, alpha)
    batches = [images] if isinstance(images, Tensor) else list(images)
    if not batches or not all(len(batch) for batch in batches):
        raise ValueError("images is empty: give a batch of real images, a hundred or so")
    model.parts[0].network.remember((batches[0],), {})
    simulated = model.materialize(level).eval()
    network = model.materialize(level).eval()
    grids = _take_grids(network)
    proto = onnx_of(model, network)
    plain = onnx.ModelProto()
    plain.CopyFrom(proto)
    graph = Graph(proto.graph)
    weights = {
        name: Weight(weight.integers.numpy(), weight.scale.numpy(), weight.zero_point.numpy())
        for name, weight in quantized_weights(model, level).items()
    }
    stayed, values = to_integers(graph, weights, grids)
    unknown = [name for name in values if grid_after(graph, name) is None]
    target = Path(path)
    with written_whole(target.parent) as scratch:
        settle_convolutions(graph, values, _calibrated(plain, unknown, batches, scratch))
        graph.finish()
        proto.producer_name = "lightning-lcs"
        written = scratch / target.name
        write_onnx(proto, written, [level])
        agreement, difference = _compare(simulated, written, batches)
        if not agreement >= min_agreement:
            raise RuntimeError(
                f"with integers {agreement:.1%} of the images have the largest output of the simulated quantization, "
                f"and min_agreement={min_agreement!r}: nothing was written; its outputs are {difference:.1%} off in "
                "the mean"
            )
        size = written.stat().st_size
    return Int8File(target, level, size, agreement, difference, tuple(stayed))


def _eight_bits(model: SubspaceModel, alpha: float) -> float:
    """The level, where it is one of eight bits."""
    if not isinstance(model.mode, Quantized):
        raise ValueError(f"export_int8() takes a subspace in quantized mode, and this one is {model.mode}")
    if len(model.parts) != 1:
        raise ValueError("export_int8() takes a single network, and this subspace model has several")
    level = model.nearest_level(check_alpha(alpha))
    bits = model.parts[0].layer_bits(model.mode.bit_width(level))
    other = {name: bits(layer_of(name)) for name in model.parts[0].compressed if bits(layer_of(name)) != _BITS}
    if other:
        name, found = next(iter(other.items()))
        raise ValueError(
            f"{name} has {found} bits at alpha={alpha!r}, and integers run with {_BITS}: below that the gain is "
            "storage and memory, not time; give the alpha of 8 bits (1.0 with max_bits=8)"
        )
    return level


def _take_grids(network: nn.Module) -> dict[str, Grid]:
    """Take the simulated quantization of inputs away from a network, and give its grids by name of the weight."""
    grids: dict[str, Grid] = {}
    for path, layer in network.named_modules():
        for key, hook in list(layer._forward_pre_hooks.items()):
            if not isinstance(hook, QuantizedInput) or not isinstance(hook.inputs, Reading):
                continue
            held = hook.inputs.ranges.get(range_key(hook.inputs.prefix, hook.path))
            if held is None:
                raise RuntimeError(
                    f"the inputs of {path or 'the layer'} were never observed at this level, so that their range is "
                    "not known: train the network at it, or recalibrate() with training images"
                )
            grids[f"{path}.weight" if path else "weight"] = _grid(*held.unbind())
            del layer._forward_pre_hooks[key]
    return grids


def _grid(low: Tensor, high: Tensor) -> Grid:
    scale, zero_point = affine_parameters(low, high, _BITS)
    return Grid(float(scale), int(zero_point) + 2 ** (_BITS - 1))


def _calibrated(plain: Any, names: Sequence[str], batches: Sequence[Tensor], scratch: Path) -> dict[str, Grid]:
    """Grids of values that the simulation knows no range of, from the float network."""
    if not names:
        return {}
    import onnx

    watched = onnx.ModelProto()
    watched.CopyFrom(plain)
    del watched.graph.output[:]
    watched.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    path = scratch / "watched.onnx"
    onnx.save(watched, path)
    opened = session(path)
    low, high = np.zeros(len(names), np.float32), np.zeros(len(names), np.float32)
    for batch in batches:
        for number, value in enumerate(opened.run(None, feed(opened, (batch,), {}))):
            low[number], high[number] = min(low[number], value.min()), max(high[number], value.max())
    path.unlink()
    ranges = zip(names, torch.from_numpy(low), torch.from_numpy(high), strict=True)
    return {name: _grid(smallest, largest) for name, smallest, largest in ranges}


def _compare(simulated: nn.Module, path: Path, batches: Sequence[Tensor]) -> tuple[float, float]:
    opened = session(path)
    same = count = 0
    off = magnitude = 0.0
    for batch in batches:
        with torch.no_grad():
            expected = simulated(batch)
        if not isinstance(expected, Tensor):
            raise ValueError("export_int8() takes networks that give one tensor, classes last")
        found = torch.from_numpy(opened.run(None, feed(opened, (batch,), {}))[0])
        expected = expected.cpu()
        same += int((found.argmax(-1) == expected.argmax(-1)).sum())
        count += expected[..., 0].numel()
        off += float((found - expected).abs().sum())
        magnitude += float(expected.abs().sum())
    return same / count, off / magnitude if magnitude else float(off > 0)
