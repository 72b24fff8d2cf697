"""Forward hooks of a network: those that change what it computes are traced, those that only watch are not."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn


@dataclasses.dataclass(frozen=True)
class Hook:
    """One forward hook or forward pre-hook.

    Attributes:
        path: of its module in the network; empty for the network itself.
        holder: where its module keeps it.
        key: in the holder; no two hooks of a process have the same.
        before: whether it runs before its module.
    """

    path: str
    holder: MutableMapping[int, Callable[..., Any]]
    key: int
    before: bool

    @property
    def is_from_torch(self) -> bool:
        """Whether torch registered it: old-style weight norm, spectral norm and pruning compute weights in hooks."""
        hook = self.holder[self.key]
        return str(getattr(hook, "__module__", type(hook).__module__)).partition(".")[0] == "torch"


def hooks_of(module: nn.Module) -> tuple[list[Hook], list[Hook]]:
    """All forward hooks and forward pre-hooks of a network: those inside its forward, and those around it.

    A network that has been adopted runs its own hooks around whatever stands in for its forward.
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
    """Inside the block these hooks do nothing."""
    with _replaced(hooks, [_nothing] * len(hooks)):
        yield


def observing_hooks(hooks: Sequence[Hook], run: Callable[[bool], list[Tensor]]) -> list[Hook]:
    """Those among the hooks without which the network computes the same.

    Args:
        hooks: the candidates; each runs twice.
        run: the network, from the same random numbers each time, on its inputs or (``True``) on others.
    """
    recorders = [_Recorder(hook.holder[hook.key], hook.before) for hook in hooks]
    with _replaced(hooks, recorders):
        expected = run(False)
    quiet = [hook for hook, recorder in zip(hooks, recorders, strict=True) if not recorder.changes]

    def needed(some: Sequence[Hook]) -> bool:
        # What a hook has put aside for the forward to find must not be there still, from the inputs that count.
        run(True)
        with hooks_disabled(some):
            try:
                found = run(False)
            except Exception:  # whatever code raises that misses what its hook has collected
                return True
        return len(found) != len(expected) or not all(map(_same, found, expected))

    if not quiet or not needed(quiet):
        return quiet
    return [hook for hook in quiet if not needed([hook])]


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=0.0, atol=0.0, equal_nan=True)


def _nothing(*_: Any, **__: Any) -> None:
    return None


@contextlib.contextmanager
def _replaced(hooks: Sequence[Hook], functions: Sequence[Callable[..., Any]]) -> Iterator[None]:
    held = [hook.holder[hook.key] for hook in hooks]
    try:
        for hook, function in zip(hooks, functions, strict=True):
            hook.holder[hook.key] = function
        yield
    finally:
        for hook, function in zip(hooks, held, strict=True):
            hook.holder[hook.key] = function


class _Recorder:
    """Calls a hook and notes whether it returns something, or writes into a tensor that it is given.

    One that runs before the forward of its module may also put tensors into the module (weights out of other ones).
    """

    def __init__(self, hook: Callable[..., Any], before: bool) -> None:
        self.hook = hook
        self.changes = False
        self._before = before

    def __call__(self, module: nn.Module, *seen: Any, **keywords: Any) -> Any:
        versions = self._versions(module, seen, keywords)
        result = self.hook(module, *seen, **keywords)
        self.changes |= result is not None or self._versions(module, seen, keywords) != versions
        return result

    def _versions(self, module: nn.Module, seen: Any, keywords: Any) -> list[tuple[int, int]]:
        own = [*module._parameters.values(), *module._buffers.values()]
        own += vars(module).values() if self._before else []
        tensors = [leaf for leaf in (*own, *pytree.tree_leaves((seen, keywords))) if isinstance(leaf, Tensor)]
        return [(id(tensor), tensor._version) for tensor in tensors]
