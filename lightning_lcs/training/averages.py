"""Lightning's averages of weights: on a line they hold both of its ends."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from lightning import __version__ as lightning_version
from lightning.pytorch import LightningModule, Trainer, callbacks
from torch import Tensor, nn

from lightning_lcs.model import SubspaceModel
from lightning_lcs.subspace.weights import endpoints
from lightning_lcs.training.endpoint_groups import HiddenEndpoints
from lightning_lcs.training.user_code.patches import Patches, StandIn

# Class name -> the hooks in which the callback pairs the parameters of the module with those of its average.
PAIRING_HOOKS = {
    "WeightAveraging": (
        "on_train_batch_end",
        "on_train_epoch_end",
        "on_validation_epoch_start",
        "on_validation_epoch_end",
        "on_train_end",
    ),
    "StochasticWeightAveraging": ("on_train_epoch_start", "on_train_end"),
}
# What a checkpoint of the subspace holds besides the second endpoints that belong to its state_dict.
CURRENT, AVERAGE = "current_endpoint_0", "average_endpoint_0"


def kind_of(callback: Any) -> str | None:
    """The name of Lightning's class of averages that a callback is of, in either namespace; ``None`` for others."""
    return next((kind.__name__ for kind in type(callback).__mro__ if kind.__name__ in PAIRING_HOOKS), None)


def averages_at_the_end(trainer: Trainer) -> bool:
    """Whether a callback of the trainer puts its averages into the module after the last validation, for good."""
    kinds = map(kind_of, trainer.callbacks)  # type: ignore[attr-defined]
    return trainer.state.fn == "fit" and "StochasticWeightAveraging" in kinds


def made_average(trainer: Trainer, decay: float, own: Any) -> Any:
    """Lightning's callback of an exponential moving average, for a trainer that has none.

    Args:
        trainer: The trainer.
        decay: The decay of the average.
        own: What an earlier call returned, which the trainer may have kept; else ``None``.

    Returns:
        The callback, or ``None`` where the trainer has that of the earlier call.

    Raises:
        ValueError: The trainer has such a callback of the user's, or this Lightning has none.
    """
    given = [c for c in trainer.callbacks if kind_of(c) is not None]  # type: ignore[attr-defined]
    if own is not None and given == [own]:
        return None
    if given:
        raise ValueError(
            f"LCSCallback has ema_decay={decay!r}, and the trainer has {type(given[0]).__name__}: give one of them"
        )
    kind = getattr(callbacks, "EMAWeightAveraging", None)
    if kind is None:
        raise ValueError(
            f"ema_decay={decay!r} needs EMAWeightAveraging of Lightning 2.6 or later, and this is Lightning "
            f"{lightning_version}: leave it out, or update Lightning"
        )
    return kind(decay=decay)


def copy_again(trainer: Trainer, module: LightningModule) -> None:
    """Have averages that were set up before the norms of the module were replaced copy it once more."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if kind_of(callback) is not None and callback._average_model is not None:
            callback.setup(trainer, module, "fit")


class AveragedEndpoints:
    """The second endpoints in the copies of a module in which Lightning's callbacks average its weights.

    The callbacks pair the parameters of both by their order. They see the second endpoints of both while they do.

    Args:
        trainer: Its callbacks may average.
        hidden: The second endpoints of the module.
    """

    def __init__(self, trainer: Trainer, hidden: HiddenEndpoints) -> None:
        self._callbacks = [c for c in trainer.callbacks if kind_of(c) is not None]  # type: ignore[attr-defined]
        self._hidden = hidden
        self._loaded: Mapping[str, Tensor] | None = None

    def show_in(self, patches: Patches) -> None:
        """Show the second endpoints while hooks run that pair parameters."""
        for callback in self._callbacks:
            for name in PAIRING_HOOKS[str(kind_of(callback))]:
                showing = functools.partial(self._run, callback)
                patches.set(callback, name, StandIn(getattr(callback, name), showing))

    def start(self, model: SubspaceModel) -> None:
        """Give the copies the second endpoints with which the training starts or goes on."""
        for copy in map(_copy_of, self._callbacks):
            if copy is not None:
                endpoints.copy_into(self._hidden.module, copy)
                with torch.no_grad():
                    for name, twin in self._twins(model, copy).items():
                        twin.copy_(twin if self._loaded is None else self._loaded[name])
        self._loaded = None

    def taken(self, data: Mapping[str, Any]) -> Mapping[str, Any]:
        """The subspace of a checkpoint as training goes on from it: its averages are kept for :meth:`start`."""
        kinds = {kind_of(callback) for callback in self._callbacks}
        if "WeightAveraging" in kinds and CURRENT in data:
            self._loaded = data["endpoint_0"]
            return {**data, "endpoint_0": data[CURRENT]}
        if "StochasticWeightAveraging" in kinds:
            self._loaded = data.get(AVERAGE)
        return data

    def added(self, model: SubspaceModel, data: Mapping[str, Any], replaced: bool) -> Mapping[str, Any]:
        """The subspace for a checkpoint, with the second endpoints of the averages.

        Args:
            model: The subspace model.
            data: The subspace with the second endpoints of training.
            replaced: Whether the ``state_dict`` of the checkpoint is that of the averages.
        """
        for callback in self._callbacks:
            copy = _copy_of(callback)
            if copy is None or not data["endpoint_0"]:
                continue
            found = {name: twin.detach().clone() for name, twin in self._twins(model, copy).items()}
            if kind_of(callback) == "StochasticWeightAveraging":
                data = {**data, AVERAGE: found}
            elif replaced:
                data = {**data, "endpoint_0": found, CURRENT: data["endpoint_0"]}
        return data

    def _run(self, callback: Any, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        copy, hidden = _copy_of(callback), self._hidden.are_hidden
        with self._hidden.shown():
            endpoints.show(_modules(copy))
            try:
                return original(*args, **kwargs)
            finally:
                if hidden:
                    endpoints.hide(_modules(_copy_of(callback)))

    def _twins(self, model: SubspaceModel, copy: nn.Module) -> dict[str, nn.Parameter]:
        """The second endpoints of a copy, by their qualified names in the network."""
        pairs = {id(own): twin for own, twin in endpoints.paired(self._hidden.module, copy)}
        named = [(part.prefix + name, w0) for part in model.parts for name, w0 in part.endpoints.items()]
        return {name: pairs[id(w0)] for name, w0 in named if id(w0) in pairs}


def _copy_of(callback: Any) -> nn.Module | None:
    """The copy of the module in which a callback averages; ``None`` before it is made."""
    average = callback._average_model
    made: nn.Module | None = (
        average.module if kind_of(callback) == "WeightAveraging" and average is not None else average
    )
    return made


def _modules(copy: nn.Module | None) -> Iterable[nn.Module]:
    return [] if copy is None else list(copy.modules())
