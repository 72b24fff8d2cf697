"""Several levels in one ONNX graph: nested ``If`` nodes over shared initializers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lightning_lcs.graph.channels.plan import Selection

Array = npt.NDArray[Any]
# A tensor with fewer entries is smaller than the nodes that would cut it out of another tensor.
_SMALL = 32


@dataclasses.dataclass(frozen=True)
class LevelGraph:
    """One level as a graph.

    Attributes:
        proto: The ONNX model. Its weights have the names of the network's parameters and buffers.
        selection: The part of the tensors of the largest level that this level keeps, as far as it is known. It is
            checked before it is used.
    """

    proto: Any
    selection: Mapping[str, Selection]


@dataclasses.dataclass
class _Branch:
    """The graph of a level while it is built."""

    prefix: str
    nodes: list[Any] = dataclasses.field(default_factory=list)
    initializers: list[Any] = dataclasses.field(default_factory=list)

    def constant(self, name: str, values: Any, dtype: Any = np.int64) -> str:
        from onnx import numpy_helper

        self.initializers.append(numpy_helper.from_array(np.asarray(values, dtype), self.prefix + name))
        return self.prefix + name

    def node(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        from onnx import helper

        self.nodes.append(helper.make_node(kind, list(inputs), [self.prefix + output], **attributes))
        return self.prefix + output


def simplified(proto: Any) -> Any:
    """Simplify a graph without changing its weights or folding them into each other.

    The exporter's own simplification folds batch norms into convolutions, after which two levels share no weights. Here
    the weights are inputs of the graph during simplification, so that their values are not known.
    """
    import onnx
    from onnx import TensorProto, helper
    from onnxscript import optimizer

    floats = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
    weights = [value for value in proto.graph.initializer if value.data_type in floats]
    others = [value for value in proto.graph.initializer if value.data_type not in floats]
    bare = onnx.ModelProto()
    bare.CopyFrom(proto)
    count = len(bare.graph.input)
    del bare.graph.initializer[:]
    bare.graph.initializer.extend(others)
    inputs = [helper.make_tensor_value_info(value.name, value.data_type, list(value.dims)) for value in weights]
    bare.graph.input.extend(inputs)
    bare = optimizer.optimize(bare)
    del bare.graph.input[count:]
    bare.graph.initializer.extend(weights)
    return bare


def several_levels(levels: Sequence[LevelGraph]) -> Any:
    """Merge levels into one model, which has a further input ``level``: the number of the level that runs.

    Args:
        levels: At least two levels, by ascending alpha. The weights of the last one are shared with the others.

    Returns:
        An ``onnx.ModelProto``.

    Raises:
        ValueError: A level holds control flow of its own.
    """
    from onnx import TensorProto, helper, numpy_helper

    last = levels[-1].proto
    full = {value.name: numpy_helper.to_array(value) for value in last.graph.initializer}
    branches = [_branch(number, level, full) for number, level in enumerate(levels)]
    results = list(last.graph.output)

    def choice(low: int, high: int) -> Any:
        """A graph for the levels from ``low`` up to but not including ``high``, by bisection to save comparisons."""
        if high - low == 1:
            return branches[low]
        middle = (low + high) // 2
        name = f"choice_{low}_{high}"
        names = [value.name if high - low == len(levels) else f"{name}/{value.name}" for value in results]
        nodes = [
            helper.make_node("Less", ["level", f"{name}/middle"], [f"{name}/below"]),
            helper.make_node(
                "If", [f"{name}/below"], names, then_branch=choice(low, middle), else_branch=choice(middle, high)
            ),
        ]
        bound = numpy_helper.from_array(np.array(middle, np.int64), f"{name}/middle")
        return helper.make_graph(
            nodes, name, [], [_renamed(v, n) for v, n in zip(results, names, strict=True)], [bound]
        )

    graph = choice(0, len(levels))
    graph.input.extend([*last.graph.input, helper.make_tensor_value_info("level", TensorProto.INT64, [])])
    graph.initializer.extend(_renamed(value, _shared(value.name)) for value in last.graph.initializer)
    return helper.make_model(
        graph, opset_imports=last.opset_import, ir_version=last.ir_version, producer_name="lightning-lcs"
    )


def _shared(name: str) -> str:
    return f"shared/{name}"


def _renamed(value: Any, name: str) -> Any:
    copy = type(value)()
    copy.CopyFrom(value)
    copy.name = name
    return copy


def _branch(number: int, level: LevelGraph, full: Mapping[str, Array]) -> Any:
    """The graph of a level, which takes shared tensors from the surrounding graph."""
    from onnx import helper, numpy_helper

    branch = _Branch(f"level_{number}/")
    graph = level.proto.graph
    known = {value.name: value.name for value in graph.input}
    for value in graph.initializer:
        array = numpy_helper.to_array(value)
        name = value.name
        source = _from_shared(branch, name, array, full.get(name), level.selection.get(name, ()))
        if source is None:
            branch.initializers.append(_renamed(value, branch.prefix + name))
            source = branch.prefix + name
        known[name] = source
    for node in graph.node:
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            raise ValueError(
                f"the network has control flow of its own ({node.op_type}), which levels.onnx can't hold for several "
                "levels: export the levels one by one with several=False"
            )
        copy = _renamed(node, branch.prefix + node.name)
        del copy.metadata_props[:]
        copy.doc_string = ""
        copy.input[:] = [known.get(name, branch.prefix + name) if name else "" for name in node.input]
        copy.output[:] = [branch.prefix + name if name else "" for name in node.output]
        branch.nodes.append(copy)
    results = [_renamed(value, branch.prefix + value.name) for value in graph.output]
    for result in results:
        del result.metadata_props[:]
    return helper.make_graph(branch.nodes, f"level_{number}", [], results, branch.initializers)


def _from_shared(branch: _Branch, name: str, array: Array, full: Array | None, selection: Selection) -> str | None:
    """The name of a branch's tensor that nodes cut from the shared one; ``None`` if it would not be bitwise equal."""
    if full is None or full.ndim != array.ndim or full.dtype != array.dtype:
        return None
    if _equal(array, full):
        return _shared(name)
    if array.size < _SMALL:
        return None
    if array.shape == full.shape:
        return _above_threshold(branch, name, array, full)
    if any(small > large for small, large in zip(array.shape, full.shape, strict=True)):
        return None
    if _equal(array, full[tuple(slice(size) for size in array.shape)]):
        cut = [axis for axis in range(array.ndim) if array.shape[axis] < full.shape[axis]]
        bounds = [
            branch.constant(f"{name}/starts", [0] * len(cut)),
            branch.constant(f"{name}/ends", [array.shape[axis] for axis in cut]),
            branch.constant(f"{name}/axes", cut),
        ]
        return branch.node("Slice", [_shared(name), *bounds], f"{name}/cut")
    return _chosen(branch, name, array, full, selection)


