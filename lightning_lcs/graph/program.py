"""A traced graph as a function of tensors and sizes, or as a network of its own."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn

from lightning_lcs.graph.channels.dims import Dim
from lightning_lcs.graph.channels.plan import PlanAtWidth
from lightning_lcs.graph.channels.propagate import (
    DIMS,
    SizeArgument,
    is_batch_statistic,
    is_written_statistic,
    running_statistics,
)
from lightning_lcs.graph.materialized import MaterializedModel
from lightning_lcs.graph.tracing.trace import InputSpec, Trace


class Program:
    """One traced forward, with its tensors and the sizes that depend on the level as inputs.

    The generated code of an ``fx.GraphModule`` runs as fast as the network's own Python code (0.75 to 0.97 of its time,
    measured on resnet18 with batch size 1), and a change of level compiles nothing.

    Args:
        trace: The traced forward.
        size_arguments: The integer arguments in its graph that are sizes; see :func:`propagate`.

    Attributes:
        names: Qualified names of the parameters and buffers, in the order in which ``run`` takes them.
        sizes: The dimensions whose sizes ``run`` takes after the tensors.
        batch_statistics: Names of running statistics and counters of batches, which the forward only updates; ``run``
            takes ``None`` for them.
        updated: Names of other buffers that the graph changes in place; they need a copy.
        statistics: Running variance and momentum of every batch norm, by the name of its running mean.
    """

    def __init__(self, trace: Trace, size_arguments: Sequence[SizeArgument]) -> None:
        self.trace = trace
        self.size_arguments = tuple(size_arguments)
        structure_sizes = dict.fromkeys(dim for _, _, dim in size_arguments)
        self.sizes: tuple[Dim, ...] = tuple(structure_sizes)
        self.statistics = running_statistics(trace)
        placeholders = {node.name: node for node in trace.graph.nodes if node.op == "placeholder"}
        state = [name for name in placeholders if name in trace.state]
        self.names = tuple(trace.state[name] for name in state)
        counters = {name: update for name in state if (update := _counter_update(placeholders[name])) is not None}
        statistics = [name for name in state if is_batch_statistic(placeholders[name])]
        self.batch_statistics = frozenset(trace.state[name] for name in (*statistics, *counters))
        self.updated = frozenset(trace.state[n] for n in state if _is_updated(placeholders[n])) - self.batch_statistics
        self._constants = [name for name in placeholders if name in trace.constants]
        self._constants_on: dict[torch.device, list[Tensor]] = {}
        self._state, self._left_out = state, frozenset(counters.values())
        self._forward = self._compile()
        self._watched: dict[tuple[str, ...], tuple[list[fx.Node], Callable[..., Any]]] = {}

    def _compile(self, watched: Sequence[fx.Node] = ()) -> Callable[..., Any]:
        """The code of the graph; copies of the results of some nodes come after its own results."""
        graph = fx.Graph()
        mapping: dict[fx.Node, fx.Node] = {}
        originals = {node.name: node for node in self.trace.graph.nodes if node.op == "placeholder"}
        for name in self._state + self._constants:
            mapping[originals[name]] = graph.placeholder(name)
        size_nodes = {dim: graph.placeholder(f"size_{i}") for i, dim in enumerate(self.sizes)}
        for name in self.trace.inputs:
            mapping[originals[name]] = graph.placeholder(name)
        resized: dict[fx.Node, dict[tuple[int, ...], fx.Node | int]] = {}
        for node, path, dim in self.size_arguments:
            resized.setdefault(node, {})[path] = size_nodes[dim]
        _copy_body(self.trace.graph, graph, mapping, resized, None, self._left_out, watched)
        return fx.GraphModule(nn.Module(), graph, class_name="Program").forward

    def _watching(self, paths: tuple[str, ...]) -> tuple[list[fx.Node], Callable[..., Any]]:
        """The last nodes of modules, and code that also returns what these compute."""
        if paths not in self._watched:
            nodes = [last_node(self.trace, path) for path in paths]
            self._watched[paths] = (nodes, self._compile(nodes))
        return self._watched[paths]

    def watched_dims(self, paths: tuple[str, ...]) -> list[Sequence[Dim]]:
        """The dimensions of what modules return.

        Args:
            paths: The paths of the modules.

        Raises:
            ValueError: A module computes no tensor in the graph.
        """
        return [node.meta[DIMS] for node in self._watching(paths)[0]]

    def run(self, tensors: Sequence[Tensor | None], sizes: Sequence[int], args: Any, kwargs: Any) -> Any:
        """Run the forward, and return the network's result.

        Args:
            tensors: Parameters and buffers in the order of ``names``; ``None`` for those in ``batch_statistics``.
            sizes: Sizes of the dimensions in ``sizes``.
            args: The network's arguments.
            kwargs: The network's keyword arguments.
        """
        return self._run(self._forward, tensors, sizes, args, kwargs)[0]

    def run_watched(
        self, paths: tuple[str, ...], tensors: Sequence[Tensor | None], sizes: Sequence[int], args: Any, kwargs: Any
    ) -> tuple[Any, list[Tensor]]:
        """Run the forward, and return the network's result and what modules return.

        Args:
            paths: The paths of the modules.
            tensors: As for :meth:`run`.
            sizes: As for :meth:`run`.
            args: As for :meth:`run`.
            kwargs: As for :meth:`run`.

        Raises:
            ValueError: A module computes no tensor in the graph.
        """
        return self._run(self._watching(paths)[1], tensors, sizes, args, kwargs)

    def _run(
        self,
        forward: Callable[..., Any],
        tensors: Sequence[Tensor | None],
        sizes: Sequence[int],
        args: Any,
        kwargs: Any,
    ) -> tuple[Any, list[Tensor]]:
        leaves = args if len(args) == 1 and isinstance(args[0], Tensor) and not kwargs else None
        # flatten_up_to also accepts mappings whose keys are in another order.
        leaves = self.trace.in_spec.flatten_up_to((args, kwargs)) if leaves is None else leaves
        device = next(leaf.device for leaf in leaves if isinstance(leaf, Tensor))
        results = forward(*tensors, *self._constants_at(device), *sizes, *leaves)
        if self.trace.out_spec.is_leaf():
            return results[0], list(results[1:])
        count = self.trace.out_spec.num_leaves
        return pytree.tree_unflatten(list(results[:count]), self.trace.out_spec), list(results[count:])

    def _constants_at(self, device: torch.device) -> list[Tensor]:
        """The constants of the code, on the device of the input."""
        found = self._constants_on.get(device)
        if found is None:
            with torch.inference_mode(False):  # a training step may use them later
                found = [self.trace.constants[name].to(device) for name in self._constants]
            if all(type(value) is Tensor for value in found):  # tensors of a tracer must not be kept
                self._constants_on[device] = found
        return found

    def example_inputs(self, batch: int, device: torch.device) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments of the traced shapes: zeros for tensors, and the traced values for all others.

        Args:
            batch: Number of samples.
            device: The device of the tensors.
        """
        leaves = [
            torch.zeros([batch if size is None else size for size in spec.shape], dtype=spec.dtype, device=device)
            if isinstance(spec, InputSpec)
            else spec
            for spec in self.trace.specs
        ]
        args, kwargs = pytree.tree_unflatten(leaves, self.trace.in_spec)
        return args, kwargs


