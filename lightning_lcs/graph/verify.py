"""Checks that a traced graph at full width computes the network's outputs, and the gradient of every parameter."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from lightning_lcs.graph.program import FixedSize, Program
from lightning_lcs.graph.tracing.errors import ALTERNATIVES, TraceError, two_samples_error
from lightning_lcs.graph.tracing.example_inputs import resized
from lightning_lcs.graph.tracing.hooks import Hook, hooks_disabled, hooks_of, observing_hooks
from lightning_lcs.graph.tracing.kept import Before, Kept, holders_of_network
from lightning_lcs.graph.tracing.trace import plain_forward

# Tolerances relative to the largest entry of the tensor itself, and to that of all gradients; the latter is for
# gradients that are zero up to rounding. Most networks agree bitwise, since the ops and the numbers are the same.
RTOL_OWN, RTOL_ALL = 1e-3, 1e-5
# Other sizes are tried by adding this number, of which most networks take multiples.
ADDED_SIZE = 32


def untraced_hooks(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[list[Hook], list[Kept], list[Hook]]:
    """The forward hooks that a trace leaves out.

    Args:
        module: The network, which is not changed; each hook inside it runs twice.
        args: Its arguments; a few samples are enough.
        kwargs: Its keyword arguments.

    Returns:
        The hooks that do not change what the network computes, what they keep, and the hooks around a forward that was
        replaced.
    """
    inside, around = hooks_of(module)
    candidates = [hook for hook in inside if not hook.is_from_torch]
    if not candidates:
        return [], [], around
    other = pytree.tree_map(_other_values, (args, kwargs))

    def run(others: bool) -> list[Tensor]:
        given = other if others else (args, kwargs)
        with torch.no_grad():
            return _run(lambda: module(*given[0], **given[1]), [])[0]

    with _state_restored(module), hooks_disabled(around):
        return *observing_hooks(candidates, run), around


def _other_values(leaf: Any) -> Any:
    if not isinstance(leaf, Tensor) or not leaf.ndim:
        return leaf
    return leaf.flip(-1) * 0.5 + 0.25 if leaf.is_floating_point() else leaf.flip(-1)


def check_faithful(
    module: nn.Module, program: Program, sizes: Sequence[int], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[str | None, list[Kept]]:
    """Compare the network with its graph on the same inputs, with the same random numbers.

    Args:
        module: The network, in the state in which it was traced.
        program: Its graph.
        sizes: The sizes that the graph takes at full width.
        args: Arguments; a few samples are enough.
        kwargs: Keyword arguments.

    Returns:
        The path of the first module that ran again in the network's backward, because of gradient checkpointing, or
        ``None``; and what the network keeps besides its result.

    Raises:
        TraceError: They differ. A graph holds ATen ops only, so it misses a custom ``autograd.Function``, for example.
    """
    parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
    leaves = list(parameters.values()) if module.training else []
    with _state_restored(module):
        tensors: dict[str, Tensor] = dict(module.named_parameters(remove_duplicate=False))
        tensors |= {name: buffer.detach().clone() for name, buffer in module.named_buffers(remove_duplicate=False)}
        (results, gradients), recomputed, kept = _run_network(module, args, kwargs, leaves)
        with _compared(leaves, gradients) as differs:
            traced, _ = _run(
                lambda: program.run([tensors[name] for name in program.names], sizes, args, kwargs), leaves
            )
    for position, (found, expected) in enumerate(zip(traced, results, strict=True)):
        if found.shape != expected.shape or _differ(found, expected, 0.0):
            raise TraceError(
                f"the trace of {type(module).__name__} gives another result than the network itself (output {position} "
                f"in {_mode_name(module)}). The forward does something that torch.export does not record, such as "
                f"drawing random numbers outside of torch. {_ADVICE}"
            )
    wrong = [name for name, differ in zip(parameters, differs, strict=False) if differ]
    if wrong:
        raise TraceError(
            f"the trace of {type(module).__name__} gives other gradients than the network itself for {len(wrong)} of "
            f"its {len(parameters)} parameters, the last of which is {wrong[-1]}. After that parameter, the trace "
            "misses something that is not part of the forward, such as a custom autograd.Function, a hook on "
            f"gradients, or gradient checkpointing of the older kind (use_reentrant=True). {_ADVICE}"
        )
    return recomputed, kept


def is_faithful_at(
    module: nn.Module, program: Program, sizes: Sequence[int], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> bool:
    """Whether a graph computes the same as the network for arguments of other sizes than the traced ones.

    Both run with these arguments, as in :func:`check_faithful`. They may differ because the network's code computes
    numbers from sizes, which are constants in the graph.

    Args:
        module: The network, in the state in which it was traced.
        program: Its graph.
        sizes: The sizes that the graph takes at full width.
        args: Arguments of the other sizes; a few samples are enough.
        kwargs: Keyword arguments.
    """
    state = {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }
    try:
        with plain_forward(module):
            _check_shapes(program, [state[name] for name in program.names], sizes, (args, kwargs))
        check_faithful(module, program, sizes, args, kwargs)
    except Exception:  # code may raise anything for a size that it does not support
        return False
    return True


def fixed_sizes(
    module: nn.Module, program: Program, sizes: Sequence[int], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> list[FixedSize]:
    """The sizes of inputs that must not change for a graph, found by trying other sizes.

    Args:
        module: The network, in the state in which it was traced.
        program: Its graph.
        sizes: The sizes that the graph takes at full width.
        args: Arguments of the traced sizes; a few samples are enough.
        kwargs: Keyword arguments.

    Returns:
        All sizes, except for the batch size, for which another size makes the network fail or differ from its graph.
    """
    leaves = pytree.tree_leaves((args, kwargs))

    def is_open(place: int, axis: int) -> bool:
        shape = list(leaves[place].shape)
        shape[axis] += ADDED_SIZE
        return is_faithful_at(module, program, sizes, *resized((args, kwargs), {place: shape}))

    return [
        FixedSize(name, axis, tuple(leaf.shape))
        for place, (name, leaf) in enumerate(zip(program.trace.inputs, leaves, strict=True))
        for axis in range(1, leaf.ndim if isinstance(leaf, Tensor) else 0)
        if not leaf.shape[axis] or not is_open(place, axis)
    ]


def _check_shapes(program: Program, tensors: Sequence[Tensor], sizes: Sequence[int], arguments: Any) -> None:
    """Run a graph without data first, because recurrent kernels read beyond states of another size without an error."""
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        leaves, spec = pytree.tree_flatten(arguments)
        given = [fake.from_tensor(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        args, kwargs = pytree.tree_unflatten(given, spec)
        program.run([fake.from_tensor(value) for value in tensors], sizes, args, kwargs)


_ADVICE = f"Structured compression would train another network than yours; {ALTERNATIVES}"


def _mode_name(module: nn.Module) -> str:
    return "training" if module.training else "evaluation"


# Results of a network, and gradients of its parameters.
_Outcome = tuple[list[Tensor], tuple[Tensor | None, ...]]


def _run_network(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], leaves: list[nn.Parameter]
) -> tuple[_Outcome, str | None, list[Kept]]:
    """The outcome of the network itself, the first module that ran again in its backward, and what it keeps."""
    recomputed: list[str] = []
    forward_done = False

    def forward() -> Any:
        nonlocal forward_done
        result = module.forward(*args, **kwargs)
        forward_done = True
        return result

    def note(path: str) -> Callable[..., None]:
        return lambda *_: recomputed.append(path) if forward_done else None

    handles: list[Any] = []
    try:
        with _buffers_restored(module):
            _run(forward, [])
        # What is computed once and then used again, such as a table of positions, is there by now.
        before, forward_done = Before(holders_of_network(module)), False
        # Without gradients no hooks are needed, and torch's encoder layers would use another kernel because of them.
        children = [(path, child) for path, child in module.named_modules() if path] if leaves else []
        handles += [child.register_forward_pre_hook(note(path)) for path, child in children]
        outcome = _run(forward, leaves)
        kept = before.kept()
    except Exception as error:  # a network may raise anything
        if "use_reentrant" not in str(error):
            raise two_samples_error(module, error) from error
        raise TraceError(
            f"{type(module).__name__} uses the older kind of gradient checkpointing (use_reentrant=True), whose "
            "forward runs without gradients, so its trace would have none: use torch.utils.checkpoint.checkpoint(..., "
            "use_reentrant=False)"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return outcome, next(iter(recomputed), None), kept


def _run(forward: Callable[[], Any], leaves: list[nn.Parameter]) -> _Outcome:
    """The outputs, and the gradients of a fixed random combination of them."""
    torch.manual_seed(0)
    outputs = [leaf for leaf in pytree.tree_leaves(forward()) if isinstance(leaf, Tensor)]
    results = [output.detach() for output in outputs]
    trained = [output for output in outputs if output.requires_grad]
    if not leaves or not trained:
        return results, (None,) * len(leaves)
    generator = torch.Generator().manual_seed(0)
    loss = torch.stack(
        [(out * torch.randn(out.shape, generator=generator).to(out.device)).sum() for out in map(_real, trained)]
    ).sum()
    return results, torch.autograd.grad(loss, leaves, allow_unused=True)


@contextlib.contextmanager
def _compared(leaves: list[nn.Parameter], expected: Sequence[Tensor | None]) -> Iterator[list[bool]]:
    """Compare each gradient with the expected one when a backward inside the block computes it, and keep none.

    The gradients take as much memory as the parameters, so those of both runs are never in memory together.
    """
    largest = max((float(g.abs().max()) for g in expected if g is not None and g.numel()), default=0.0)
    differs = [_differ(None, gradient, largest) for gradient in expected]

    def comparing(index: int) -> Callable[[Tensor], Tensor]:
        def compare(found: Tensor) -> Tensor:
            differs[index] = _differ(found, expected[index], largest)
            return found.new_zeros(()).expand_as(found)

        return compare

    handles = [leaf.register_hook(comparing(index)) for index, leaf in enumerate(leaves)]  # type: ignore[no-untyped-call]
    try:
        yield differs
    finally:
        for handle in handles:
            handle.remove()


def _real(output: Tensor) -> Tensor:
    return (torch.view_as_real(output) if output.is_complex() else output).float()


def _differ(found: Tensor | None, expected: Tensor | None, largest: float) -> bool:
    if found is None or expected is None:
        # A gradient that is zero may be missing.
        present = expected if found is None else found
        return present is not None and bool((present.abs() > RTOL_ALL * largest).any())
    if not expected.numel():
        return False
    if not found.is_floating_point():
        return not torch.equal(found, expected)
    limit = RTOL_OWN * expected.abs().max() + RTOL_ALL * largest
    both = torch.isfinite(expected) & torch.isfinite(found)
    return bool((torch.where(both, found - expected, 0.0).abs() > limit).any())


@contextlib.contextmanager
def _state_restored(module: nn.Module) -> Iterator[None]:
    """After the block, the network's buffers and the random generators are as before."""
    devices = sorted({value.device.index for value in module.parameters() if value.device.type == "cuda"})
    with plain_forward(module), torch.random.fork_rng(devices=devices), _buffers_restored(module):
        yield


@contextlib.contextmanager
def _buffers_restored(module: nn.Module) -> Iterator[None]:
    saved = [(buffer, buffer.detach().clone()) for buffer in module.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in saved:
                buffer.copy_(value)
