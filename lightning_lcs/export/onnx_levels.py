"""Several levels in one ONNX graph: nested choices over initializers that they share."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lightning_lcs.graph.channels.plan import Selection

Array = npt.NDArray[Any]
# Below this many entries a tensor takes less room than the nodes that would cut it out of another one.
_SMALL = 32


@dataclasses.dataclass(frozen=True)
class LevelGraph:
    """One level as a graph.

    Attributes:
        proto: the model; its weights still have the names of the network's parameters and buffers.
        selection: what it keeps of the tensors of the largest level, as far as that is known; it is checked.
    """

    proto: Any
    selection: Mapping[str, Selection]


@dataclasses.dataclass
class _Branch:
    """The graph of a level while it is made."""

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
    """A graph simplified around its weights: none of them is folded into another one, nor changed.

    The exporter's own simplification folds batch norms into convolutions; the weights of two levels then have nothing
    in common. While it runs, weights are inputs here: it can't see their values.
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
    """One model with an input ``level`` more: the number of the level that runs.

    Args:
        levels: at least two, by ascending alpha; weights of the last one are shared with the others.

    Returns:
        An ``onnx.ModelProto``.

    Raises:
        ValueError: a level holds control flow of its own.
    """
    from onnx import TensorProto, helper, numpy_helper

    last = levels[-1].proto
    full = {value.name: numpy_helper.to_array(value) for value in last.graph.initializer}
    branches = [_branch(number, level, full) for number, level in enumerate(levels)]
    results = list(last.graph.output)

    def choice(low: int, high: int) -> Any:
        """The levels from ``low`` to ``high``, which is not among them: by halves, as comparisons take time."""
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
    """The graph of a level, with tensors of the graph around it."""
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
                f"the network holds {node.op_type}, a choice or a loop of its own, and levels.onnx can't hold several "
                "of these: export the levels one by one with several=False"
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
    """The name under which a branch has a tensor, made from the shared one; ``None`` where it can't be, bit for bit."""
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
    """A cut that keeps other channels than the first ones, such as those of each head."""
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
    """Entries of a magnitude above that of all entries that are zero here; one comparison in the graph."""
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
