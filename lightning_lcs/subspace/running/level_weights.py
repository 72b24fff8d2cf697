"""The tensors with which a network runs at a level."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor

from lightning_lcs.graph.channels.plan import Selection
from lightning_lcs.subspace.compression import WeightTransform
from lightning_lcs.subspace.forward import Execution
from lightning_lcs.subspace.mode import Level
from lightning_lcs.subspace.part import Part


class LevelWeights:
    """The parameters and buffers of one network at a level, valid until its weights change.

    Args:
        part: The network with its endpoints.
        level: The level.
        known: The earlier results of the mode for this level and these weights; see :meth:`Mode.transform`.
        as_in_forward: See :meth:`Part.on_line`. The default is ``False``.
    """

    def __init__(
        self, part: Part, level: Level, known: dict[str, Any] | None = None, as_in_forward: bool = False
    ) -> None:
        self.part = part
        self.level = level
        self._compressed = frozenset(part.compressed)
        self._transform: WeightTransform | None = None
        if self._compressed:
            on_line = partial(part.on_line, alpha=level.alpha, as_in_forward=as_in_forward)
            self._transform = level.mode.transform(part, level, on_line, known)

    def tensor(self, name: str, selection: Selection = ()) -> Tensor:
        """A tensor at the level, cut and compressed, differentiable where gradients are recorded."""
        if self._transform is not None and name in self._compressed:
            return self._transform(name)
        return self.part.on_line(name, self.level.alpha, selection)

    def gradient(self, name: str, value: Tensor, gradient: Tensor) -> Tensor:
        """Turn the gradient of a tensor from :meth:`tensor` into the gradient of the tensor on the line."""
        if self._transform is not None and name in self._compressed:
            return self._transform.gradient(name, value, gradient)
        return gradient


def level_tensors(
    weights: LevelWeights, execution: Execution, statistics: Mapping[str, Tensor], complete: bool = False
) -> list[Tensor | None]:
    """The parameters and buffers that a forward takes at a level, differentiable where gradients are recorded.

    Args:
        weights: The tensors of the level.
        execution: The forward.
        statistics: The running statistics of this level, which replace the cut ones.
        complete: Whether to return tensors for the statistics that the forward would only update, too. The default is
            ``False``, which returns ``None`` for them.
    """
    tensors: list[Tensor | None] = []
    untouched = execution.batch_statistics
    for name in execution.names:
        if name in untouched and not complete:
            tensors.append(None)
            continue
        stored = statistics.get(name)
        if stored is None:
            value = weights.tensor(name, execution.cut(name))
        else:
            value = stored.to(weights.part.network.tensor(name))
        if name in execution.updated:
            value = value.detach().clone()
        tensors.append(value.contiguous())
    return tensors
