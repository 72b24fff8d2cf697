"""Converts a traced network and its channel plan to JSON and back. The JSON holds data only, no code and no pickle.

Before anything runs, nodes are numbered and renamed, ops are looked up in a fixed list, and arguments are checked
against the schema of the op. Text among the arguments (padding and rounding modes, equations of einsum) may hold only
letters, commas, dots and arrows. Names of tensors and results are words.
"""

from __future__ import annotations

import keyword
import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx

from lightning_lcs.graph.channels.dims import Dim
from lightning_lcs.graph.channels.plan import ChannelPlan, PlanAtWidth
from lightning_lcs.graph.channels.rules.registry import admitted
from lightning_lcs.graph.program import Program
from lightning_lcs.graph.tracing.trace import InputSpec, Trace
from lightning_lcs.io.plan_json import MOST_SIZE, DimTable, checked_name, listed, natural, plan_from_data

# Ops that a file may hold although they have no rule for channels.
_ALSO = frozenset(
    "sym_size arange linspace meshgrid chunk split tensor_split tril triu floor_divide argsort any all isfinite "
    "logsumexp".split()
)
_PYTHON: dict[str, Callable[..., Any]] = {
    "getitem": operator.getitem,
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "floordiv": operator.floordiv,
    "sym_max": torch.sym_max,
    "sym_min": torch.sym_min,
}
_DTYPES = {str(d): d for d in vars(torch).values() if isinstance(d, torch.dtype)}
_FORMATS = {str(f): f for f in vars(torch).values() if isinstance(f, (torch.memory_format, torch.layout))}
# Strings that ops take: modes of padding, rounding and approximation, and equations of einsum.
_TEXT = re.compile(r"[A-Za-z,.> -]{0,64}")
# Keys of the results of a network that returns a mapping.
_RESULT = re.compile(r"[A-Za-z0-9_.]{1,100}")
_FLOATS = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}
_MOST_DEPTH = 8


def network_to_data(program: Program, plan: ChannelPlan) -> dict[str, Any]:
    """A traced forward and its channel plan as plain data.

    Raises:
        ValueError: The graph holds an op or a value that files may not hold.
    """
    trace = program.trace
    dims = DimTable(plan.structure)
    index: dict[fx.Node, int] = {}
    nodes: list[dict[str, Any]] = []
    output: Any = None
    for node in trace.graph.nodes:
        if node.op == "output":
            output = _encode(list(node.args[0]), index)
            continue
        nodes.append(_node_to_data(node, trace, index))
        index[node] = len(index)
    sizes = [[index[node], list(path), dims.number(dim)] for node, path, dim in program.size_arguments]
    tensors = {name: [dims.number(dim) for dim in plan.tensors[name]] for name in program.names}
    return {
        "nodes": nodes,
        "output": output,
        "structure": _encode(pytree.tree_unflatten(list(range(trace.out_spec.num_leaves)), trace.out_spec), {}),
        "inputs": [_spec_to_data(spec) for spec in trace.specs],
        "arguments": _encode(trace.arguments(), {}),
        "sizes": sizes,
        "plan": {
            "tensors": tensors,
            "dims": dims.dims,
            "atoms": dims.atoms,
            "least": plan.structure.min_channels,
            "keep": list(plan.keep),
            "round_to": plan.round_to,
        },
    }


def level_to_data(program: Program, at: PlanAtWidth) -> dict[str, Any]:
    """A traced forward that is fixed at one width; errors are those of :func:`network_to_data`."""
    data = network_to_data(program, at.plan)
    for (number, path, _), (_, _, dim) in zip(data["sizes"], program.size_arguments, strict=True):
        value: Any = data["nodes"][number]["args"]
        for step in path[:-1]:
            value = _items(value)[step]
        _items(value)[path[-1]] = at.size(dim)
    shapes = {name: at.shape(name) for name in program.names}
    sizes = sorted({size for shape in shapes.values() for size in shape})
    atoms = [[size, 1, "the only width"] for size in sizes if size > 1]
    numbers = {size: number for number, (size, *_) in enumerate(atoms)}
    # A size of 1 is the empty product, and a size of 0 is the empty sum.
    dims: list[list[list[int]]] = [[[numbers[size]]] if size > 1 else [[]] * size for size in sizes]
    tensors = {name: [sizes.index(size) for size in shape] for name, shape in shapes.items()}
    plan = {"tensors": tensors, "dims": dims, "atoms": atoms, "least": 1, "keep": [], "round_to": 1}
    return {**data, "sizes": [], "plan": plan}


