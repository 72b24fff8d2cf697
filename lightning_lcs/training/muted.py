"""Loggers and progress bars that stay silent while the user's code runs once more."""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import Logger

from lightning_lcs.training.patches import Patches

_PLAIN = (bool, int, float, complex, str, bytes, type(None))
_WRITES = ("log_", "save", "watch", "unwatch", "after_save_checkpoint", "upload_")


class Muted:
    """Stands for an object that writes somewhere: its plain values can be read, and its methods do nothing.

    Args:
        find: Gives the object, when something is read of it.
    """

    def __init__(self, find: Callable[[], Any]) -> None:
        self.__dict__["_find"] = find

    def __getattr__(self, name: str) -> Any:
        return _muted(getattr(self._find(), name))

    def __getitem__(self, key: Any) -> Any:
        return _muted(self._find()[key])

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing."""

    def __setattr__(self, name: str, value: Any) -> None: ...

    def __setitem__(self, key: Any, value: Any) -> None: ...

    def __enter__(self) -> Muted:
        return self

    def __exit__(self, *error: object) -> None: ...


def _muted(value: Any) -> Any:
    return value if isinstance(value, _PLAIN) else Muted(lambda: value)


@contextlib.contextmanager
def muted(trainer: Trainer) -> Iterator[None]:
    """Inside the block, a trainer's loggers, their experiments and the bars of its progress bar write nothing.

    An object of a logger's class stays one: its class is replaced by a subclass for as long as the block takes.
    """
    patches = Patches()
    classes = [(logger, type(logger)) for logger in trainer.loggers]
    wandb = sys.modules.get("wandb")
    bar = trainer.progress_bar_callback
    try:
        for logger, kind in classes:
            logger.__class__ = _muted_class(kind)
        for owner in (wandb, getattr(wandb, "run", None)):
            if owner is not None:
                patches.set(owner, "log", _nothing)
        for name, value in [] if bar is None else list(vars(bar).items()):
            if any(kind.__name__ in ("tqdm", "Progress") for kind in type(value).__mro__):
                patches.set(bar, name, _muted(value))
        yield
    finally:
        patches.undo()
        for logger, kind in classes:
            logger.__class__ = kind


@functools.cache
def _muted_class(kind: type[Logger]) -> type[Logger]:
    names = {name for name, _ in inspect.getmembers(kind, inspect.isfunction) if name.startswith(_WRITES)}
    silent: dict[str, Any] = dict.fromkeys(names, _nothing)
    silent["experiment"] = property(lambda self: Muted(lambda: kind.experiment.__get__(self)))  # type: ignore[attr-defined]
    return type(kind.__name__, (kind,), silent)


def _nothing(*args: Any, **kwargs: Any) -> None:
    return None


@contextlib.contextmanager
def logs_to(sink: Callable[..., None] | None, module: LightningModule) -> Iterator[None]:
    """Inside the block, replace Lightning's own ``log`` for one module; a ``log`` that the user wrote on top runs.

    The method of the class is replaced, and other modules keep their behaviour.

    Args:
        sink: Takes Lightning's own ``log`` of the module, bound, and the arguments of the call. The default is to drop
            the call.
        module: The module.
    """
    base = next(kind for kind in reversed(type(module).__mro__) if "log" in kind.__dict__)
    original = base.log  # type: ignore[attr-defined]

    @functools.wraps(original)
    def log(self: LightningModule, name: str, value: Any, *args: Any, **kwargs: Any) -> None:
        if self is not module:
            original(self, name, value, *args, **kwargs)
        elif sink is not None:
            sink(functools.partial(original, self), name, value, *args, **kwargs)

    base.log = log  # type: ignore[attr-defined]
    try:
        yield
    finally:
        base.log = original  # type: ignore[attr-defined]
