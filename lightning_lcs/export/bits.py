"""A quantized level in a file whose weights are packed to their number of bits."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from lightning_lcs.export.packing import pack_bits, unpack_bits
from lightning_lcs.export.registry import ExportedFile
from lightning_lcs.export.tensor_files import check_state, read_tensors, write_tensors
from lightning_lcs.functional.channels import swap_channels
from lightning_lcs.functional.quantization import affine_parameters, dequantize, quantize
from lightning_lcs.model import SubspaceModel
from lightning_lcs.subspace.axis import check_alpha
from lightning_lcs.subspace.forward import hook_inputs, layers_at
from lightning_lcs.subspace.mode import Level
from lightning_lcs.subspace.modes import Quantized
from lightning_lcs.subspace.modes.observers import LayerBits, Reading, range_key
from lightning_lcs.subspace.modes.quantized import layer_bits
from lightning_lcs.subspace.part import Part
from lightning_lcs.subspace.weights.computed import make_plain
from lightning_lcs.subspace.weights.layers import layer_of

_KEY = "lightning_lcs_bits"
_VERSION = 2
_READ = (1, _VERSION)  # Version 1 had a range for every weight, and ranges of channels in dimension 0 only.


@dataclasses.dataclass(frozen=True)
class QuantizedWeight:
    """A weight as integers: ``(integers - zero_point) * scale``.

    Attributes:
        integers: The integers, int8 in the shape of the weight.
        scale: The scale, float32: one, or one per output channel.
        zero_point: The zero point, int32 in the shape of the scale.
        bits: The bits of each integer, 2 to 8.
        groups: The number of groups of a transposed convolution whose channels have ranges of their own, else ``None``.
    """

    integers: Tensor
    scale: Tensor
    zero_point: Tensor
    bits: int
    groups: int | None = None

    def values(self) -> Tensor:
        """The values that the integers stand for."""
        if self.groups is None:
            return dequantize(self.integers, self.scale, self.zero_point)
        swapped = dequantize(swap_channels(self.integers, self.groups), self.scale, self.zero_point)
        return swap_channels(swapped, self.groups).contiguous()


def quantized_weights(model: SubspaceModel, alpha: float) -> dict[str, QuantizedWeight]:
    """The compressed weights of a level of a quantized network by name, with the scales of the simulation."""
    part, mode = model.parts[0], model.mode
    if not isinstance(mode, Quantized):
        raise ValueError(f"quantized weights need a subspace in quantized mode, and the mode of this one is {mode}")
    bits_of, ranges = layer_bits(part, Level(mode, alpha)), mode.weight_ranges(part)
    found = {}
    with torch.no_grad():
        for name in part.compressed:
            value, bits = part.on_line(name, alpha).detach().cpu(), bits_of(layer_of(name))
            value = ranges.swapped(name, value)
            ends = ranges.find({name: value}, lambda name: bits_of(layer_of(name)))[name]
            scale, zero_point = affine_parameters(*ends, bits)
            integers = ranges.swapped(name, quantize(value, scale, zero_point, bits)).contiguous()
            found[name] = QuantizedWeight(integers, scale, zero_point, bits, ranges.groups.get(name))
    return found


def save_bits(model: SubspaceModel, path: str | os.PathLike[str], alpha: float = 0.0) -> ExportedFile:
    """Write one level into a safetensors file: quantized weights are packed, all other tensors are stored as they are.

    Args:
        model: A subspace with a single network in quantized mode, with the input ranges of this level.
        path: The path of the file, such as "model_3_bits.safetensors".
        alpha: The level in [0, 1]. The default is 0, the fewest bits.

    Returns:
        The file: its path, level and size, and the bits of each layer.

    Raises:
        ValueError: The mode is another one, there are several networks, or ``alpha`` is outside [0, 1].
        RuntimeError: The inputs of a layer were never observed at this level.
        OSError: The file could not be written; the old one is as it was.

    Example:
        >>> import torch
        >>> from lightning_lcs import SubspaceModel
        >>> from lightning_lcs.export import save_bits
        >>> network = torch.nn.Sequential(*(torch.nn.Linear(8, 8) for _ in range(4)))
        >>> model = SubspaceModel(network, mode="quantized", subspace="point").eval()
        >>> model.recalibrate([torch.randn(16, 8)], [model.mode.alpha(3)])
        >>> save_bits(model, "model_3_bits.safetensors").bits
        {'0': 3, '1': 3, '2': 3, '3': 8}
    """
    if not isinstance(model.mode, Quantized) or len(model.parts) != 1:
        raise ValueError(
            f"save_bits() needs a single network in quantized mode, and the mode of this subspace is {model.mode}"
        )
    level = model.nearest_level(check_alpha(alpha))
    network, part = model.materialize(level), model.parts[0]
    state = {name: value.detach().cpu() for name, value in network.state_dict().items()}
    weights = quantized_weights(model, level)
    # Copies, because names that share their memory can't be written.
    dense = {name: value.clone(memory_format=torch.contiguous_format) for name, value in state.items()}
    tensors = {f"dense/{name}": value for name, value in dense.items() if name not in weights}
    known = {**model.runner.ranges.get(level, {}), **model.statistics.get(level, {})}
    unknown = [path for path in part.layers if range_key(part.prefix, path) not in known]
    if unknown:
        _check_never_called(part, network, level, unknown[0])
    for name, weight in weights.items():
        key = range_key(part.prefix, layer_of(name))
        if key in known:
            tensors[f"range/{name}"] = known[key].detach().cpu().contiguous()
        tensors[f"packed/{name}"] = torch.from_numpy(pack_bits(weight.integers.numpy(), weight.bits))
        tensors[f"scale/{name}"] = weight.scale.contiguous()
        tensors[f"zero_point/{name}"] = weight.zero_point.contiguous()
    header = {
        "version": _VERSION,
        "alpha": level,
        "norm": model.norm,
        "layers": list(part.layers),
        "weights": {
            name: {"bits": w.bits, "shape": list(w.integers.shape), "groups": w.groups} for name, w in weights.items()
        },
    }
    return ExportedFile(
        path=Path(path),
        alphas=(level,),
        size_bytes=write_tensors(path, _KEY, header, tensors),
        dense_bytes=sum(value.numel() * value.element_size() for value in state.values()),
        bits={layer_of(name): weight.bits for name, weight in weights.items()},
    )


def _check_never_called(part: Part, network: nn.Module, level: float, path: str) -> None:
    """Raise an error if the network of a level calls a layer whose input has no range; one of them is at ``path``."""
    if part.network.example is None:
        raise RuntimeError(
            f"the inputs of {path or 'the layer'} were never observed at alpha={level:g}: train the network at this "
            "level, or recalibrate() with training images"
        )
    args, kwargs = part.network.example_inputs()
    with torch.no_grad():
        network(*args, **kwargs)


def load_bits(path: str | os.PathLike[str], module: nn.Module) -> nn.Module:
    """Read a file of :func:`save_bits` into a network, which then equals ``materialize`` at this level, bit for bit.

    Weights are unpacked into the type that they have in the network: the file is small, memory is not. Inputs of
    quantized layers are quantized by forward pre-hooks, with the ranges in the file.

    Args:
        path: The path of the file.
        module: A network of the same architecture, with its norms replaced if the subspace has ``norm=``. All of its
            parameters and buffers are overwritten; weights under parametrizations become plain parameters.

    Returns:
        The network, in evaluation.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not of this kind, is damaged, or is of another architecture; the network is unchanged.

    Example:
        >>> import torch
        >>> from lightning_lcs import SubspaceModel
        >>> from lightning_lcs.export import load_bits, save_bits
        >>> def network():
        ...     return torch.nn.Sequential(*(torch.nn.Linear(8, 8) for _ in range(4)))
        >>> model = SubspaceModel(network(), mode="quantized", subspace="point").eval()
        >>> model.recalibrate([torch.randn(16, 8)], [model.mode.alpha(3)])
        >>> file = save_bits(model, "model_3_bits.safetensors")
        >>> loaded, images = load_bits("model_3_bits.safetensors", network()), torch.randn(2, 8)
        >>> torch.equal(loaded(images), model.materialize(0.0)(images))
        True
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"{os.fspath(path)} does not exist")
    try:
        header, held = read_tensors(path, _KEY, _READ)
        state = {n.removeprefix("dense/"): value for n, value in held.items() if n.startswith("dense/")}
        bits, ranges = {}, {}
        for name, spec in header["weights"].items():
            state[name] = _unpacked(held, name, spec)
            bits[layer_of(name)] = int(spec["bits"])
            if f"range/{name}" in held:
                ranges[range_key("", layer_of(name))] = held[f"range/{name}"]
                if held[f"range/{name}"].shape != (2,):
                    raise ValueError(f"{name} has no input range")
        norm, paths = str(header["norm"]), list(map(str, header.get("layers", bits)))
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise ValueError(f"{os.fspath(path)} is not a file of a quantized level, or it is damaged: {error}") from error
    check_state(path, state, module, norm)
    layers = layers_at(module, paths)
    make_plain(module, state)
    module.load_state_dict(state)
    hook_inputs(layers, Reading(ranges, "", LayerBits(max(bits.values()), {}, bits)))
    return module.eval()


def _unpacked(held: Mapping[str, Tensor], name: str, spec: Mapping[str, Any]) -> Tensor:
    shape = [int(size) for size in spec["shape"]]
    count, bits, groups = torch.Size(shape).numel(), int(spec["bits"]), spec.get("groups")
    integers = torch.from_numpy(unpack_bits(held[f"packed/{name}"].numpy(), bits, count)).view(shape)
    scale, zero_point = held[f"scale/{name}"], held[f"zero_point/{name}"]
    return QuantizedWeight(integers, scale, zero_point, bits, None if groups is None else int(groups)).values()