def _items(encoded: Any) -> Any:
    return encoded["tuple"] if isinstance(encoded, dict) else encoded


def network_from_data(
    data: Any, constants: Sequence[Tensor], device: torch.device | str = "cpu"
) -> tuple[Program, ChannelPlan]:
    """A traced forward and its plan from the result of :func:`network_to_data`.

    Args:
        data: Any JSON, which is validated.
        constants: The constant tensors of the graph, by number.
        device: The device on which the graph creates tensors.

    Raises:
        ValueError: The data can't be a result of :func:`network_to_data`.
    """
    try:
        return _network(data, constants, torch.device(device))
    except (KeyError, IndexError, TypeError, AttributeError, OverflowError, RecursionError, RuntimeError) as error:
        raise ValueError(f"the network in the file is malformed: {error!r}") from error


def _network(data: Any, constants: Sequence[Tensor], device: torch.device) -> tuple[Program, ChannelPlan]:
    expected = {"nodes", "output", "structure", "inputs", "arguments", "sizes", "plan"}
    if not isinstance(data, dict) or data.keys() != expected:
        raise ValueError(f"the network in the file is malformed: it has {', '.join(sorted(expected))}")
    plan, dims = plan_from_data(data["plan"])
    graph = fx.Graph()
    reader = _Reader(device)
    specs = tuple([_spec(entry, reader) for entry in listed(data["inputs"], "inputs")])
    state: dict[str, str] = {}
    lifted: dict[str, Tensor] = {}
    inputs: list[str] = []
    for number, entry in enumerate(listed(data["nodes"], "nodes")):
        name = f"n{number}"
        try:
            if entry["op"] == "call":
                reader.made.append(_call(graph, name, entry, reader))
                continue
            reader.made.append(graph.create_node("placeholder", name, name=name))
            if entry["op"] == "tensor":
                state[name] = checked_name(entry["name"])
                if state[name] not in plan.tensors:
                    raise ValueError(f"the plan lacks the tensor {state[name]!r}")
            elif entry["op"] == "constant":
                lifted[name] = constants[natural(entry["number"], len(constants))]
            elif entry["op"] == "input":
                inputs.append(name)
            else:
                raise ValueError(f"a node of kind {entry['op']!r} is not allowed")
        except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
            reason = error if isinstance(error, ValueError) else repr(error)
            raise ValueError(f"the network in the file is malformed at node {number}: {reason}") from error
    if len(set(state.values())) != len(state) or len(inputs) != len(specs) or not _any_tensor(specs):
        raise ValueError("the network in the file is malformed: its inputs or tensors are not those that it names")
    results = reader.value(listed(data["output"], "output"))
    graph.output(tuple(results))
    counted = reader.value(data["structure"], plain=True)
    leaves, out_spec = pytree.tree_flatten(counted)
    if leaves != list(range(len(results))):
        raise ValueError("the network in the file is malformed: its results do not fit their structure")
    in_spec = _in_spec(reader.value(data["arguments"], plain=True), len(inputs))
    trace = Trace(graph, state, lifted, tuple(inputs), in_spec, out_spec, specs)
    sizes = [_size_argument(entry, reader.made, dims) for entry in listed(data["sizes"], "sizes")]
    return Program(trace, sizes), plan


# -- nodes ------------------------------------------------------------------------------------------------------------


def _node_to_data(node: fx.Node, trace: Trace, index: Mapping[fx.Node, int]) -> dict[str, Any]:
    if node.op == "placeholder":
        if node.name in trace.state:
            return {"op": "tensor", "name": checked_name(trace.state[node.name])}
        if node.name in trace.constants:
            return {"op": "constant", "number": list(trace.constants).index(node.name)}
        return {"op": "input"}
    if node.op != "call_function":
        raise ValueError(f"a node of kind {node.op!r} can't be written to a file")
    entry = {"op": "call", "target": _target_name(node), "args": _encode(list(node.args), index)}
    if node.kwargs:
        entry["kwargs"] = {key: _encode(value, index) for key, value in node.kwargs.items()}
    return entry


