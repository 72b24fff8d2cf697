"""Forward hooks of a network: those that change what it computes are traced, and those that only observe are not."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from lightning_lcs.graph.tracing.kept import Before, Kept, holders_of_hook


@dataclasses.dataclass(frozen=True)
class Hook:
    """One forward hook or forward pre-hook.

    Attributes:
        path: Path of its module in the network; empty for the network itself.
        holder: The dictionary in which its module keeps it.
        key: Its key in ``holder``, which is unique in a process.
        before: Whether it runs before its module.
    """

    path: str
    holder: MutableMapping[int, Callable[..., Any]]
    key: int
    before: bool

    @property
    def is_from_torch(self) -> bool:
        """Whether torch registered it, as old-style weight norm, spectral norm and pruning do to compute weights."""
        hook = self.holder[self.key]
        return str(getattr(hook, "__module__", type(hook).__module__)).partition(".")[0] == "torch"


def hooks_of(module: nn.Module) -> tuple[list[Hook], list[Hook]]:
    """All forward hooks and forward pre-hooks of a network.

    Args:
        module: The network.

    Returns:
        The hooks inside its forward, and those around it. A network whose forward has been replaced runs its own hooks
        around the replacement.
    """
    found = [
        Hook(path, holder, key, holder is child._forward_pre_hooks)
        for path, child in module.named_modules()
        for holder in (child._forward_pre_hooks, child._forward_hooks)
        for key in holder
    ]
    around = [hook for hook in found if not hook.path and "forward" in module.__dict__]
    return [hook for hook in found if hook not in around], around


@contextlib.contextmanager
def hooks_disabled(hooks: Sequence[Hook]) -> Iterator[None]:
    """Inside the block, the hooks do nothing."""
    with _replaced(hooks, [_nothing] * len(hooks)):
        yield


def observing_hooks(hooks: Sequence[Hook], run: Callable[[bool], list[Tensor]]) -> tuple[list[Hook], list[Kept]]:
    """The hooks without which the network computes the same, and where they keep tensors.

    Args:
        hooks: The candidates; each runs twice.
        run: A function that runs the network, with the same random numbers each time, on its inputs (``False``) or on
            other inputs (``True``).
    """
    recorders = [_Recorder(hook) for hook in hooks]
    with _replaced(hooks, recorders):
        expected = run(False)
    candidates = [hook for hook, recorder in zip(hooks, recorders, strict=True) if not recorder.changes]

    def needed(some: Sequence[Hook]) -> bool:
        # A hook may store something that the forward reads. Running on other inputs overwrites what it stored for
        # these, so that the forward without the hook can't read that.
        run(True)
        with hooks_disabled(some):
            try:
                found = run(False)
            except Exception:  # the forward may raise anything if it misses what its hook stores
                return True
        return len(found) != len(expected) or not all(map(_same, found, expected))

    if candidates and needed(candidates):
        candidates = [hook for hook in candidates if not needed([hook])]
    watching = [recorder for hook, recorder in zip(hooks, recorders, strict=True) if hook in candidates]
    return candidates, [kept for recorder in watching for kept in recorder.kept]


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=0.0, atol=0.0, equal_nan=True)


def _nothing(*_: Any, **__: Any) -> None:
    return None


@contextlib.contextmanager
def _replaced(hooks: Sequence[Hook], functions: Sequence[Callable[..., Any]]) -> Iterator[None]:
    originals = [hook.holder[hook.key] for hook in hooks]
    try:
        for hook, function in zip(hooks, functions, strict=True):
            hook.holder[hook.key] = function
        yield
    finally:
        for hook, function in zip(hooks, originals, strict=True):
            hook.holder[hook.key] = function


class _Recorder:
    """Calls a hook and notes whether it returns something, or writes into a tensor that it gets, and what it keeps.

    A hook that runs before its module may also store tensors in the module, such as weights computed from others.
    """

    def __init__(self, hook: Hook) -> None:
        self.hook = hook.holder[hook.key]
        self.changes = False
        self.kept: list[Kept] = []
        self._before = hook.before
        self._what = f"what the forward hook of {hook.path or 'the network itself'} stores"

    def __call__(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        versions = self._versions(module, args, kwargs)
        before = Before(holders_of_hook(self.hook, module, self._what))
        result = self.hook(module, *args, **kwargs)
        self.changes |= result is not None or self._versions(module, args, kwargs) != versions
        self.kept += before.kept()
        return result

    def _versions(self, module: nn.Module, args: Any, kwargs: Any) -> list[tuple[int, int]]:
        own = [*module._parameters.values(), *module._buffers.values()]
        own += vars(module).values() if self._before else []
        tensors = [leaf for leaf in (*own, *pytree.tree_leaves((args, kwargs))) if isinstance(leaf, Tensor)]
        return [(id(tensor), tensor._version) for tensor in tensors]
