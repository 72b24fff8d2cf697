"""Exports a level of 8 bits to a torch network that runs with integers when it is compiled (PT2E of torchao)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from lightning_lcs.export.base import program_of
from lightning_lcs.export.int8_common import compare, int8_level, warn_of_float
from lightning_lcs.export.qdq import QuantizationParameters
from lightning_lcs.model import SubspaceModel
from lightning_lcs.utils.extras import needed_for

_LAYERS = ("conv1d", "conv2d", "linear")
# The largest input of layers: of 8 bits, and of 7, whose products with weights add up in 16 bits two at a time.
_FULL, _REDUCED = 255, 127


@dataclasses.dataclass(frozen=True)
class Int8Network:
    """A network of integers from :func:`int8_network`, compared with the simulated quantization.

    Attributes:
        module: The network, which takes batches of any size. As it is, it computes with floats what integers would
            give; ``torch.compile(module, options={"freezing": True})`` under ``torch.no_grad()`` makes x86 processors
            run it with integers.
        alpha: The level, in [0, 1].
        agreement: The share of the given images whose largest output is that of the simulation, in [0, 1].
        difference: The mean difference of outputs, relative to the mean of their magnitudes.
        trained: The layers whose inputs have the scale and zero point of the simulation; all other integers have the
            ranges of the images.
        kept_float: The weights that are quantized in the simulation and stay float, because torch's quantizer has no
            integers for their layer.
        reduced_range: Whether inputs of layers have 7 bits.

    Example:
        >>> import torch
        >>> from lightning_lcs import SubspaceModel
        >>> from lightning_lcs.export import int8_network
        >>> network = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
        >>> images = torch.randn(64, 64)
        >>> model = SubspaceModel(network, images[:2], mode="quantized", subspace="point").eval()
        >>> model.recalibrate([images], alphas=[1.0])
        >>> made = int8_network(model, images)
        >>> made.trained, made.kept_float
        (('0', '2'), ())
    """

    module: GraphModule
    alpha: float
    agreement: float
    difference: float
    trained: tuple[str, ...]
    kept_float: tuple[str, ...]
    reduced_range: bool


def int8_network(
    model: SubspaceModel,
    images: Tensor | Iterable[Tensor],
    alpha: float = 1.0,
    *,
    min_agreement: float = 0.9,
    reduce_range: bool | None = None,
) -> Int8Network:
    """A level of 8 bits as a network that ``torch.compile`` turns into a network of integers on x86 processors.

    Inputs of layers have the scales and zero points of the simulated quantization. The kernels of torch need further
    roundings: weights with folded batch norms become integers per output without a zero point, and outputs of
    convolutions, shortcuts and inputs of pooling become integers in the range that ``images`` give.

    Args:
        model: A subspace with a single network in quantized mode, in evaluation, on the CPU, with the ranges of this
            level.
        images: Real images, one batch or several, a hundred or so; they give the ranges and serve the comparison.
        alpha: A level at which all quantized layers have 8 bits. The default is 1.
        min_agreement: The share of images whose largest output has to be that of the simulation. The default is 0.9.
        reduce_range: Whether inputs of layers have 7 bits instead of 8. Kernels for processors without VNNI add pairs
            of products in 16 bits, which overflow with 8 bits. By default inputs have 7 bits if the kernels of this
            processor overflow, which a product of two matrices shows. Give ``True`` if the network will run on
            another processor, without VNNI.

    Returns:
        The network. A warning names weights that stay float.

    Raises:
        ModuleNotFoundError: torchao is not installed.
        ValueError: The mode is another one, or a layer does not have 8 bits.
        RuntimeError: Ranges were never observed, or the network agrees less with the simulation than required.

    Example:
        >>> import torch
        >>> from lightning_lcs import SubspaceModel
        >>> from lightning_lcs.export import int8_network
        >>> network = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
        >>> images = torch.randn(64, 64)
        >>> model = SubspaceModel(network, images[:2], mode="quantized", subspace="point").eval()
        >>> model.recalibrate([images], alphas=[1.0])
        >>> made = int8_network(model, images)
        >>> made.module(images).shape, made.agreement >= 0.9
        (torch.Size([64, 10]), True)
    """
    with needed_for("int8_network()"):
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
        from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86
    source = int8_level(model, images, alpha)
    reduced = _products_overflow() if reduce_range is None else reduce_range
    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config(reduce_range=reduced))
    prepared = prepare_pt2e(program_of(model, source.network).module(), quantizer)
    with torch.no_grad():
        for batch in source.batches:
            prepared(batch)
    trained = _take_trained_ranges(prepared, source.quantizations, _REDUCED if reduced else _FULL)
    weights = model.parts[0].compressed
    rounded = _rounded_weights(prepared)
    kept = tuple(name for name in weights if name not in rounded)
    warn_of_float(kept, len(weights))
    module = convert_pt2e(prepared)
    agreement, difference = compare(source.simulated, module, source.batches, min_agreement)
    return Int8Network(module, source.alpha, agreement, difference, trained, kept, reduced)


def _products_overflow() -> bool:
    """Whether a product of the largest 8-bit inputs and weights is wrong with the kernels of this processor."""
    inputs = torch.full((1, 64), 255, dtype=torch.uint8)
    weight = torch.full((1, 64), 127, dtype=torch.int8)
    no_offset = torch.zeros(1, dtype=torch.int64)
    try:
        packed = torch.ops.onednn.qlinear_prepack(weight, list(inputs.shape))
        product = torch.ops.onednn.qlinear_pointwise(
            inputs, 1.0, 0, packed, torch.ones(1), no_offset, None, 1.0, 0, torch.float32, "none", [], ""
        )
    except (AttributeError, NotImplementedError):
        # Without these kernels (on ARM, for example) the compiler makes no integers.
        return False
    except RuntimeError:
        return True  # It can't be told: 7 bits are right on every processor, and the result says so.
    return bool(product.item() != 64 * 255 * 127)


def _take_trained_ranges(
    prepared: GraphModule, quantizations: Mapping[str, QuantizationParameters], largest: int
) -> tuple[str, ...]:
    """Give inputs of layers the quantization of the simulation, in integers from 0 to ``largest``; return the layers
    for which this is possible."""
    from torchao.quantization.pt2e.observer import FixedQParamsObserver

    trained: dict[str, None] = {}
    for node in prepared.graph.nodes:
        layer = _layer_of(node)
        quantization = quantizations.get(f"{layer}.weight" if layer else "weight")
        if layer is None or quantization is None or node.args[0].op != "call_module":
            continue
        observer = prepared.get_submodule(node.args[0].target)
        fixed = FixedQParamsObserver(
            quantization.scale * _FULL / largest,
            round(quantization.zero_point * largest / _FULL),
            dtype=torch.uint8,
            quant_min=0,
            quant_max=largest,
        )
        # Values that share an observer share their quantization.
        for name, other in list(prepared.named_children()):
            if other is observer:
                setattr(prepared, name, fixed)
        trained[layer] = None
    return tuple(trained)


def _rounded_weights(prepared: GraphModule) -> set[str]:
    """The names of the parameters that become integers: those that an observer reads."""
    return {
        str(node.target)
        for node in prepared.graph.nodes
        if node.op == "get_attr" and any(user.op == "call_module" for user in node.users)
    }


def _layer_of(node: Node) -> str | None:
    """The path of the layer of a traced convolution or matrix product; ``None`` for other nodes."""
    stack: Mapping[str, Any] = node.meta.get("nn_module_stack", {})
    if getattr(node.target, "overloadpacket", None) is None or not stack:
        return None
    packet = node.target.overloadpacket  # type: ignore[union-attr]
    if packet._qualified_op_name.partition("::")[2] not in _LAYERS:
        return None
    return str(list(stack.values())[-1][0])