def _chosen(branch: _Branch, name: str, array: Array, full: Array, selection: Selection) -> str | None:
    """A cut that does not keep the first channels, such as a cut within each head."""
    indices = [list(range(kept)) if isinstance(kept, int) else kept for kept in selection]
    cut = full
    for axis, kept in enumerate(indices):
        cut = cut if kept is None else cut.take(kept, axis)
    if not _equal(array, cut):
        return None
    source = _shared(name)
    for axis, kept in enumerate(indices):
        if kept is not None:
            places = branch.constant(f"{name}/places_{axis}", kept)
            source = branch.node("Gather", [source, places], f"{name}/cut_{axis}", axis=axis)
    return source


def _above_threshold(branch: _Branch, name: str, array: Array, full: Array) -> str | None:
    """A tensor of the entries whose magnitude is above a threshold, which takes one comparison in the graph."""
    zeros = array == 0
    if not zeros.any():
        return None
    threshold = np.abs(full[zeros]).max()
    if not _equal(array, np.where(np.abs(full) > threshold, full, full.dtype.type(0))):
        return None
    magnitude = branch.node("Abs", [_shared(name)], f"{name}/magnitude")
    above = branch.node(
        "Greater", [magnitude, branch.constant(f"{name}/threshold", threshold, full.dtype)], f"{name}/above"
    )
    return branch.node("Where", [above, _shared(name), branch.constant(f"{name}/zero", 0, full.dtype)], f"{name}/kept")


def _equal(first: Array, second: Array) -> bool:
    return first.shape == second.shape and bool(np.array_equal(first, second))
