"""Runs linear layers and 1x1 convolutions with sparse weights where a measurement shows that this is faster."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from lightning_lcs.utils.timing import median_latencies_ms

# A sparse layer must take less than this share of the time of the dense one: the gain of a layer on its own is larger
# than its gain within a network, and measurements are noisy.
_LARGEST_RATIO = 0.85
# The share of zeros from which sparse weights are tried: sparse kernels read an index with every entry.
_LEAST_ZEROS = 0.5


@dataclasses.dataclass(frozen=True)
class LayerChoice:
    """What :func:`use_sparse_layers` measured of a layer, and chose.

    Attributes:
        path: The path of the layer in the network.
        sparsity: The share of zeros in its weight, in [0, 1].
        ratio: The time with the sparse weight divided by the time with the dense weight.
        sparse: Whether the layer runs with the sparse weight from now on.

    Example:
        >>> from lightning_lcs.export.sparse_layers import LayerChoice
        >>> LayerChoice(path="head", sparsity=0.95, ratio=0.4, sparse=True).sparse
        True
    """

    path: str
    sparsity: float
    ratio: float
    sparse: bool


class SparseLinear(nn.Module):
    """A linear layer for inference, with its weight in compressed rows (CSR).

    Args:
        layer: The dense layer.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.register_buffer("weight", _rows(layer.weight))
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        """Map values of shape ``(..., inputs)`` to ``(..., outputs)``."""
        flat = self.weight @ x.reshape(-1, x.shape[-1]).t()
        result = flat.t().reshape(*x.shape[:-1], -1)
        return result if self.bias is None else result + self.bias


class SparsePointwise(nn.Module):
    """A 1x1 convolution in one group for inference, with its weight in compressed rows (CSR).

    Args:
        layer: The dense layer, without padding.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.register_buffer("weight", _rows(layer.weight))
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach())
        self.stride = layer.stride

    def forward(self, x: Tensor) -> Tensor:
        """Map values of shape ``(batch, inputs, height, width)`` to outputs, subsampled by the stride."""
        x = x[..., :: self.stride[0], :: self.stride[1]]
        batch, _, height, width = x.shape
        flat = self.weight @ x.transpose(0, 1).reshape(x.shape[1], -1)
        result = flat.reshape(-1, batch, height, width).transpose(0, 1)
        return result if self.bias is None else result + self.bias.view(-1, 1, 1)


@torch.no_grad()
def use_sparse_layers(module: nn.Module, *args: Any, repeats: int = 15, **kwargs: Any) -> list[LayerChoice]:
    """Measure each linear layer and 1x1 convolution with a sparse weight, and keep that where it is faster.

    For a plain network of a sparse level, such as ``materialize(alpha)`` gives, that is to run on this machine with
    inputs of this shape: the fastest choice depends on both. Layers that other layers read the weight of (torch's
    attention) are left alone. The result differs by rounding. The network can be pickled then, and not deep-copied,
    which torch's sparse tensors do not allow.

    Args:
        module: The network, in evaluation; its layers are replaced in place.
        args: An example of the arguments of the network.
        repeats: The number of measurements of each layer, at least 1. The default is 15.
        kwargs: An example of the keyword arguments of the network.

    Returns:
        The layers that were measured: those whose weights are half zeros or more. All others stay dense.

    Raises:
        RuntimeError: The network is in training.

    Example:
        >>> import torch
        >>> from lightning_lcs import SubspaceModel
        >>> from lightning_lcs.export import use_sparse_layers
        >>> network = torch.nn.Sequential(*(torch.nn.Linear(64, 64) for _ in range(3)))
        >>> model = SubspaceModel(network, mode="unstructured", subspace="point").eval()
        >>> small = model.materialize(0.0)
        >>> choices = use_sparse_layers(small, torch.randn(16, 64), repeats=3)
        >>> [(choice.path, round(choice.sparsity, 2)) for choice in choices]
        [('0', 0.97), ('1', 0.97)]
    """
    if module.training:
        raise RuntimeError("use_sparse_layers() is for inference: call eval() first")
    choices = []
    for path, layer, x in _candidates(module, args, kwargs):
        sparse = SparsePointwise(layer) if isinstance(layer, nn.Conv2d) else SparseLinear(layer)
        calls = {"sparse": lambda net=sparse, x=x: net(x), "dense": lambda net=layer, x=x: net(x)}
        times = median_latencies_ms(calls, repeats)
        ratio = times["sparse"] / times["dense"]
        choices.append(LayerChoice(path, _zeros(layer), ratio, ratio < _LARGEST_RATIO))
        if ratio < _LARGEST_RATIO:
            parent, _, leaf = path.rpartition(".")
            setattr(module.get_submodule(parent), leaf, sparse)
    return choices


def _candidates(module: nn.Module, args: Any, kwargs: Any) -> list[tuple[str, Any, Tensor]]:
    """The layers that may run with a sparse weight, and the input of each."""
    inside = {
        id(child)
        for attention in module.modules()
        if isinstance(attention, nn.MultiheadAttention)
        for child in attention.modules()
    }
    layers = [
        (path, layer)
        for path, layer in module.named_modules()
        if path
        and id(layer) not in inside
        and _is_supported(layer)
        and float((layer.weight == 0).float().mean()) >= _LEAST_ZEROS
    ]
    seen: dict[str, Tensor] = {}
    handles = [
        layer.register_forward_pre_hook(lambda _, given, path=path: seen.__setitem__(path, given[0]))
        for path, layer in layers
    ]
    try:
        with torch.inference_mode():
            module(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return [(path, layer, seen[path]) for path, layer in layers if path in seen]


def _zeros(layer: Any) -> float:
    return float((layer.weight == 0).float().mean())


def _is_supported(layer: nn.Module) -> bool:
    if type(layer) is nn.Linear:
        return True
    return (
        type(layer) is nn.Conv2d
        and layer.kernel_size == (1, 1)
        and layer.groups == 1
        and layer.padding in ((0, 0), "valid")
    )


def _rows(weight: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support", UserWarning)
        return weight.detach().flatten(1).to_sparse_csr()
