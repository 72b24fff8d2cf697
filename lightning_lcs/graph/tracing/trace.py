"""A network as a graph of ATen ops, in one training state and for one shape of input (batch size left open)."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
import operator
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram, ShapesCollection
from torch.export.graph_signature import InputKind

from lightning_lcs.graph.tracing.errors import (
    INSTEAD,
    FixedError,
    TraceError,
    UntilFixed,
    at,
    check_sizes,
    check_values,
    place_of,
    untraceable,
)
from lightning_lcs.graph.tracing.inline import inline_regions

# Any batch size serves, but not 1 (export bakes it in), nor one that a channel count is likely to share.
TRACE_BATCH = 11

# What they warn of, the error says.
_TALKATIVE = ("torch.export", "torch.fx.experimental.symbolic_shapes", "torch._subclasses.fake_tensor")

_NOTES = ("_assert_tensor_metadata", "_assert_scalar", "sym_constrain_range_for_size", "sym_constrain_range")


@dataclasses.dataclass(frozen=True)
class InputSpec:
    """A tensor that a traced forward takes.

    Attributes:
        shape: sizes; ``None`` for the batch, which is open.
        dtype: its type.
    """

    shape: tuple[int | None, ...]
    dtype: torch.dtype


@dataclasses.dataclass(frozen=True)
class Trace:
    """A traced forward.

    Attributes:
        graph: placeholders (parameters, buffers, constants, then the user's inputs), ATen calls, one output.
        state: placeholder name -> qualified name of the parameter or buffer that it stands for.
        constants: placeholder name -> tensor lifted out of the code.
        inputs: placeholder names of the user's tensors, in flattened order.
        in_spec: structure of ``(args, kwargs)``.
        out_spec: structure of what the forward returns.
        specs: for each of ``inputs`` its :class:`InputSpec`; of one that is no tensor, the value it was traced with.
    """

    graph: fx.Graph
    state: dict[str, str]
    constants: dict[str, Tensor]
    inputs: tuple[str, ...]
    in_spec: pytree.TreeSpec
    out_spec: pytree.TreeSpec
    specs: tuple[Any, ...]

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """``(args, kwargs)`` of the traced call, with the numbers of ``inputs`` in the places of their values."""
        args, kwargs = pytree.tree_unflatten(list(range(self.in_spec.num_leaves)), self.in_spec)
        return args, kwargs


@contextlib.contextmanager
def neutral(module: nn.Module) -> Iterator[None]:
    """Run the class's own forward, in full precision, and leave no trace of having done so.

    Autocast would be baked in as casts; tensors made in inference mode can't be traced; random numbers drawn while
    tracing must not move the user's generator.
    """
    patched = module.__dict__.pop("forward", None)
    # torch 2.9 exports what `module.compile()` has put in the place of a call.
    compiled = {child: child._compiled_call_impl for child in module.modules() if child._compiled_call_impl is not None}
    for child in compiled:
        child._compiled_call_impl = None
    cumulative = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.momentum is None]
    loggers = [logging.getLogger(name) for name in _TALKATIVE]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        for norm in cumulative:
            # It reads a counter, which can't be traced. Below alpha = 1 the momentum has no effect: nothing is written.
            norm.momentum = 0.1
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            stack.enter_context(torch.random.fork_rng(devices=[]))
            for device in ("cpu", "cuda"):
                if torch.is_autocast_enabled(device):
                    stack.enter_context(torch.autocast(device, enabled=False))
            yield
    finally:
        for child, call in compiled.items():
            child._compiled_call_impl = call
        for norm in cumulative:
            norm.momentum = None
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if patched is not None:
            module.__dict__["forward"] = patched


def _samples(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any], list[Tensor]]:
    """The call's arguments with `TRACE_BATCH` samples, and the tensors among them that carry the batch."""
    leaves, spec = pytree.tree_flatten((args, kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.ndim > 0]
    if not tensors:
        given = ", ".join(sorted({type(leaf).__name__ for leaf in leaves})) or "no arguments"
        raise TraceError(
            f"the network was called without a tensor ({given}): there is no batch dimension to keep open; turn the "
            "batch into tensors before the network (text, for example, with a tokenizer), or name the part that takes "
            "tensors with target="
        )
    batch = tensors[0].shape[0]
    rows = torch.arange(TRACE_BATCH, device=tensors[0].device) % batch
    carried: list[Tensor] = []

    def repeat(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        if leaf.ndim == 0 or leaf.shape[0] != batch:
            return leaf.detach().clone()
        carried.append(leaf.detach()[rows.to(leaf.device)].clone())
        return carried[-1]

    repeated_args, repeated_kwargs = pytree.tree_unflatten([repeat(leaf) for leaf in leaves], spec)
    return repeated_args, repeated_kwargs, carried


def trace(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Trace:
    """Trace ``module(*args, **kwargs)`` in the training state that the module and its children are in.

    The batch dimension (dimension 0 of the first tensor, and of every tensor of the same length) stays open; all other
    sizes are those of the call: another resolution is another trace.

    Raises:
        TraceError: ``torch.export`` fails, or bakes the batch size in.
    """
    check_values(module)
    with neutral(module):
        args, kwargs, carried = _samples(args, kwargs)
        try:
            program = _export(module, args, kwargs, carried)
        except Exception as error:
            raise untraceable(module, error) from error
        if _open_batches(program) < len(carried):
            raise _fixed_batch(module, args, kwargs, carried)
    signature = program.graph_signature
    state, constants, inputs = {}, {}, []
    for spec in signature.input_specs:
        name = spec.arg.name
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
            state[name] = str(spec.target)
        elif spec.kind is InputKind.CONSTANT_TENSOR:
            constants[name] = program.constants[str(spec.target)]
        elif spec.kind is InputKind.USER_INPUT:
            inputs.append(name)
        else:
            raise TraceError(f"{type(module).__name__} holds an input of an unsupported kind: {spec.kind}")
    graph = program.graph
    inline_regions(graph, program.graph_module)
    check_sizes(module, graph)
    _normalise(graph)
    values = {node.name: node.meta.get("val") for node in graph.nodes if node.op == "placeholder"}
    specs = tuple([_spec(values[name]) for name in inputs])
    return Trace(graph, state, constants, tuple(inputs), program.call_spec.in_spec, program.call_spec.out_spec, specs)


def _spec(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return InputSpec(tuple([size if isinstance(size, int) else None for size in value.shape]), value.dtype)


def _export(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], carried: list[Tensor]) -> ExportedProgram:
    _forget_tables(module)
    shapes = ShapesCollection()  # type: ignore[no-untyped-call]
    for tensor in carried:
        shapes[tensor] = {0: Dim.AUTO}
    # When it fails, torch.export prints the graph so far, which may be pages.
    with contextlib.redirect_stderr(io.StringIO()) as printed, warnings.catch_warnings(), _no_hooks_left():
        # Of weights that recurrent and weight-normed layers keep beside their parameters, which the trace reads.
        warnings.filterwarnings("ignore", "The tensor attributes? ")
        program = torch.export.export(module, args, kwargs, strict=False, dynamic_shapes=shapes)
    if printed.getvalue():  # by the network's own code
        sys.stderr.write(printed.getvalue())
    return program


def _forget_tables(module: nn.Module) -> None:
    """Let go of tensors that a network of LeViT's kind has computed from its parameters in an earlier call.

    It keeps them in evaluation until ``train()`` is called; a trace would take them for constants.
    """
    own = [child for child in module.modules() if type(child).train is not nn.Module.train]
    flags = {child: child.training for child in module.modules()} if own else {}
    for child in own:
        child.train(child.training)
    for child, training in flags.items():
        child.training = training


@contextlib.contextmanager
def _no_hooks_left() -> Iterator[None]:
    """torch 2.9 leaves a hook on all modules behind when an export fails."""
    hooks = nn.modules.module._global_buffer_registration_hooks
    before = set(hooks)
    try:
        yield
    finally:
        for key in set(hooks) - before:
            del hooks[key]


def _open_batches(program: ExportedProgram) -> int:
    """Number of inputs whose batch dimension has stayed open."""
    inputs = set(program.graph_signature.user_inputs)
    values = [node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder" and node.name in inputs]
    return sum(isinstance(value, Tensor) and value.ndim > 0 and _is_open(value.shape[0]) for value in values)


def _fixed_batch(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], carried: list[Tensor]) -> TraceError:
    place = None
    try:
        _export(UntilFixed(module), args, kwargs, carried)
    except FixedError as error:
        place = place_of(error)
    return TraceError(
        f"{type(module).__name__} fixes the batch size in its forward{at(place)}, so that its trace would serve that "
        "size only; use the shape of the input instead of a stored batch size, and operations on the whole batch "
        f"instead of a loop over samples, or {INSTEAD}"
    )


def _is_open(size: Any) -> bool:
    # A size that the code has fixed still is a SymInt, but one that stands for a single number.
    return isinstance(size, torch.SymInt) and size.node.maybe_as_int() is None


def _normalise(graph: fx.Graph) -> None:
    """Drop checks of what was traced; write every cut of a dimension with the sizes of its parts spelled out."""
    split_with_sizes = torch.ops.aten.split_with_sizes.default
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        name = getattr(node.target, "__name__", "")
        if not node.users and any(note in name for note in _NOTES):
            graph.erase_node(node)
        elif name in _CUTS:
            dim = node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", 0)
            sizes = [part.shape[dim] for part in node.meta["val"]]
            if all(isinstance(size, int) for size in sizes):
                node.target, node.args, node.kwargs = split_with_sizes, (node.args[0], sizes, dim), {}
        elif name in ("squeeze.default", "squeeze.dim", "squeeze.dims"):
            # A channel dimension that a level cuts to size 1 must stay: squeeze only what had size 1 in the network.
            node.args, node.kwargs = (node.args[0], _squeezed(node)), {}
            node.target = torch.ops.aten.squeeze.dims
    graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output") or not _is_pure(node))
    for node in reversed(list(graph.nodes)):
        if node.op == "placeholder" and not node.users and node.name.startswith(("p_", "b_", "c_")):
            graph.erase_node(node)


def _squeezed(node: fx.Node) -> list[int]:
    shape = node.args[0].meta["val"].shape  # type: ignore[union-attr]
    asked = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", list(range(len(shape))))
    axes = [asked] if isinstance(asked, int) else list(asked)  # type: ignore[arg-type]
    return [axis for axis in axes if isinstance(shape[axis], int) and shape[axis] == 1]


def _is_pure(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return not schema.is_mutable if schema is not None else node.target in _PURE


# Ways of cutting a dimension into parts, which take the tensor, how to cut, and the dimension.
_CUTS = ("chunk.default", "split.Tensor", "tensor_split.indices", "tensor_split.sections")
# Python functions of sizes; others, such as those that enter autocast, are kept whether their result is used or not.
_PURE = (operator.getitem, operator.add, operator.sub, operator.mul, operator.floordiv, torch.sym_max, torch.sym_min)
