"""Turns layers of a float ONNX graph into layers of integers, with quantize and dequantize nodes that runtimes fuse."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
_QMIN, _QMAX = -128, 127


@dataclasses.dataclass(frozen=True)
class QuantizationParameters:
    """The quantization of an activation to uint8, the type that the instructions of processors take."""

    scale: float
    zero_point: int


@dataclasses.dataclass(frozen=True)
class Weight:
    """A weight as int8 integers.

    Attributes:
        integers: The integers in the shape of the weight, with outputs in the first dimension.
        scale: One scale, or one per output.
        zero_point: The zero points, in the shape of the scale.
    """

    integers: Array
    scale: Array
    zero_point: Array


class Graph:
    """An ONNX graph that is rewritten in place, with an index of the consumers of each value."""

    def __init__(self, graph: Any) -> None:
        from onnx import numpy_helper

        self.proto = graph
        self.arrays: dict[str, Array] = {value.name: numpy_helper.to_array(value) for value in graph.initializer}
        self.results = {value.name for value in graph.output}
        self._quantizations: dict[tuple[str, QuantizationParameters], str] = {}
        self.index()

    def index(self) -> None:
        """Build the index of the nodes again."""
        self.consumers: dict[str, list[Any]] = {}
        for node in self.proto.node:
            for name in dict.fromkeys(node.input):
                self.consumers.setdefault(name, []).append(node)

    def only_consumer(self, name: str) -> Any | None:
        """The only node that reads a value; ``None`` if there is not exactly one."""
        consumers = self.consumers.get(name, [])
        return consumers[0] if len(consumers) == 1 and name not in self.results else None

    def constant(self, name: str, value: Any, dtype: Any) -> str:
        """Add an initializer."""
        self.arrays[name] = np.asarray(value, dtype)
        return name

    def dequantized(self, name: str, integers: Array, scale: Array, zero_point: Array, axis: int) -> str:
        """Add constant integers and their dequantization, and return the name of the result."""
        from onnx import helper

        inputs = [
            self.constant(f"{name}/integers", integers, integers.dtype),
            self.constant(f"{name}/scale", scale, np.float32),
            self.constant(f"{name}/zero_point", zero_point, integers.dtype),
        ]
        node = helper.make_node("DequantizeLinear", inputs, [f"{name}/dequantized"], axis=axis)
        self.proto.node.append(node)
        return f"{name}/dequantized"

    def quantized(self, name: str, quantization: QuantizationParameters) -> str:
        """Add the rounding of a value to a quantization, at most once, and return the name of the result."""
        from onnx import helper

        if (name, quantization) not in self._quantizations:
            prefix = f"{name}/grid_{len(self._quantizations)}"
            scale = self.constant(f"{prefix}/scale", quantization.scale, np.float32)
            zero_point = self.constant(f"{prefix}/zero_point", quantization.zero_point, np.uint8)
            self.proto.node.extend(
                [
                    helper.make_node("QuantizeLinear", [name, scale, zero_point], [f"{prefix}/integers"]),
                    helper.make_node(
                        "DequantizeLinear", [f"{prefix}/integers", scale, zero_point], [f"{prefix}/values"]
                    ),
                ]
            )
            self._quantizations[name, quantization] = f"{prefix}/values"
        return self._quantizations[name, quantization]

    def quantization(self, name: str) -> QuantizationParameters | None:
        """The first quantization to which a value is rounded; ``None`` if there is none."""
        return next((quantization for value, quantization in self._quantizations if value == name), None)

    def finish(self) -> None:
        """Sort the nodes topologically, and drop nodes and initializers that nothing reads."""
        from onnx import numpy_helper

        known = {value.name for value in self.proto.input} | set(self.arrays) | {""}
        left, ordered = list(self.proto.node), []
        while left:
            ready = [node for node in left if all(name in known for name in node.input)]
            if not ready:
                raise RuntimeError("the graph of integers has a cycle: this is a bug in lightning-lcs")
            for node in ready:
                known.update(node.output)
            done = set(map(id, ready))
            ordered += ready
            left = [node for node in left if id(node) not in done]
        read = set(self.results)
        kept = []
        for node in reversed(ordered):
            if read.intersection(node.output):
                kept.append(node)
                read.update(node.input)
        del self.proto.node[:], self.proto.initializer[:]
        self.proto.node.extend(reversed(kept))
        self.proto.initializer.extend(
            numpy_helper.from_array(value, name) for name, value in self.arrays.items() if name in read
        )


def replace_input(node: Any, old: str, new: str) -> None:
    """Replace an input of a node by another value."""
    node.input[:] = [new if name == old else name for name in node.input]


def fold_batch_norm(graph: Graph, convolution: Any, weight: Weight) -> tuple[Weight, Array | None]:
    """Fold the batch norm after a convolution into its integers and its bias, and remove the norm from the graph.

    The factor of the norm for each output goes into the scale of the integers. The integers change where this factor is
    negative, or where outputs have different zero points, because runtimes need one zero point for all outputs.
    """
    bias = graph.arrays[convolution.input[2]] if len(convolution.input) > 2 and convolution.input[2] else None
    norm = graph.only_consumer(convolution.output[0])
    factor = np.ones(weight.integers.shape[0], np.float64)
    if norm is not None and norm.op_type == "BatchNormalization" and set(norm.input[1:]) <= set(graph.arrays):
        gamma, beta, mean, variance = (graph.arrays[name].astype(np.float64) for name in norm.input[1:])
        epsilon = next((attribute.f for attribute in norm.attribute if attribute.name == "epsilon"), 1e-5)
        factor = gamma / np.sqrt(variance + epsilon)
        bias = ((0.0 if bias is None else bias) - mean) * factor + beta
        convolution.output[0] = norm.output[0]
        graph.proto.node.remove(norm)
        graph.index()
    return _scaled(weight, factor), bias


def _scaled(weight: Weight, factor: Array) -> Weight:
    """A weight times a factor per output as integers, with one zero point."""
    outputs = weight.integers.shape[0]
    flat = weight.integers.reshape(outputs, -1).astype(np.float64)
    zero_points = np.broadcast_to(weight.zero_point.astype(np.float64), outputs)
    scale = np.broadcast_to(weight.scale.astype(np.float64), outputs) * np.where(factor == 0.0, 1.0, np.abs(factor))
    values = (flat - zero_points[:, None]) * np.sign(factor)[:, None]
    # Integers of outputs whose sign or zero point changed may not fit any more, so that their scale grows.
    least, zero_point = min(
        ((_stretch(values, candidate), candidate) for candidate in dict.fromkeys((int(zero_points[0]), 0))),
        key=lambda pair: float(pair[0].max()),
    )
    integers = (np.round(values / least[:, None]) + zero_point).astype(np.int8)
    return Weight(integers.reshape(weight.integers.shape), scale * least, np.full(outputs, zero_point))


def _stretch(values: Array, zero_point: int) -> Array:
    """The factor by which the integers of each output must shrink to fit around a zero point; at least 1."""
    low, high = values.min(1), values.max(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        above = np.where(high > 0, high / (_QMAX - zero_point), 1.0)
        below = np.where(low < 0, -low / (zero_point - _QMIN), 1.0)
    stretched: Array = np.maximum(1.0, np.maximum(above, below))
    return stretched


def to_integers(
    graph: Graph, weights: Mapping[str, Weight], quantizations: Mapping[str, QuantizationParameters]
) -> tuple[list[str], list[str]]:
    """Turn convolutions, linear layers and matrix products with these weights into layers of integers.

    Args:
        graph: The float graph, whose weights have the names of parameters.
        weights: The integers by the name of the parameter.
        quantizations: The quantization of the input of each layer, by the same names, where it is known.

    Returns:
        The names of the weights that stay float because another kind of node reads them, or because the input of the
        layer stays float; and the outputs of convolutions, which need a quantization, too, so that the convolutions run
        with integers.
    """
    kept_float, outputs = [], []
    for name, weight in weights.items():
        nodes = _layers(graph, name)
        if nodes is None or name not in quantizations:
            kept_float.append(name)
            continue
        for node in nodes:
            quantization = quantizations[name]
            taken = node.input[0]
            if node.op_type == "Conv" and len(nodes) == 1:
                folded, bias = fold_batch_norm(graph, node, weight)
            else:
                folded = _scaled(weight, np.ones(weight.integers.shape[0])) if node.op_type == "Conv" else weight
                known = len(node.input) > 2 and node.input[2]
                bias = graph.arrays[node.input[2]] if known else None
            key = name if len(nodes) == 1 else f"{name}/{node.output[0]}"
            inputs = [graph.quantized(taken, quantization), _weight_of(graph, node, key, folded)]
            if bias is not None:
                inputs.append(_bias_of(graph, key, bias, quantization.scale * folded.scale))
            node.input[:] = inputs
            if node.op_type == "Conv":
                outputs.append(node.output[0])
    graph.index()
    return kept_float, list(dict.fromkeys(_after_relu(graph, name) for name in outputs))


def quantize_convolution_outputs(
    graph: Graph, values: Sequence[str], calibrated: Mapping[str, QuantizationParameters]
) -> None:
    """Quantize the outputs of convolutions, for all nodes that read them.

    Args:
        graph: The graph after :func:`to_integers`.
        values: The outputs of convolutions that :func:`to_integers` returned.
        calibrated: The quantization of those outputs that get none from the layers that read them.
    """
    for name in values:
        quantization = quantization_after(graph, name) or calibrated[name]
        _for_all(graph, name, quantization)
    # A sum runs with integers if its terms and its result are integers.
    for node in list(graph.proto.node):
        if node.op_type == "Add":
            for name in (*node.input, _after_relu(graph, node.output[0])):
                quantized = graph.quantization(name)
                if quantized is not None:
                    _for_all(graph, name, quantized)


def quantization_after(graph: Graph, name: str) -> QuantizationParameters | None:
    """The quantization of a value, or that of the max pooling of it, which does not change the range of values."""
    quantized = graph.quantization(name)
    pool = graph.only_consumer(name)
    if quantized is None and pool is not None and pool.op_type == "MaxPool":
        return graph.quantization(pool.output[0])
    return quantized


def _for_all(graph: Graph, name: str, quantization: QuantizationParameters) -> None:
    others = [node for node in graph.consumers.get(name, []) if node.op_type != "QuantizeLinear"]
    if name in graph.results and not others:
        return
    rounded = graph.quantized(name, quantization)
    for node in others:
        replace_input(node, name, rounded)
    graph.index()


def _after_relu(graph: Graph, name: str) -> str:
    following = graph.only_consumer(name)
    return str(following.output[0]) if following is not None and following.op_type == "Relu" else name


def _layers(graph: Graph, name: str) -> list[Any] | None:
    """The nodes that compute with a weight; ``None`` if any other kind of node reads it."""
    found = []
    for node in graph.consumers.get(name, []):
        products = graph.consumers[node.output[0]] if node.op_type == "Transpose" else [node]
        if not all(_is_layer(graph, product, name, node.output[0]) for product in products):
            return None
        found += products
    return found or None


def _is_layer(graph: Graph, node: Any, name: str, transposed: str) -> bool:
    """Whether a node is a supported layer that computes with a weight or with its transpose."""
    if node.op_type == "MatMul":
        return bool(node.input[1] == transposed)
    known = len(node.input) < 3 or not node.input[2] or node.input[2] in graph.arrays
    is_kind = node.op_type == "Conv" or (node.op_type == "Gemm" and _is_plain(node))
    return bool(is_kind and known and node.input[1] == name)


def _is_plain(node: Any) -> bool:
    given = {attribute.name: attribute.i or attribute.f for attribute in node.attribute}
    factors = {given.get("alpha", 1), given.get("beta", 1)}
    return bool(given.get("transB") == 1 and not given.get("transA") and factors == {1})


def _weight_of(graph: Graph, node: Any, name: str, weight: Weight) -> str:
    integers, axis = weight.integers, 0
    if node.op_type == "MatMul":
        integers, axis = np.ascontiguousarray(integers.T), 1
    return graph.dequantized(name, integers, weight.scale, weight.zero_point, axis)


def _bias_of(graph: Graph, name: str, bias: Array, scale: Array) -> str:
    limit = np.iinfo(np.int32)
    scales = np.broadcast_to(scale, bias.shape)
    integers = np.round(bias / scales).clip(limit.min, limit.max).astype(np.int32)
    return graph.dequantized(f"{name}/bias", integers, scales, np.zeros(bias.shape), 0)
