"""Gradients that a training step asks for itself, before it returns its loss."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from torch.autograd import Variable

from lightning_lcs.subspace.part import Part


class OwnBackwardError(Exception):
    """A step asks for gradients of parameters before it returns its loss.

    Args:
        named: Whether it names the parameters, as in ``torch.autograd.grad(loss, parameters)``.
    """

    def __init__(self, named: bool) -> None:
        super().__init__(named)
        self.named = named


@contextlib.contextmanager
def own_backward_refused(parts: Sequence[Part], unnamed: bool = True) -> Iterator[None]:
    """Inside the block, a backward that may reach parameters of networks is an error, even if code inside catches it.

    A backward inside of the networks' forwards is none, such as that of the check of a trace.

    Args:
        parts: The networks.
        unnamed: Whether that holds for a ``backward()`` that names no inputs, too. The default is ``True``.

    Raises:
        OwnBackwardError: There was such a backward.
    """
    engine = _Engine(Variable._execution_engine, parts, unnamed)
    Variable._execution_engine = engine  # type: ignore[assignment]
    try:
        yield
    finally:
        Variable._execution_engine = engine.real
    if engine.error is not None:
        raise engine.error


class _Engine:
    """Takes the place of torch's engine, through which every backward goes, by whatever name it was imported."""

    def __init__(self, real: Any, parts: Sequence[Part], unnamed: bool) -> None:
        self.real = real
        self.error: OwnBackwardError | None = None
        self._parts = parts
        self._parameters = {id(parameter) for part in parts for parameter in part.network.module.parameters()}
        self._unnamed = unnamed

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def run_backward(
        self, outputs: Any, gradients: Any, keep: Any, create: Any, inputs: Any, *args: Any, **kwargs: Any
    ) -> Any:
        refused = not self._parameters.isdisjoint(map(id, inputs)) if inputs else self._unnamed
        if refused and not any(part.running for part in self._parts):
            self.error = OwnBackwardError(named=bool(inputs))
            raise self.error
        return self.real.run_backward(outputs, gradients, keep, create, inputs, *args, **kwargs)
