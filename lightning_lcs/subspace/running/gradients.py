"""Gradients of several levels, summed at the size of the largest level until those of the full network arrive."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_lcs.graph.channels.plan import Indices, Selection, add_selected, select


class GradientSum:
    """The sum of gradients of parts of parameters, kept outside ``.grad``.

    Levels are nested: the gradient of a smaller level is a corner of the gradient of a larger one. The sum is kept at
    the size of the largest level so far, which moves much less memory than adding every level to full-sized gradients.
    Gradients of vectors, such as the scales of norms, are added together at the end of a level, in a single operation.
    """

    def __init__(self) -> None:
        self._held: dict[Tensor, tuple[Tensor, Selection]] = {}
        self._waiting: dict[Tensor, tuple[Tensor, Tensor]] = {}  # by parameter; the second is to be added to the first

    def add(self, parameter: nn.Parameter, selection: Selection, gradient: Tensor, share: float = 1.0) -> None:
        """Add ``share * gradient``, where ``gradient`` belongs to the entries ``parameter[selection]``.

        The tensor may be kept and changed, so that the caller must not use it again, except to add it to another
        parameter with another share.
        """
        if share != 1.0:
            gradient = gradient * share
        if parameter in self._waiting:
            self._add_waiting()
        held = self._held.get(parameter)
        if held is None:
            self._held[parameter] = (gradient, selection)
        elif held[1] == selection:
            self._add(parameter, held[0], (), gradient)
        elif _is_corner(held[0], gradient, selection):
            self._add(parameter, gradient, held[1], held[0])
            self._held[parameter] = (gradient, selection)
        else:
            if not _is_corner(gradient, *held):
                held = self._held[parameter] = (_whole(parameter, *held), ())
            add_selected(held[0], selection, gradient)

    def _add(self, parameter: Tensor, full: Tensor, selection: Selection, part: Tensor) -> None:
        """Add to selected entries of a gradient: now, or of a vector with others later."""
        if full.ndim == 1 and not any(isinstance(kept, Indices) for kept in selection):
            self._waiting[parameter] = (select(full, selection), part)
        else:
            add_selected(full, selection, part)

    @torch.no_grad()
    def _add_waiting(self) -> None:
        groups: dict[tuple[torch.device, torch.dtype], list[tuple[Tensor, Tensor]]] = {}
        for full, part in self._waiting.values():
            groups.setdefault((full.device, full.dtype), []).append((full, part))
        for pairs in groups.values():
            fulls, parts = zip(*pairs, strict=True)
            torch._foreach_add_(fulls, parts)
        self._waiting.clear()

    def take(self, parameters: Iterable[nn.Parameter]) -> None:
        """Move the ``.grad`` of the trained parameters into this sum."""
        for parameter in parameters:
            if parameter.grad is not None and parameter.requires_grad:
                self.add(parameter, (), parameter.grad)
                parameter.grad = None

    @contextlib.contextmanager
    def added(self, vectors_on_exit: bool = False) -> Iterator[None]:
        """Add each parameter's sum to its gradient in a backward inside the block, and the remaining sums on exit.

        A sum is added as soon as the gradient of its parameter is complete, before data-parallel training synchronises
        it. The parameter's own hooks see the whole gradient once. After an exception all sums are dropped.

        Args:
            vectors_on_exit: Whether sums of vectors without hooks are added on exit, because nothing looks at their
                gradients before. The default is ``False``.
        """
        self._add_waiting()
        handles = [
            self._hook(parameter)
            for parameter in self._held
            if not (vectors_on_exit and parameter.ndim == 1 and not _has_hooks(parameter))
        ]
        try:
            yield
            with torch.no_grad():
                for parameter in list(self._held):
                    self._add_to(parameter, together=True)
            self._add_waiting()
        finally:
            self._held.clear()
            self._waiting.clear()
            for handle in handles:
                handle.remove()

    def _hook(self, parameter: Tensor) -> Any:
        """Add the sum in a backward; the handle takes the hook away."""
        own_hooks = parameter._backward_hooks  # of the user's
        if own_hooks:
            hook = functools.partial(self._added_to, parameter)
            handle = parameter.register_hook(hook)  # type: ignore[no-untyped-call]
            _put_first(own_hooks, handle.id)
            return handle
        handle = parameter.register_post_accumulate_grad_hook(self._add_to)  # type: ignore[no-untyped-call]
        _put_first(parameter._post_accumulate_grad_hooks, handle.id)
        return handle

    def carried(self, loss: Tensor) -> Tensor:
        """A loss of the same value whose gradients are its own and the sums, which are dropped here.

        Whatever is done with the loss before its backward, and with the gradients after it, is done to the whole.
        """
        self._add_waiting()
        terms = [(select(parameter, selection) * part).sum() for parameter, (part, selection) in self._held.items()]
        self._held.clear()
        if not terms:
            return loss
        total = torch.stack([term.to(loss) for term in terms]).sum()
        return loss + (total - total.detach())

    def _added_to(self, parameter: Tensor, gradient: Tensor) -> Tensor | None:
        """The gradient that hooks of a parameter get, with the sum."""
        held, selection = self._held.pop(parameter, (None, ()))
        if held is None:
            return None
        total = gradient.clone()
        add_selected(total, selection, held)
        return total

    def _add_to(self, parameter: Tensor, together: bool = False) -> None:
        gradient, selection = self._held.pop(parameter, (None, ()))
        if gradient is None:
            return
        if parameter.grad is not None:
            add = functools.partial(self._add, parameter) if together else add_selected
            add(parameter.grad, selection, gradient)
        elif gradient.shape == parameter.shape:
            parameter.grad = gradient
        else:
            parameter.grad = _whole(parameter, gradient, selection)


@contextlib.contextmanager
def gradients_set_back(
    parameters: Iterable[nn.Parameter], inside: Callable[[Tensor], Tensor | None] | None = None
) -> Iterator[None]:
    """After the block, parameters have the gradients of before, and no others.

    Args:
        parameters: The parameters.
        inside: What a parameter has inside the block, from its gradient of before. The default is that gradient itself.
    """
    before = [(parameter, parameter.grad) for parameter in parameters]
    try:
        for parameter, gradient in before:
            parameter.grad = gradient if inside is None or gradient is None else inside(gradient)
        yield
    finally:
        for parameter, gradient in before:
            parameter.grad = gradient


@contextlib.contextmanager
def hooks_muted(parameters: Iterable[Tensor]) -> Iterator[None]:
    """Inside the block, no hook on the gradients of parameters runs."""
    muted: list[tuple[MutableMapping[int, Any], dict[int, Any]]] = []
    for parameter in parameters:
        for hooks in (parameter._backward_hooks, getattr(parameter, "_post_accumulate_grad_hooks", None)):
            if hooks:
                muted.append((hooks, dict(hooks)))
                hooks.clear()
    try:
        yield
    finally:
        for hooks, before in muted:
            hooks.update(before)


def _has_hooks(parameter: Tensor) -> bool:
    """Whether someone else's code runs when the gradient of a parameter arrives."""
    return bool(parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None))


def _put_first(hooks: MutableMapping[int, Any], key: int) -> None:
    """Put one hook before the others; torch reads the order of insertion."""
    for other in [other for other in hooks if other != key]:
        hooks[other] = hooks.pop(other)


def _is_corner(small: Tensor, large: Tensor, selection: Selection) -> bool:
    """Whether a smaller gradient lies at the same indices in a larger one, which ``selection`` cut."""
    for kept, ours, theirs in zip(selection, small.shape, large.shape, strict=False):
        if isinstance(kept, Indices) or ours > theirs:
            return False
    return True


def _whole(parameter: Tensor, gradient: Tensor, selection: Selection) -> Tensor:
    """Expand a gradient of selected entries to the whole parameter."""
    full = torch.zeros_like(parameter)
    add_selected(full, selection, gradient)
    return full