def last_node(trace: Trace, path: str) -> fx.Node:
    """The last node of a module, which computes what the module returns.

    Args:
        trace: The traced forward.
        path: The path of the module.

    Raises:
        ValueError: The module computes no tensor in the graph.
    """
    node: fx.Node
    for node in reversed(trace.graph.nodes):
        stack = node.meta.get("nn_module_stack") or {}
        if any(entry[0] == path for entry in stack.values()) and isinstance(node.meta.get(DIMS), list):
            return node
    raise ValueError(f"the module {path!r} computes no tensor of its own in the traced network; name another module")


def resized_arguments(program: Program, at: PlanAtWidth) -> dict[fx.Node, tuple[Any, ...]]:
    """The arguments at a width of all nodes that have sizes among them.

    Args:
        program: The forward.
        at: The plan at a width.
    """
    found: dict[fx.Node, tuple[Any, ...]] = {}
    for node, path, dim in program.size_arguments:
        found[node] = replaced(found.get(node, node.args), path, at.size(dim))
    return found


def _is_updated(node: fx.Node) -> bool:
    """Whether an op writes to a placeholder in place, as batch norm does in training."""
    return any(_writes(user, node) for user in node.users) or is_written_statistic(node)


def _writes(user: fx.Node, node: fx.Node) -> bool:
    """Whether an op writes to one of its arguments in place, by its schema."""
    schema = getattr(user.target, "_schema", None)
    return schema is not None and any(
        value is node and argument.alias_info is not None and argument.alias_info.is_write
        for argument, value in zip(schema.arguments, user.args, strict=False)
    )


