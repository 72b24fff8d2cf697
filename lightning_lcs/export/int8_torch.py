"""A level of eight bits as a torch network that runs with integers once compiled (torchao's PT2E)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from lightning_lcs.export.base import program_of
from lightning_lcs.export.int8_common import compare, ingredients
from lightning_lcs.export.qdq import QuantizationParameters
from lightning_lcs.model import SubspaceModel
from lightning_lcs.utils.extras import needed_for
from lightning_lcs.utils.warning import warn

_LAYERS = ("conv1d", "conv2d", "linear")


@dataclasses.dataclass(frozen=True)
class Int8Network:
    """A network of integers, compared with the simulated quantization.

    Attributes:
        module: takes batches of any size. As it is, it computes with floats what integers would give;
            ``torch.compile(module, options={"freezing": True})`` under ``torch.no_grad()`` makes x86 processors run it
            with integers.
        alpha: its level.
        agreement: share of the images given of which the largest output is the same one.
        difference: mean difference of outputs, relative to the mean of their magnitudes.
        trained: layers whose inputs have the scale and zero point of the simulation; the ranges of all else that
            becomes integers are those of the images.
        kept_float: weights that are quantized in the simulation and whose layer stays float, as torch's quantizer knows
            no integers for it.
    """

    module: GraphModule
    alpha: float
    agreement: float
    difference: float
    trained: tuple[str, ...]
    kept_float: tuple[str, ...]


def int8_network(
    model: SubspaceModel, images: Tensor | Iterable[Tensor], alpha: float = 1.0, *, min_agreement: float = 0.9
) -> Int8Network:
    """A level of eight bits as a network that ``torch.compile`` turns into one of integers on x86 processors.

    Inputs of layers have the scales and zero points of the simulated quantization. Rounded in addition, as torch's
    kernels want it: weights with batch norms folded in, to integers per output without a zero point; outputs of
    convolutions, shortcuts and what pooling takes, with the range that ``images`` have there.

    Args:
        model: a single network in quantized mode, in evaluation, on the processor, with the ranges of this level.
        images: real ones, a batch or several; they give the ranges and serve the comparison. A hundred or so.
        alpha: a level at which all quantized layers have eight bits.
        min_agreement: share of images whose largest output must be that of the simulation.

    Returns:
        The network. A warning names layers that stay float.

    Raises:
        ImportError: torchao is missing.
        ValueError: another mode, or a layer of other than eight bits.
        RuntimeError: ranges were never observed, or the network agrees with the simulation less than asked.
    """
    with needed_for("int8_network()"):
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
        from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86
    made = ingredients(model, images, alpha)
    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(program_of(model, made.network).module(), quantizer)
    with torch.no_grad():
        for batch in made.batches:
            prepared(batch)
    trained = _take_trained_ranges(prepared, made.quantizations)
    kept = tuple(name for name in made.quantizations if name.rpartition(".")[0] not in trained)
    if kept:
        warn(f"{len(kept)} of {len(made.quantizations)} layers stay float: {', '.join(kept[:3])}")
    module = convert_pt2e(prepared)
    agreement, difference = compare(made.simulated, module, made.batches, min_agreement)
    return Int8Network(module, made.alpha, agreement, difference, trained, kept)


def _take_trained_ranges(prepared: GraphModule, quantizations: Mapping[str, QuantizationParameters]) -> tuple[str, ...]:
    """Let what observes the inputs of layers give the quantizations of the simulation; the layers of which it does."""
    from torchao.quantization.pt2e.observer import FixedQParamsObserver

    trained: dict[str, None] = {}
    for node in prepared.graph.nodes:
        layer = _layer_of(node)
        quantization = quantizations.get(f"{layer}.weight" if layer else "weight")
        if layer is None or quantization is None or node.args[0].op != "call_module":
            continue
        observer = prepared.get_submodule(node.args[0].target)
        fixed = FixedQParamsObserver(quantization.scale, quantization.zero_point, dtype=torch.uint8)
        # Values that share an observer share their integers.
        for name, other in list(prepared.named_children()):
            if other is observer:
                setattr(prepared, name, fixed)
        trained[layer] = None
    return tuple(trained)


def _layer_of(node: Node) -> str | None:
    """Path of the layer that a convolution or a matrix product was traced in; ``None`` for other nodes."""
    stack: Mapping[str, Any] = node.meta.get("nn_module_stack", {})
    if getattr(node.target, "overloadpacket", None) is None or not stack:
        return None
    packet = node.target.overloadpacket  # type: ignore[union-attr]
    if packet._qualified_op_name.partition("::")[2] not in _LAYERS:
        return None
    return str(list(stack.values())[-1][0])
