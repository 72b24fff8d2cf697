"""Exports a level of 8 bits to an ONNX file that runs with integers."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_lcs.export.bits import quantized_weights
from lightning_lcs.export.int8_common import compare, int8_level, quantization_of, warn_of_float
from lightning_lcs.export.onnx import feed, onnx_of, require_onnx, session, write_onnx
from lightning_lcs.export.qdq import (
    Graph,
    QuantizationParameters,
    Weight,
    quantization_after,
    quantize_convolution_outputs,
    to_integers,
)
from lightning_lcs.export.registry import ExportedFile
from lightning_lcs.model import SubspaceModel
from lightning_lcs.utils.files import replacing_folder
from lightning_lcs.utils.timing import median_latencies_ms
from lightning_lcs.utils.warning import warn


def export_int8(
    model: SubspaceModel,
    path: str | os.PathLike[str],
    images: Tensor | Iterable[Tensor],
    alpha: float = 1.0,
    *,
    min_agreement: float = 0.9,
) -> ExportedFile:
    """Write a level of 8 bits as ONNX in which weights and inputs of layers are integers (QDQ), for onnxruntime.

    Weights and inputs of layers have the scales and zero points of the simulated quantization; batch norms are folded
    in. Three values are rounded in addition, because convolutions run with integers only if their outputs are integers,
    too: outputs of convolutions, in the range that ``images`` give; shortcuts, in the range of the layer beside them;
    and biases, whose rounding is small. Linear layers return floats, which are not rounded.

    Args:
        model: A subspace with a single network in quantized mode, in evaluation, with the ranges of this level.
        path: The path of the file, such as "model_int8.onnx".
        images: Real images, one batch or several, a hundred or so; they give the ranges and serve the comparison.
        alpha: A level at which all quantized layers have 8 bits. The default is 1.
        min_agreement: The share of images whose largest output has to be that of the simulation. The default is 0.9.

    Returns:
        The file. A warning names weights that stay float, and another one says if integers are not faster on this
        machine; depthwise networks save storage only.

    Raises:
        ModuleNotFoundError: onnx, onnxscript or onnxruntime is not installed.
        ValueError: The mode is another one, or a layer does not have 8 bits.
        RuntimeError: Ranges were never observed, or the file agrees less with the simulation than required.

    Example:
        >>> import warnings
        >>> import torch
        >>> from lightning_lcs import SubspaceModel
        >>> from lightning_lcs.export import export_int8
        >>> network = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
        >>> images = torch.randn(64, 64)
        >>> model = SubspaceModel(network, images[:2], mode="quantized", subspace="point").eval()
        >>> model.recalibrate([images], alphas=[1.0])
        >>> warnings.filterwarnings("ignore", ".*save storage only")  # integers don't make so small a network faster
        >>> file = export_int8(model, "model_int8.onnx", images)
        >>> file.path.name, file.agreement >= 0.9
        ('model_int8.onnx', True)
    """
    require_onnx()
    import onnx

    source = int8_level(model, images, alpha)
    proto = onnx_of(model, source.network)
    plain = onnx.ModelProto()
    plain.CopyFrom(proto)
    graph = Graph(proto.graph)
    weights = {
        name: Weight(weight.integers.numpy(), weight.scale.numpy(), weight.zero_point.numpy())
        for name, weight in quantized_weights(model, source.alpha).items()
    }
    kept_float, values = to_integers(graph, weights, source.quantizations)
    warn_of_float(kept_float, len(weights))
    unknown = [name for name in values if quantization_after(graph, name) is None]
    target = Path(path)
    with replacing_folder(target.parent) as scratch:
        quantize_convolution_outputs(graph, values, _calibrated(plain, unknown, source.batches, scratch))
        graph.finish()
        proto.producer_name = "lightning-lcs"
        written = scratch / target.name
        write_onnx(proto, written, [source.alpha])
        opened = session(written)

        def integers(batch: Tensor) -> Tensor:
            return torch.from_numpy(opened.run(None, feed(opened, (batch,), {}))[0])

        agreement, difference = compare(source.simulated, integers, source.batches, min_agreement)
        size = written.stat().st_size
        ratio = _time_ratio(plain, written, source.batches[0][:1], scratch)
    if ratio >= 1.0:
        warn(
            f"{target}: integers take {ratio:.2f} of the time of the float network in onnxruntime on this machine; "
            "they save storage only"
        )
    return ExportedFile(
        path=target,
        alphas=(source.alpha,),
        size_bytes=size,
        difference=difference,
        agreement=agreement,
        time_ratio=ratio,
        kept_float=tuple(kept_float),
    )


def _calibrated(
    plain: Any, names: Sequence[str], batches: Sequence[Tensor], scratch: Path
) -> dict[str, QuantizationParameters]:
    """The quantization of values for which the simulation has no range, measured with the float network."""
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
    return {name: quantization_of(smallest, largest) for name, smallest, largest in ranges}


def _time_ratio(plain: Any, written: Path, image: Tensor, scratch: Path) -> float:
    import onnx

    path = scratch / "float.onnx"
    onnx.save(plain, path)
    files = {"int8": session(written), "float": session(path)}
    calls = {name: functools.partial(opened.run, None, feed(opened, (image,), {})) for name, opened in files.items()}
    times = median_latencies_ms(calls)
    path.unlink()
    return times["int8"] / times["float"]
