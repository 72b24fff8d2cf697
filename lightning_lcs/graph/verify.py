"""Whether a traced graph at full width is the network: its outputs, and the gradient of every parameter."""

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
from lightning_lcs.graph.tracing.trace import plain_forward

# The same ops on the same numbers: most networks agree bitwise. Of the largest entry of a tensor, and, for gradients
# that are zero but for rounding, of the largest of all.
OF_ITS_OWN, OF_ALL = 1e-3, 1e-5
OTHER_SIZE = 32  # so much larger; most networks take multiples of it


def untraced_hooks(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[list[Hook], list[Hook]]:
    """The forward hooks that a trace does without.

    Args:
        module: the network; nothing is changed, but each hook inside it runs twice.
        args: arguments; few samples do.
        kwargs: keyword arguments.

    Returns:
        Those that change nothing of what the network computes, and those of an adopted network around its forward.
    """
    inside, around = hooks_of(module)
    candidates = [hook for hook in inside if not hook.is_from_torch]
    if not candidates:
        return [], around
    other = pytree.tree_map(_other, (args, kwargs))

    def run(others: bool) -> list[Tensor]:
        given = other if others else (args, kwargs)
        with torch.no_grad():
            return _run(lambda: module(*given[0], **given[1]), [])[0]

    with _state_restored(module), hooks_disabled(around):
        return observing_hooks(candidates, run), around


def _other(leaf: Any) -> Any:
    if not isinstance(leaf, Tensor) or not leaf.ndim:
        return leaf
    return leaf.flip(-1) * 0.5 + 0.25 if leaf.is_floating_point() else leaf.flip(-1)


def check_faithful(
    module: nn.Module, program: Program, sizes: Sequence[int], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> str | None:
    """Run the network and its graph on the same inputs, with the same random numbers; nothing is changed.

    Args:
        module: the network, in the state in which it was traced.
        program: its graph.
        sizes: what the graph takes at full width.
        args: arguments; few samples do.
        kwargs: keyword arguments.

    Returns:
        Path of the first module that ran again in the backward of the network: gradient checkpointing.

    Raises:
        TraceError: they differ: the graph has lost what is no ATen op, such as a custom ``autograd.Function``.
    """
    parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
    leaves = list(parameters.values()) if module.training else []
    with _state_restored(module):
        tensors: dict[str, Tensor] = dict(module.named_parameters(remove_duplicate=False))
        tensors |= {name: buffer.detach().clone() for name, buffer in module.named_buffers(remove_duplicate=False)}
        (theirs, gradients), recomputed = _theirs(module, args, kwargs, leaves)
        with _compared(leaves, gradients) as differs:
            ours, _ = _run(lambda: program.run([tensors[name] for name in program.names], sizes, args, kwargs), leaves)
    for position, (found, expected) in enumerate(zip(ours, theirs, strict=True)):
        if found.shape != expected.shape or _differ(found, expected, 0.0):
            raise TraceError(
                f"the trace of {type(module).__name__} gives another result than the network itself (output {position},"
                f" {_state(module)}): its forward does something that torch.export does not see, such as drawing "
                "numbers outside of torch. " + _ADVICE
            )
    wrong = [name for name, differ in zip(parameters, differs, strict=False) if differ]
    if wrong:
        raise TraceError(
            f"the trace of {type(module).__name__} gives other gradients than the network itself, to {len(wrong)} of "
            f"its {len(parameters)} parameters, the last of them {wrong[-1]}: behind it tracing has lost what is not "
            f"in the forward, such as a custom autograd.Function or a hook on gradients. {_ADVICE}"
        )
    return recomputed


def is_faithful_at(
    module: nn.Module, program: Program, sizes: Sequence[int], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> bool:
    """Whether a graph is the network for arguments of other sizes than those that it was traced with, too.

    Found by running both with them, as in :func:`check_faithful`: code may have computed numbers from a size, which
    the graph holds as constants.

    Args:
        module: the network, in the state in which it was traced.
        program: its graph.
        sizes: what the graph takes at full width.
        args: arguments of the other sizes; few samples do.
        kwargs: keyword arguments.
    """
    state = {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }
    try:
        with plain_forward(module):
            _check_shapes(program, [state[name] for name in program.names], sizes, (args, kwargs))
        check_faithful(module, program, sizes, args, kwargs)
    except Exception:  # whatever is raised at a size that code does not know
        return False
    return True


def fixed_sizes(
    module: nn.Module, program: Program, sizes: Sequence[int], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> list[FixedSize]:
    """Sizes of the inputs for which alone a graph is the network, found by trying others.

    Args:
        module: the network, in the state in which it was traced.
        program: its graph.
        sizes: what the graph takes at full width.
        args: arguments of the traced sizes; few samples do.
        kwargs: keyword arguments.

    Returns:
        All sizes but the batch's with which the network has no result, or another one than its graph.
    """
    leaves = pytree.tree_leaves((args, kwargs))

    def open_at(place: int, axis: int) -> bool:
        shape = list(leaves[place].shape)
        shape[axis] += OTHER_SIZE
        return is_faithful_at(module, program, sizes, *resized((args, kwargs), {place: shape}))

    return [
        FixedSize(name, axis, tuple(leaf.shape))
        for place, (name, leaf) in enumerate(zip(program.trace.inputs, leaves, strict=True))
        for axis in range(1, leaf.ndim if isinstance(leaf, Tensor) else 0)
        if not leaf.shape[axis] or not open_at(place, axis)
    ]


def _check_shapes(program: Program, tensors: Sequence[Tensor], sizes: Sequence[int], arguments: Any) -> None:
    """Run a graph without data first: kernels of recurrent layers read past states of another size without a word."""
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        leaves, spec = pytree.tree_flatten(arguments)
        given = [fake.from_tensor(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        args, kwargs = pytree.tree_unflatten(given, spec)
        program.run([fake.from_tensor(value) for value in tensors], sizes, args, kwargs)


_ADVICE = f"Structured compression would train something else; {ALTERNATIVES}"


def _state(module: nn.Module) -> str:
    return "in training" if module.training else "in evaluation"


Found = tuple[list[Tensor], tuple[Tensor | None, ...]]


def _theirs(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], leaves: list[nn.Parameter]
) -> tuple[Found, str | None]:
    """What the network itself gives, and the first module that ran again in its backward."""
    again: list[str] = []
    ran = False

    def forward() -> Any:
        nonlocal ran
        result = module.forward(*args, **kwargs)
        ran = True
        return result

    def note(path: str) -> Callable[..., None]:
        return lambda *_: again.append(path) if ran else None

    # torch's encoder layers are another kernel without gradients when a module in them has hooks.
    children = [(path, child) for path, child in module.named_modules() if path] if leaves else []
    handles = [child.register_forward_pre_hook(note(path)) for path, child in children]
    try:
        found = _run(forward, leaves)
    except Exception as error:  # whatever a network raises
        if "use_reentrant" not in str(error):
            raise two_samples_error(module, error) from error
        raise TraceError(
            f"{type(module).__name__} uses gradient checkpointing of the older kind (use_reentrant=True), whose "
            "forward runs without gradients, as its trace would: use torch.utils.checkpoint.checkpoint(..., "
            "use_reentrant=False)"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return found, next(iter(again), None)


def _run(forward: Callable[[], Any], leaves: list[nn.Parameter]) -> Found:
    """Outputs, and gradients of a fixed random combination of them."""
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
    """Compare gradients with expected ones as a backward inside the block finds them, and keep none.

    A network's gradients are as large as its parameters: those of both runs are never held together.
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
        # One that is zero may be missing.
        present = expected if found is None else found
        return present is not None and bool(present.abs().max() > OF_ALL * largest)
    if not found.is_floating_point():
        return not torch.equal(found, expected)
    limit = OF_ITS_OWN * expected.abs().max() + OF_ALL * largest
    both = torch.isfinite(expected) & torch.isfinite(found)
    return bool((torch.where(both, found - expected, 0.0).abs() > limit).any())


@contextlib.contextmanager
def _state_restored(module: nn.Module) -> Iterator[None]:
    """Whatever the network does inside the block, its buffers and the random generators are as before."""
    devices = sorted({value.device.index for value in module.parameters() if value.device.type == "cuda"})
    with plain_forward(module), torch.random.fork_rng(devices=devices), _buffers_restored(module):
        yield


@contextlib.contextmanager
def _buffers_restored(module: nn.Module) -> Iterator[None]:
    held = [(buffer, buffer.detach().clone()) for buffer in module.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in held:
                buffer.copy_(value)