def _counter_update(node: fx.Node) -> fx.Node | None:
    """The op that updates a placeholder in place, if nothing reads the result, such as the counters of batch norms.

    A level updates copies of the buffers, which are thrown away: there such an op does nothing.
    """
    users = list(node.users)
    return users[0] if len(users) == 1 and not users[0].users and _writes(users[0], node) else None


def _copy_body(
    source: fx.Graph,
    target: fx.Graph,
    mapping: dict[fx.Node, fx.Node],
    resized: Mapping[fx.Node, Mapping[tuple[int, ...], Any]],
    out_spec: pytree.TreeSpec | None,
    left_out: Container[fx.Node] = (),
    watched: Sequence[fx.Node] = (),
) -> None:
    """Copy calls and the output of a graph to another one, with the arguments in ``resized`` replaced.

    Without ``out_spec``, copies of what the watched nodes compute come after the results.
    """
    copies: dict[fx.Node, fx.Node] = {}
    for node in source.nodes:
        if node in left_out:
            continue
        if node.op == "call_function":
            copy = target.node_copy(node, lambda n: mapping[n])
            copy.meta.clear()
            for path, size in resized.get(node, {}).items():
                copy.args = replaced(copy.args, path, size)
            mapping[node] = copy
            if node in watched:  # later operations may change the result in place
                copies[node] = target.call_function(torch.ops.aten.clone.default, (copy,))
        elif node.op == "output":
            results = [mapping[r] if isinstance(r, fx.Node) else r for r in node.args[0]]
            more = [copies[node] for node in watched]
            target.output((*results, *more) if out_spec is None else pytree.tree_unflatten(results, out_spec))


def replaced(args: Any, path: tuple[int, ...], value: Any) -> Any:
    """Nested arguments with another value at one position.

    Args:
        args: The arguments.
        path: The position: indices from the outermost list or tuple inwards.
        value: The new value.
    """
    position, *rest = path
    items = list(args)
    items[position] = replaced(items[position], tuple(rest), value) if rest else value
    return tuple(items) if isinstance(args, tuple) else items


@dataclasses.dataclass(frozen=True)
class FixedSize:
    """A size of an input that must not change, because the graph depends on it.

    Attributes:
        name: Name of the input.
        axis: The dimension.
        shape: The shape with which the input was traced.
    """

    name: str
    axis: int
    shape: tuple[int, ...]

    def check(self, graph: fx.Graph, given: fx.Node) -> None:
        """Add to a graph a check that refuses an input of another size."""
        sizes = ", ".join(["batch", *map(str, self.shape[1:])])
        size = graph.call_function(torch.ops.aten.sym_size.int, (given, self.axis))
        same = graph.call_function(operator.eq, (size, self.shape[self.axis]))
        graph.call_function(
            torch._assert,
            (
                same,
                f"this network was traced for inputs of ({sizes}), and its code depends on dimension {self.axis} of "
                f"{self.name}: for another size, materialize a SubspaceModel whose first call or example_inputs had "
                "that size",
            ),
        )


