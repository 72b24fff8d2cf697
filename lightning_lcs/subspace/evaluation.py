"""Tensors of the levels in use, kept from one forward to the next."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_lcs.subspace.forward import Execution
from lightning_lcs.subspace.modes.observers import Inputs
from lightning_lcs.subspace.modes.registry import Mode
from lightning_lcs.subspace.network import Part
from lightning_lcs.subspace.weights import Compression, level_tensors, setting_of

# Tensors of a level, and what quantizes inputs of layers.
MOST_LEVELS = 256  # whose thresholds are kept: alpha is any number, and a controller may ask for new ones for ever
Ready = tuple[list[Tensor | None], Inputs | None]


class Prepared:
    """The level of each network, made anew only when a weight, the level or the need for gradients has changed.

    Thresholds of sparse levels are kept for the levels set last, until a weight changes: they are a number per weight
    tensor, and setting a level again then costs little more than copying the weights.
    """

    def __init__(self) -> None:
        self._ready: dict[Any, tuple[Any, Ready]] = {}
        self._thresholds: dict[Any, tuple[Any, dict[str, float | None]]] = {}

    def forget_tensors(self) -> None:
        """Free the tensors of levels: another level is set."""
        self._ready.clear()

    def forget(self) -> None:
        """Free everything: weights are about to change."""
        self._ready.clear()
        self._thresholds.clear()

    def get(
        self,
        part: Part,
        execution: Execution,
        mode: Mode,
        alpha: float,
        stored: Mapping[str, Tensor] | None,
        make: Callable[[], tuple[Mapping[str, Tensor], Inputs | None]],
    ) -> Ready:
        """The tensors with which a network runs.

        Args:
            part: the network.
            execution: its forward.
            mode: of compression.
            alpha: the level.
            stored: the level's statistics; other ones are other tensors.
            make: gives the statistics by the part's own names, and what quantizes inputs.
        """
        watched = [part.network.tensor(name) for name in execution.names] + list(part.endpoints.values())
        gradients = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in watched)
        # data_ptr() sees .to() and .data = ...; _version sees in-place changes.
        state = tuple([(tensor._version, tensor.data_ptr()) for tensor in watched])
        key = (alpha, id(stored), torch.is_inference_mode_enabled(), execution.batch_statistics, state)
        held = self._ready.get((id(part), execution.names))
        if held is not None and held[0] == key:
            return held[1]
        statistics, inputs = make()
        known = self._thresholds.get((id(part), alpha))
        thresholds = {} if known is None or known[0] != state else known[1]
        level = Compression(part, setting_of(mode, alpha), thresholds=thresholds)
        ready = (level_tensors(level, execution, statistics), inputs)
        if thresholds:
            self._thresholds[id(part), alpha] = (state, thresholds)
            if len(self._thresholds) > MOST_LEVELS:
                del self._thresholds[next(iter(self._thresholds))]
        # A backward frees the graph in which tensors were cut; buffers that a forward writes are copies for one call.
        if not gradients and not execution.updated:
            self._ready[id(part), execution.names] = (key, ready)
        return ready

    def __getstate__(self) -> dict[str, Any]:
        # Tensors are views of the weights of this very object, and keys its addresses.
        return {"_ready": {}, "_thresholds": {}}
