"""Traces a network as a graph of ATen ops, in one training state and for one shape of input with an open batch size."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
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
    ALTERNATIVES,
    BatchSizeFixedError,
    BatchSizeProbe,
    TraceError,
    check_sizes,
    check_values,
    export_error,
    located,
    place_of,
)
from lightning_lcs.graph.tracing.inline import inline_regions
from lightning_lcs.graph.tracing.normalise import normalise

# The batch size must not be 1, which torch.export would fix, nor a likely number of channels.
TRACE_BATCH = 11

# Loggers that are silenced, because the error repeats what they report.
_SILENCED_LOGGERS = ("torch.export", "torch.fx.experimental.symbolic_shapes", "torch._subclasses.fake_tensor")


@dataclasses.dataclass(frozen=True)
class InputSpec:
    """A tensor argument of a traced forward.

    Attributes:
        shape: Its sizes, with ``None`` for the open batch size.
        dtype: Its dtype.
    """

    shape: tuple[int | None, ...]
    dtype: torch.dtype


@dataclasses.dataclass(frozen=True)
class Trace:
    """A traced forward.

    Attributes:
        graph: The graph: placeholders for parameters, buffers, constants and the user's inputs, in this order; then
            calls of ATen ops; then one output.
        state: Qualified names of parameters and buffers, by the name of their placeholder.
        constants: Tensors that the code creates, by the name of their placeholder.
        inputs: Names of the placeholders of the user's inputs, in flattened order.
        in_spec: Structure of ``(args, kwargs)``.
        out_spec: Structure of the result.
        specs: For each of ``inputs`` its :class:`InputSpec`, or its value if it is not a tensor.
    """

    graph: fx.Graph
    state: dict[str, str]
    constants: dict[str, Tensor]
    inputs: tuple[str, ...]
    in_spec: pytree.TreeSpec
    out_spec: pytree.TreeSpec
    specs: tuple[Any, ...]

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """``(args, kwargs)`` of the traced call, in which each value is replaced by its position in ``inputs``."""
        args, kwargs = pytree.tree_unflatten(list(range(self.in_spec.num_leaves)), self.in_spec)
        return args, kwargs


@contextlib.contextmanager
def plain_forward(module: nn.Module) -> Iterator[None]:
    """Inside the block, a network runs its class's own forward in full precision; afterwards it is as before.

    Autocast would end up in the trace as casts. Tensors made in inference mode can't be traced. Random numbers that are
    drawn while tracing must not advance the user's generator.
    """
    patched = module.__dict__.pop("forward", None)
    # After module.compile(), torch 2.9 would export the compiled call.
    compiled = {child: child._compiled_call_impl for child in module.modules() if child._compiled_call_impl is not None}
    for child in compiled:
        child._compiled_call_impl = None
    cumulative = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.momentum is None]
    loggers = [logging.getLogger(name) for name in _SILENCED_LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        for norm in cumulative:
            # Without a momentum, the norm reads a counter, which can't be traced. The momentum has no effect below
            # alpha = 1, where statistics are not written.
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


def _with_trace_batch(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any], list[Tensor]]:
    """The arguments of a call with `TRACE_BATCH` samples, and the tensors among them that have the batch dimension."""
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
    batched: list[Tensor] = []

    def repeat(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        if leaf.ndim == 0 or leaf.shape[0] != batch:
            return leaf.detach().clone()
        batched.append(leaf.detach()[rows.to(leaf.device)].clone())
        return batched[-1]

    repeated_args, repeated_kwargs = pytree.tree_unflatten([repeat(leaf) for leaf in leaves], spec)
    return repeated_args, repeated_kwargs, batched


def trace(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Trace:
    """Trace ``module(*args, **kwargs)`` in the present training state of the module and its children.

    The batch dimension stays open: this is dimension 0 of the first tensor, and of every tensor of the same length. All
    other sizes are those of the call, so another resolution needs another trace.

    Args:
        module: The network.
        args: Its arguments, with any number of samples.
        kwargs: Its keyword arguments.

    Raises:
        TraceError: ``torch.export`` fails, or the network's code fixes the batch size.
    """
    check_values(module)
    with plain_forward(module):
        args, kwargs, batched = _with_trace_batch(args, kwargs)
        try:
            program = _export(module, args, kwargs, batched)
        except Exception as error:
            raise export_error(module, error) from error
        if _count_open_batches(program) < len(batched):
            raise _fixed_batch_error(module, args, kwargs, batched)
    return _trace_of(module, program)


def _trace_of(module: nn.Module, program: ExportedProgram) -> Trace:
    state, constants, inputs = {}, {}, []
    for spec in program.graph_signature.input_specs:
        name = spec.arg.name
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
            state[name] = str(spec.target)
        elif spec.kind is InputKind.CONSTANT_TENSOR:
            constants[name] = program.constants[str(spec.target)]
        elif spec.kind is InputKind.USER_INPUT:
            inputs.append(name)
        else:
            raise TraceError(
                f"{type(module).__name__} has an input of a kind that is not supported ({spec.kind}): {ALTERNATIVES}"
            )
    graph = program.graph
    inline_regions(graph, program.graph_module)
    check_sizes(module, graph)
    normalise(graph)
    values = {node.name: node.meta.get("val") for node in graph.nodes if node.op == "placeholder"}
    specs = tuple([_input_spec(values[name]) for name in inputs])
    return Trace(graph, state, constants, tuple(inputs), program.call_spec.in_spec, program.call_spec.out_spec, specs)


def _input_spec(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return InputSpec(tuple([size if isinstance(size, int) else None for size in value.shape]), value.dtype)


def _export(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], batched: list[Tensor]) -> ExportedProgram:
    _drop_cached_tensors(module)
    shapes = ShapesCollection()  # type: ignore[no-untyped-call]
    for tensor in batched:
        shapes[tensor] = {0: Dim.AUTO}
    # When torch.export fails, it prints the graph so far, which may have pages.
    with contextlib.redirect_stderr(io.StringIO()) as printed, warnings.catch_warnings(), _export_hooks_removed():
        # The warning is about weights that recurrent and weight-normed layers keep beside their parameters. The trace
        # reads the parameters.
        warnings.filterwarnings("ignore", "The tensor attributes? ")
        program = torch.export.export(module, args, kwargs, strict=False, dynamic_shapes=shapes)
    if printed.getvalue():  # the export succeeded, so the network's own code has printed it
        sys.stderr.write(printed.getvalue())
    return program


def _drop_cached_tensors(module: nn.Module) -> None:
    """Drop tensors that a network such as LeViT has computed from its parameters in an earlier call.

    In evaluation it keeps them until ``train()`` is called, and a trace would take them for constants.
    """
    overriding = [child for child in module.modules() if type(child).train is not nn.Module.train]
    flags = {child: child.training for child in module.modules()} if overriding else {}
    for child in overriding:
        child.train(child.training)
    for child, training in flags.items():
        child.training = training


@contextlib.contextmanager
def _export_hooks_removed() -> Iterator[None]:
    """Remove the hook on all modules that torch 2.9 leaves behind when an export fails."""
    hooks = nn.modules.module._global_buffer_registration_hooks
    before = set(hooks)
    try:
        yield
    finally:
        for key in set(hooks) - before:
            del hooks[key]


def _count_open_batches(program: ExportedProgram) -> int:
    """Number of inputs whose batch dimension is still open."""
    inputs = set(program.graph_signature.user_inputs)
    values = [node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder" and node.name in inputs]
    return sum(isinstance(value, Tensor) and value.ndim > 0 and _is_open(value.shape[0]) for value in values)


def _fixed_batch_error(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], batched: list[Tensor]
) -> TraceError:
    place = None
    try:
        _export(BatchSizeProbe(module), args, kwargs, batched)
    except BatchSizeFixedError as error:
        place = place_of(error)
    return TraceError(
        f"{type(module).__name__} fixes the batch size in its forward{located(place)}, so its trace would work for "
        "that size only: use the shape of the input instead of a stored batch size, use operations on the whole batch "
        f"instead of a loop over samples, {ALTERNATIVES}"
    )


def _is_open(size: Any) -> bool:
    # A size that the code has fixed is still a SymInt, but one that stands for a single number.
    return isinstance(size, torch.SymInt) and size.node.maybe_as_int() is None