def build_materialized_model(
    program: Program,
    at: PlanAtWidth,
    tensors: Mapping[str, Tensor],
    trainable: Mapping[str, bool],
    persistent: Container[str],
    for_training: bool,
    fixed: Sequence[FixedSize] = (),
) -> MaterializedModel:
    """Build a network of its own from a traced graph at one width.

    Args:
        program: The traced forward.
        at: The plan at the width.
        tensors: All parameters and buffers that the graph reads, at that width, by qualified name.
        trainable: For each parameter among them, whether it requires gradients.
        persistent: Names of the tensors that belong to the ``state_dict``.
        for_training: Whether the graph was traced in training mode.
        fixed: Sizes of inputs that the network must refuse to change.

    Raises:
        NotImplementedError: The network takes arguments in a class of its own.
    """
    trace = program.trace
    root, graph = nn.Module(), fx.Graph()
    inputs = _add_inputs(graph, trace)
    mapping: dict[fx.Node, fx.Node] = {}
    for node in trace.graph.nodes:
        if node.op != "placeholder":
            continue
        if node.name in inputs:
            mapping[node] = inputs[node.name]
            continue
        name = trace.state.get(node.name, node.name)
        value = tensors[name] if node.name in trace.state else trace.constants[node.name]
        _register(root, name, value, trainable.get(name), persistent=name in persistent)
        mapping[node] = graph.get_attr(name)
    for size in fixed:
        size.check(graph, inputs[size.name])
    resized: dict[fx.Node, dict[tuple[int, ...], int]] = {}
    for node, path, dim in program.size_arguments:
        resized.setdefault(node, {})[path] = at.size(dim)
    _copy_body(trace.graph, graph, mapping, resized, trace.out_spec)
    return MaterializedModel(root, graph, for_training)


def _add_inputs(graph: fx.Graph, trace: Trace) -> dict[str, fx.Node]:
    """Add the arguments of a call to a graph, and take them apart where they are nested.

    Returns:
        The node of each of ``trace.inputs``, by name.
    """
    args, kwargs = trace.arguments()
    names = {
        place: trace.inputs[leaf] if isinstance(leaf, int) else f"argument_{place}" for place, leaf in enumerate(args)
    }
    pending: list[tuple[fx.Node, Any]] = [(graph.placeholder(names[place]), leaf) for place, leaf in enumerate(args)]
    pending += [(graph.placeholder(name), leaf) for name, leaf in kwargs.items()]
    found: dict[str, fx.Node] = {}
    for node, value in pending:  # the loop appends to the list
        if isinstance(value, int):
            found[trace.inputs[value]] = node
            _add_value_check(graph, node, trace.specs[value])
        elif isinstance(value, (dict, list, tuple)):
            items = value.items() if isinstance(value, dict) else enumerate(value)
            pending += [(graph.call_function(operator.getitem, (node, key)), item) for key, item in items]
        else:
            raise NotImplementedError(
                "materialize() supports networks whose arguments are tensors, or lists, tuples and mappings of them, "
                f"but not {type(value).__name__}: give the network such arguments"
            )
    return found


def _add_value_check(graph: fx.Graph, given: fx.Node, spec: Any) -> None:
    """Add a check that refuses another value of an argument that is not a tensor, since the trace depends on it."""
    if not isinstance(spec, InputSpec):
        same = graph.call_function(operator.eq, (given, spec))
        message = f"this network was traced with {given.name}={spec!r}, and works with that value only"
        graph.call_function(torch._assert, (same, message))


def _register(root: nn.Module, name: str, value: Tensor, trainable: bool | None, persistent: bool) -> None:
    *path, leaf = name.split(".")
    for part in path:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = operator.getitem(root._modules, part)  # type: ignore[assignment]
    if trainable is None:
        root.register_buffer(leaf, value, persistent=persistent)
    else:
        root.register_parameter(leaf, nn.Parameter(value, requires_grad=trainable))