def _call(graph: fx.Graph, name: str, entry: Mapping[str, Any], reader: _Reader) -> fx.Node:
    target = _target(entry["target"])
    args = reader.value(listed(entry["args"], "arguments"))
    given = entry.get("kwargs", {})
    if not isinstance(given, dict):
        raise ValueError(f"the arguments of {entry['target']} are not a mapping")
    kwargs = {key: reader.value(value) for key, value in given.items()}
    schema = getattr(target, "_schema", None)
    if schema is None:
        whole = all(isinstance(arg, fx.Node) or (isinstance(arg, int) and not isinstance(arg, bool)) for arg in args)
        if len(args) != 2 or kwargs or not whole:
            raise ValueError(f"{entry['target']} takes two nodes or whole numbers")
    else:
        known = [argument.name for argument in schema.arguments]
        positional = [argument.name for argument in schema.arguments if not argument.kwarg_only]
        if len(args) > len(positional) or not kwargs.keys() <= set(known[len(args) :]):
            raise ValueError(f"{entry['target']} does not take {len(args)} arguments and {sorted(kwargs)}")
        needed = [a.name for a in schema.arguments[len(args) :] if not a.has_default_value()]
        if not set(needed) <= kwargs.keys():
            raise ValueError(f"{entry['target']} lacks {', '.join(needed)}")
    # With weights in channels-last format, the result of a convolution may have strides that allow no view.
    target = torch.ops.aten.reshape.default if target is torch.ops.aten.view.default else target
    return graph.create_node("call_function", target, tuple(args), kwargs, name)


def _target_name(node: fx.Node) -> str:
    for name, function in _PYTHON.items():
        if node.target is function:
            return f"python.{name}"
    name = str(node.target)
    try:
        _target(name)
    except ValueError as error:
        if "loss" not in name:
            raise
        hint = "a network that computes its loss when it is given labels: set_example_inputs(...) without them first"
        raise ValueError(f"{error} ({hint})") from error
    return name


def _target(name: Any) -> Any:
    space, _, rest = str(name).partition(".")
    if space == "python" and rest in _PYTHON:
        return _PYTHON[rest]
    base, _, overload = rest.partition(".")
    known = admitted(space, base) or (space == "aten" and base in _ALSO)
    packet = getattr(getattr(torch.ops, space), base, None) if known else None
    # Variants that write their result into an argument never occur in a trace.
    op = getattr(packet, overload) if packet is not None and overload in _overloads(packet) else None
    if not isinstance(op, torch._ops.OpOverload) or any(argument.is_out for argument in op._schema.arguments):
        raise ValueError(f"the op {str(name)[:100]} is not allowed in a file")
    return op


def _overloads(packet: Any) -> list[str]:
    if not isinstance(packet, torch._ops.OpOverloadPacket):
        return []
    return list(packet.overloads())  # type: ignore[no-untyped-call]


def _size_argument(entry: Any, made: Sequence[fx.Node], dims: Sequence[Dim]) -> tuple[fx.Node, tuple[int, ...], Dim]:
    number, path, dim = entry
    node = made[natural(number, len(made))]
    value: Any = node.args
    for step in listed(path, "path"):
        value = value[natural(step, len(value))]
    if node.op != "call_function" or not path or isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"the network in the file is malformed: node {number} has no size at {path}")
    return node, tuple(path), dims[natural(dim, len(dims))]


# -- values -----------------------------------------------------------------------------------------------------------


