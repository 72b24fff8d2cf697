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

from lightning_lcs.training.user_code.patches import Patches

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
    """Inside the block, a trainer's loggers, their experiments and the bars of its progress bar write nothing."""
    patches = Patches()
    wandb = sys.modules.get("wandb")
    bar = trainer.progress_bar_callback
    with contextlib.ExitStack() as stack:
        for kind in {type(logger) for logger in trainer.loggers}:
            stack.enter_context(_silent(kind, [logger for logger in trainer.loggers if type(logger) is kind]))
        stack.callback(patches.undo)
        for owner in (wandb, getattr(wandb, "run", None)):
            if owner is not None:
                patches.set(owner, "log", _nothing)
        for name, value in [] if bar is None else list(vars(bar).items()):
            if any(kind.__name__ in ("tqdm", "Progress") for kind in type(value).__mro__):
                patches.set(bar, name, _muted(value))
        yield


@contextlib.contextmanager
def _silent(kind: type[Logger], loggers: list[Logger]) -> Iterator[None]:
    """Inside the block, some loggers of a class write nothing.

    The methods of the class are replaced for as long as the block takes. Another class would be found among the
    subclasses of ``Logger`` by whoever looks for a logger by its name, as the command line does.
    """
    own = {name: kind.__dict__[name] for name in _writing(kind) if name in kind.__dict__}
    try:
        for name in _writing(kind):
            setattr(kind, name, _silenced(inspect.getattr_static(kind, name), kind, loggers))
        yield
    finally:
        for name in _writing(kind):
            setattr(kind, name, own[name]) if name in own else delattr(kind, name)


def _silenced(original: Any, kind: type[Logger], loggers: list[Logger]) -> Any:
    def is_silent(logger: Logger) -> bool:
        return any(logger is other for other in loggers)

    if not inspect.isfunction(original):  # the property "experiment"
        return property(
            lambda self: (
                Muted(lambda: original.__get__(self, kind)) if is_silent(self) else original.__get__(self, kind)
            )
        )

    @functools.wraps(original)
    def method(self: Logger, *args: Any, **kwargs: Any) -> Any:
        return None if is_silent(self) else original(self, *args, **kwargs)

    return method


@functools.cache
def _writing(kind: type[Logger]) -> tuple[str, ...]:
    methods = [name for name, _ in inspect.getmembers(kind, inspect.isfunction) if name.startswith(_WRITES)]
    return (*methods, *(["experiment"] if hasattr(kind, "experiment") else []))


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
