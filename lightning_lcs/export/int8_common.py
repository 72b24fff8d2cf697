"""The common part of the exports with 8-bit integers: their source, and the comparison with the simulation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from lightning_lcs.export.qdq import QuantizationParameters
from lightning_lcs.functional.quantization import affine_parameters
from lightning_lcs.model import SubspaceModel
from lightning_lcs.subspace.axis import check_alpha
from lightning_lcs.subspace.forward import ChangedInput
from lightning_lcs.subspace.mode import Level
from lightning_lcs.subspace.modes import Quantized
from lightning_lcs.subspace.modes.observers import Reading, range_key
from lightning_lcs.subspace.modes.quantized import layer_bits
from lightning_lcs.subspace.part import TOGETHER
from lightning_lcs.subspace.weights.layers import layer_of
from lightning_lcs.utils.warning import warn

_BITS = 8


@dataclasses.dataclass(frozen=True)
class Int8Level:
    """A level of 8 bits, from which a network with integers is made.

    Attributes:
        alpha: The level.
        batches: Batches of real images.
        simulated: The network of the level with simulated quantization.
        network: The same network without the quantization of inputs.
        quantizations: The quantization of the input of each layer, by the name of its weight; layers whose inputs stay
            float in the simulation have none.
    """

    alpha: float
    batches: list[Tensor]
    simulated: nn.Module
    network: nn.Module
    quantizations: dict[str, QuantizationParameters]


def int8_level(model: SubspaceModel, images: Tensor | Iterable[Tensor], alpha: float) -> Int8Level:
    """Prepare a level of 8 bits for an export with integers.

    Raises:
        ValueError: The mode is not quantized mode, there are several networks, a layer does not have 8 bits, or there
            are no images.
        RuntimeError: The inputs of a layer were never observed at this level.
    """
    level = _eight_bits(model, alpha)
    batches = [images] if isinstance(images, Tensor) else list(images)
    if not batches or not all(len(batch) for batch in batches):
        raise ValueError("images is empty: give a batch of real images, a hundred or so")
    model.parts[0].network.remember((batches[0],), {})
    network, simulated = model.materialize(level).eval(), model.materialize(level).eval()
    with torch.no_grad():
        simulated(batches[0][:2])  # raises an error if a layer that runs has no range
    return Int8Level(level, batches, simulated, network, _take_quantizations(network))


def _eight_bits(model: SubspaceModel, alpha: float) -> float:
    """Return the level, or raise an error if it does not have 8 bits."""
    if not isinstance(model.mode, Quantized):
        raise ValueError(f"an export with integers needs a subspace in quantized mode, and this one is {model.mode}")
    if len(model.parts) != 1:
        raise ValueError(
            f"an export with integers needs a single network, and this subspace model has several; {TOGETHER}"
        )
    level = model.nearest_level(check_alpha(alpha))
    bits = layer_bits(model.parts[0], Level(model.mode, level))
    other = {name: bits(layer_of(name)) for name in model.parts[0].compressed if bits(layer_of(name)) != _BITS}
    if other:
        name, found = next(iter(other.items()))
        raise ValueError(
            f"{name} has {found} bits at alpha={alpha!r}, and integers run with {_BITS}: below that the gain is "
            "storage and memory, not time; give the alpha of 8 bits (1.0 with max_bits=8)"
        )
    return level


def _take_quantizations(network: nn.Module) -> dict[str, QuantizationParameters]:
    """Remove the simulated quantization of inputs from a network, and return it by the name of the weight."""
    quantizations: dict[str, QuantizationParameters] = {}
    for path, layer in network.named_modules():
        for key, hook in list(layer._forward_pre_hooks.items()):
            if not isinstance(hook, ChangedInput) or not isinstance(hook.inputs, Reading):
                continue
            held = hook.inputs.ranges.get(range_key(hook.inputs.prefix, hook.path))
            if held is not None:  # a layer that the network never calls has no range
                quantizations[f"{path}.weight" if path else "weight"] = quantization_of(*held.unbind())
            del layer._forward_pre_hooks[key]
            del layer._forward_pre_hooks_with_kwargs[key]
    return quantizations


def quantization_of(low: Tensor, high: Tensor) -> QuantizationParameters:
    """The scale and zero point of a range, as the simulated quantization computes them."""
    scale, zero_point = affine_parameters(low, high, _BITS)
    return QuantizationParameters(float(scale), int(zero_point) + 2 ** (_BITS - 1))


def warn_of_float(kept: Sequence[str], count: int) -> None:
    """Warn if some of the quantized weights stay float: ``kept`` of all ``count``."""
    if kept:
        more = f" and {len(kept) - 3} more" if len(kept) > 3 else ""
        warn(f"{len(kept)} of {count} quantized weights stay float: {', '.join(kept[:3])}{more}")


def compare(
    simulated: nn.Module, integers: Callable[[Tensor], Tensor], batches: Sequence[Tensor], min_agreement: float
) -> tuple[float, float]:
    """Compare a network with integers with the simulated quantization.

    Args:
        simulated: The network with simulated quantization, which returns one tensor with the classes in its last
            dimension.
        integers: The network with integers.
        batches: Batches of images.
        min_agreement: The share of images whose largest output must be the same, in [0, 1].

    Returns:
        The share of images that agree, and the mean difference of outputs relative to their mean magnitude.

    Raises:
        ValueError: The network does not return such a tensor.
        RuntimeError: Fewer images agree.
    """
    same = count = 0
    off = magnitude = 0.0
    for batch in batches:
        with torch.no_grad():
            expected, found = simulated(batch), integers(batch).cpu()
        if not isinstance(expected, Tensor):
            raise ValueError(
                "an export with integers needs a network that returns one tensor with the classes in its last dimension"
            )
        expected = expected.cpu()
        same += int((found.argmax(-1) == expected.argmax(-1)).sum())
        count += expected[..., 0].numel()
        off += float((found - expected).abs().sum())
        magnitude += float(expected.abs().sum())
    agreement, difference = same / count, off / magnitude if magnitude else float(off > 0)
    if not agreement >= min_agreement:
        raise RuntimeError(
            f"with integers {agreement:.1%} of the images have the largest output of the simulated quantization, "
            f"and min_agreement={min_agreement!r}: nothing is kept of it; its outputs are {difference:.1%} off in "
            "the mean"
        )
    return agreement, difference