def _encode(value: Any, index: Mapping[fx.Node, int]) -> Any:
    if isinstance(value, fx.Node):
        return {"node": index[value]}
    if type(value) is tuple:
        return {"tuple": [_encode(item, index) for item in value]}
    if isinstance(value, list):
        return [_encode(item, index) for item in value]
    if isinstance(value, dict):  # a mapping of another class, such as an OrderedDict, is read back as a dict
        if not all(isinstance(key, str) and _RESULT.fullmatch(key) for key in value):
            raise ValueError(
                "a network whose result is a mapping with keys that are not words can't be written to a file"
            )
        return {"dict": {key: _encode(item, index) for key, item in value.items()}}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value)}
    if isinstance(value, (torch.memory_format, torch.layout)):
        return {"format": str(value)}
    if isinstance(value, torch.device):
        return {"device": "input"}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if isinstance(value, str) and not _TEXT.fullmatch(value):
        raise ValueError(f"the text {value!r} can't be written to a file")
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ValueError(f"a value of type {type(value).__name__} can't be written to a file")


class _Reader:
    """Reads values of a file, which may refer to earlier nodes and to nothing else."""

    def __init__(self, device: torch.device) -> None:
        self.made: list[fx.Node] = []
        self._device = device

    def value(self, value: Any, plain: bool = False, depth: int = 0) -> Any:
        """Decode a value; ``plain`` allows mappings with words as keys, but no nodes."""
        if depth > _MOST_DEPTH:
            raise ValueError("values in it are nested too deeply")
        if isinstance(value, list):
            return [self.value(item, plain, depth + 1) for item in value]
        if isinstance(value, str) and not _TEXT.fullmatch(value):
            raise ValueError(f"the text {value[:100]!r} is not allowed")
        if isinstance(value, int) and abs(value) >= 2**63:
            raise ValueError("a whole number in it is too large")
        if not isinstance(value, dict):
            return value
        if len(value) != 1:
            raise ValueError(f"the value {str(value)[:100]} is not known")
        ((kind, content),) = value.items()
        if kind == "tuple":
            return tuple([self.value(item, plain, depth + 1) for item in listed(content, "a tuple")])
        if kind == "dict" and plain and isinstance(content, dict) and all(map(_RESULT.fullmatch, content)):
            return {key: self.value(item, plain, depth + 1) for key, item in content.items()}
        if kind == "node" and not plain:
            if not isinstance(content, int) or isinstance(content, bool) or not 0 <= content < len(self.made):
                raise ValueError(
                    f"it refers to the node {str(content)[:100]}, and there are {len(self.made)} nodes before it"
                )
            return self.made[content]
        if kind == "device" and content == "input":
            return self._device
        tables: dict[str, Mapping[str, Any]] = {"dtype": _DTYPES, "format": _FORMATS, "float": _FLOATS}
        table = tables.get(kind)
        if table is None or not isinstance(content, str) or content not in table:
            raise ValueError(f"the value {str(value)[:100]} is not allowed")
        return table[content]


def _spec_to_data(spec: Any) -> dict[str, Any]:
    if isinstance(spec, InputSpec):
        return {"shape": list(spec.shape), "dtype": str(spec.dtype)}
    return {"value": _encode(spec, {})}


def _spec(entry: Any, reader: _Reader) -> Any:
    if entry.keys() == {"value"}:
        return reader.value(entry["value"], plain=True)
    shape = [None if size is None else natural(size, MOST_SIZE) for size in listed(entry["shape"], "a shape")]
    if entry["dtype"] not in _DTYPES or math.prod(size or 1 for size in shape) >= MOST_SIZE or len(shape) > 16:
        raise ValueError(f"the network in the file has an input of type {entry['dtype']!r} and shape {shape}")
    return InputSpec(tuple(shape), _DTYPES[entry["dtype"]])


def _any_tensor(specs: Sequence[Any]) -> bool:
    return any(isinstance(spec, InputSpec) for spec in specs)


def _in_spec(arguments: Any, count: int) -> pytree.TreeSpec:
    leaves, spec = pytree.tree_flatten(arguments)
    args, kwargs = arguments
    if not isinstance(args, tuple) or not isinstance(kwargs, dict) or leaves != list(range(count)):
        raise ValueError("the network in the file is malformed: its inputs do not fit its arguments")
    if not all(name.isidentifier() and not keyword.iskeyword(name) and name != "self" for name in kwargs):
        raise ValueError(f"the network in the file is malformed: {list(kwargs)} are not all names of arguments")
    return spec
