"""Whether the weights of a network are those of an earlier moment."""

from __future__ import annotations

import operator

from lightning_lcs.subspace.forward import Execution
from lightning_lcs.subspace.part import Part


class WeightState:
    """What a forward reads from a network at one moment: equal to a later state if nothing was written or exchanged.

    Changes in place are seen, and so are ``.to()``, assignments to ``.data`` and other tensors in the place of
    parameters (``torch.func.functional_call``). Writes through ``.data`` are not.

    Args:
        part: The network.
        execution: The forward.

    Attributes:
        tensors: The parameters and buffers.
    """

    def __init__(self, part: Part, execution: Execution) -> None:
        self.tensors = [part.network.tensor(name) for name in part.stored(execution.names)]
        self.tensors += part.endpoints.values()
        self._marks: list[tuple[int, int]] | None
        # Kept tensors can't share their address with later ones, as tensors could that were freed meanwhile.
        try:
            self._marks = [(tensor._version, tensor.data_ptr()) for tensor in self.tensors]
        except RuntimeError:  # Tensors of inference mode have no version, and those inside of torch.func no address.
            self._marks = None  # Writes can't be seen, so that the state counts as another one.

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, WeightState) or self._marks is None or self._marks != other._marks:
            return False
        return all(map(operator.is_, self.tensors, other.tensors))

    __hash__ = None  # type: ignore[assignment]
