"""Copies of loaders, samplers and data sets that go on by themselves from where the originals are."""

from __future__ import annotations

import copyreg
import io
import multiprocessing.process
import os
import pickle
import threading
import types
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler
from torch.utils.data.dataloader import _BaseDataLoaderIter

# Larger tensors and arrays hold data rather than a position; data sets are not copied with all their images.
MOST_BYTES = 2**20
_PLAIN = frozenset((bool, int, float, complex, str, bytes, type(None), tuple, list, dict, set, frozenset, bytearray))
_SHARED = (
    type,
    types.FunctionType,
    types.ModuleType,
    threading.Thread,
    multiprocessing.process.BaseProcess,
    Trainer,
    LightningModule,
)
_READING = ("r", "rb", "rt")
_MADE_IN_PYTHON = 1 << 9  # Py_TPFLAGS_HEAPTYPE


def copied(loader: Any, strict: bool = True) -> tuple[Any, list[str]]:
    """A copy of a loader with all that gives it its position: samplers, data sets, random generators, counters.

    The loader, its samplers and its data set are copied as :mod:`pickle` would. The copy shares with the original what
    is no position, or belongs to something that must not exist twice: tensors and arrays above 1 MiB, functions,
    classes, networks, the trainer, threads, and whatever can't be copied (locks, handles of databases) or closes
    something when it ends. A file that is open for reading is opened again, at the same place. Iterators over batches
    that a ``DataLoader`` holds are left out.

    Args:
        loader: A ``DataLoader``, or any iterable.
        strict: Whether an iterator that can't be copied, such as a generator, is left out: the copy has ``None`` in its
            place, as most code has before its first iteration. Otherwise the copy shares it. The default is to leave it
            out.

    Returns:
        The copy, and the kinds of the iterators that were left out.

    Raises:
        RuntimeError: The loader can't be copied.
    """
    file = io.BytesIO()
    copier = _Copier(file, strict)
    try:
        copier.dump(loader)
        file.seek(0)
        return _Maker(file, copier.kept).load(), copier.left_out
    except Exception as error:
        raise RuntimeError(refusal([f"{type(loader).__qualname__}: {error}"])) from error


def refusal(kinds: Iterable[str]) -> str:
    """The message for a training loader that holds what can't be copied.

    Args:
        kinds: The classes of what it holds.
    """
    return (
        "recalibration of batch norm reads from a copy of the training loader, so that training goes on where it is, "
        f"and what the loader reads from can't be copied ({', '.join(sorted(set(kinds)))}): make it in the __iter__ of "
        "the loader, sampler or data set, so that each iteration has its own, or do without statistics for each level "
        "(Recalibration(images=0), or norm='group')"
    )


def iterates_itself(kind: type[DataLoader[Any]]) -> bool:
    """Whether a class of loaders has another iteration than that of ``DataLoader``."""
    return kind.__iter__ is not DataLoader.__iter__ or kind._get_iterator is not DataLoader._get_iterator


class _Same:
    """Marks an object that the copy shares."""

    def __init__(self, value: Any) -> None:
        self.value = value


