"""Gradients of several levels, summed at the size of the largest until the full network's own arrive."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from lightning_lcs.graph.channels.plan import Indices, Selection, add_selected


class GradientSum:
    """Gradients of parts of parameters, summed outside their ``.grad``.

    Levels nest: a smaller one's gradient is a corner of a larger one's. The sum is kept at the size of the largest
    level so far, which moves much less memory than adding every level into full-sized gradients.
    """

    def __init__(self) -> None:
        self._held: dict[Tensor, tuple[Tensor, Selection]] = {}

    def add(self, parameter: nn.Parameter, selection: Selection, gradient: Tensor, share: float = 1.0) -> None:
        """Add ``share * gradient``, the gradient of the entries ``parameter[selection]``.

        The tensor may be kept and changed: the caller must not use it again, except to add it to another parameter
        with another share.
        """
        if share != 1.0:
            gradient = gradient * share
        held = self._held.get(parameter)
        if held is None:
            self._held[parameter] = (gradient, selection)
        elif held[1] == selection:
            held[0].add_(gradient)
        elif _is_corner(held[0], gradient, selection):
            add_selected(gradient, held[1], held[0])
            self._held[parameter] = (gradient, selection)
        else:
            if not _is_corner(gradient, *held):
                held = self._held[parameter] = (_whole(parameter, *held), ())
            add_selected(held[0], selection, gradient)

    def take(self, parameters: Iterable[nn.Parameter]) -> None:
        """Move the ``.grad`` of the parameters that are trained in here."""
        for parameter in parameters:
            if parameter.grad is not None and parameter.requires_grad:
                self.add(parameter, (), parameter.grad)
                parameter.grad = None

    @contextlib.contextmanager
    def added(self) -> Iterator[None]:
        """A backward inside the block adds each parameter's sum to its gradient; on exit the rest is added, too.

        A sum is added as soon as that gradient is complete, before data-parallel training synchronises it. After an
        exception nothing is left.
        """
        handles = [parameter.register_post_accumulate_grad_hook(self._add_to) for parameter in self._held]  # type: ignore[no-untyped-call]
        try:
            yield
            with torch.no_grad():
                for parameter in list(self._held):
                    self._add_to(parameter)
        finally:
            self._held.clear()
            for handle in handles:
                handle.remove()

    def _add_to(self, parameter: Tensor) -> None:
        gradient, selection = self._held.pop(parameter, (None, ()))
        if gradient is None:
            return
        if parameter.grad is not None:
            add_selected(parameter.grad, selection, gradient)
        elif gradient.shape == parameter.shape:
            parameter.grad = gradient
        else:
            parameter.grad = _whole(parameter, gradient, selection)


def _is_corner(small: Tensor, large: Tensor, selection: Selection) -> bool:
    """Whether a smaller gradient has its place at the same indices in a larger one, which ``selection`` cut."""
    for kept, ours, theirs in zip(selection, small.shape, large.shape, strict=False):
        if isinstance(kept, Indices) or ours > theirs:
            return False
    return True


def _whole(parameter: Tensor, gradient: Tensor, selection: Selection) -> Tensor:
    """A gradient of selected entries as one of the whole parameter."""
    full = torch.zeros_like(parameter)
    add_selected(full, selection, gradient)
    return full