class _Copier(pickle.Pickler):
    """Pickles what is copied; what is shared goes into ``kept``."""

    def __init__(self, file: io.BytesIO, strict: bool) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self.strict = strict
        self.kept: list[Any] = []
        self.left_out: list[str] = []
        self._given: set[int] = set()

    def persistent_id(self, value: Any) -> int | None:
        kind = type(value)
        if kind in _PLAIN:
            return None
        if kind is _Same:
            self.kept.append(value.value)
        elif id(value) in self._given or is_shared(value, kind):
            self.kept.append(value)
        else:
            return None
        return len(self.kept) - 1

    def reducer_override(self, value: Any) -> Any:
        kind = type(value)
        if kind is types.MethodType:  # by its name it would not be found if the name begins with two underscores
            return types.MethodType, (value.__func__, value.__self__)
        if issubclass(kind, Tensor):
            return _cloned, (_Same(value),)
        if issubclass(kind, np.ndarray) and not value.dtype.hasobject:
            return np.array, (_Same(value),)
        if issubclass(kind, DataLoader):
            return _made, (kind,), self._state_of_loader(value), None, None, _set_state
        ends = _has_end(kind) and not _is_prepared(kind)
        reduced = None if ends else _reduced(value, kind)
        if reduced is None and issubclass(kind, (Dataset, Sampler)):
            # What its end closes is the original's; and what it says of pickling is for other processes.
            return _made, (_without_end(kind) if ends else kind,), value.__dict__, None, None, _set_state
        if reduced is None:
            return _unchanged, (_Same(self._uncopied(value, kind)),)
        if len(reduced) > 2 and reduced[2] is not None and not hasattr(kind, "__setstate__"):
            # An object without attributes is asked for none: its class may look for all of them in another object.
            return (*(*reduced, None, None)[:5], _set_state)
        return reduced

    def _state_of_loader(self, loader: DataLoader[Any]) -> dict[str, Any]:
        if loader.num_workers > 0 and not iterates_itself(type(loader)):
            self._given.add(id(loader.dataset))  # each worker gets a copy of its own
        own = {name: None if isinstance(v, _BaseDataLoaderIter) else v for name, v in vars(loader).items()}
        return own | {"persistent_workers": False}

    def _uncopied(self, value: Any, kind: type[Any]) -> Any:
        again = _opened_again(value) if issubclass(kind, io.IOBase) else None
        if again is None and self.strict and hasattr(kind, "__next__"):
            self.left_out.append(kind.__qualname__)
            return None
        return value if again is None else again


class _Maker(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, kept: list[Any]) -> None:
        super().__init__(file)
        self.kept = kept

    def persistent_load(self, key: int) -> Any:
        return self.kept[key]


def is_shared(value: Any, kind: type[Any]) -> bool:
    """Whether a copy shares an object of a class, because it is no position or must not exist twice."""
    if issubclass(kind, _SHARED):
        return True
    if issubclass(kind, types.BuiltinFunctionType):
        return isinstance(value.__self__, (types.ModuleType, type(None)))
    if issubclass(kind, (Tensor, np.ndarray)):
        return bool(value.nbytes > MOST_BYTES)
    # Networks are large and no position; transforms are modules, too, and may have one.
    return issubclass(kind, nn.Module) and next(value.parameters(), None) is not None


def _has_end(kind: type[Any]) -> bool:
    return bool(kind.__flags__ & _MADE_IN_PYTHON) and hasattr(kind, "__del__")


def _is_prepared(kind: type[Any]) -> bool:
    """Whether a class says itself how it is copied."""
    names = ("__reduce_ex__", "__reduce__", "__getstate__")
    return any(getattr(kind, name, None) is not getattr(object, name, None) for name in names)


def _reduced(value: Any, kind: type[Any]) -> tuple[Any, ...] | None:
    given: Callable[[Any], Any] | None = copyreg.dispatch_table.get(kind)
    try:
        found = value.__reduce_ex__(pickle.HIGHEST_PROTOCOL) if given is None else given(value)
    except Exception:  # each kind of object has its own way to say that it can't be copied
        return None
    return found if isinstance(found, tuple) else None


def _without_end(kind: type[Any]) -> type[Any]:
    """The class without its ``__del__``: what that closes belongs to the original."""
    space = {"__del__": lambda self: None, "__module__": kind.__module__, "__qualname__": kind.__qualname__}
    return types.new_class(kind.__name__, (kind,), exec_body=lambda body: body.update(space))


def _opened_again(file: Any) -> Any:
    """Another file object for a file that is open for reading, at the same place; ``None`` where there is none."""
    mode = getattr(file, "mode", None)
    if mode not in _READING:
        return None
    try:
        descriptor = os.open(file.name, os.O_RDONLY)
    except (OSError, TypeError, AttributeError):
        return None
    again = open(descriptor, mode, encoding=getattr(file, "encoding", None), closefd=False)  # noqa: SIM115
    weakref.finalize(again, os.close, descriptor)  # nobody closes a copy
    try:
        again.seek(file.tell())
    except (OSError, ValueError):
        return None
    return again


def _made(kind: Any) -> Any:
    return kind.__new__(kind)


def _cloned(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_(tensor.requires_grad)


def _unchanged(value: Any) -> Any:
    return value


def _set_state(target: Any, state: Any) -> None:
    attributes, slots = state if isinstance(state, tuple) else (state, None)
    if attributes:
        vars(target).update(attributes)
    given: Mapping[str, Any] = slots or {}
    for name, value in given.items():
        object.__setattr__(target, name, value)
