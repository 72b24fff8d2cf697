"""What a network's forward and its hooks keep besides the result: found by running them, and withheld by a trace.

A trace gives the network's result and keeps nothing. An auxiliary loss that the forward keeps as an attribute, or
features that a hook collects, would be those of an earlier forward. So each of these places gets a tensor that refuses
every use by name, wherever the network runs as its trace. Most of them nobody reads.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import sys
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

NOT_KEPT = (
    "{what} is not set below alpha = 1, where the network runs as its trace: a trace gives the result of the network, "
    "and runs neither its code nor hooks that only watch. Return the value from the network's forward, or use "
    "mode='unstructured' or mode='quantized', which run the network's own code"
)
# The search for places goes through collections and modules, and through this many other objects, one in another.
MAX_OBJECTS = 2
# Larger collections hold data.
MAX_LENGTH = 10_000
# Objects of these packages refer to much, and to nothing that a user's forward keeps.
_OTHERS = ("torch", "lightning", "pytorch_lightning", "lightning_lcs")
_INTERNAL = frozenset(nn.Module().__dict__)
_FILLED = (dict, list, set, deque)
_ABSENT = object()


class Withheld(Tensor):
    """A tensor that was not computed. Any use of it is an error, whose message is the attribute ``message``."""

    message: str

    @classmethod
    def __torch_function__(cls, func: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Refuse every use; only to ask whether the tensor was written is none."""
        if func in (Tensor._version.__get__, Tensor.is_inference):  # type: ignore[attr-defined]
            return 0
        used = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Withheld)]
        raise RuntimeError(used[0].message)

    def __deepcopy__(self, memo: Any) -> Withheld:
        return self

    def __reduce_ex__(self, protocol: Any) -> Any:
        return withheld, (self.message,)

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return "Withheld()"


def withheld(message: str) -> Withheld:
    """A tensor whose use is an error with this message."""
    tensor = torch.empty(0).as_subclass(Withheld)
    tensor.message = message
    return tensor


@dataclasses.dataclass(frozen=True)
class Holder:
    """Something that a forward or a hook may fill.

    Attributes:
        what: What an entry is called in messages, with a place for its key, such as "Net.{}".
        target: A dictionary (also that of an object's attributes or a module's globals), a list, a deque, a set, or the
            cell of a variable that a function shares with the one around it.
        restored: The types of entries that may be put back. Of a module's attributes, these are collections only,
            because others may tell which children are built already.
    """

    what: str
    target: Any
    restored: tuple[type, ...] = (object,)

    def entries(self) -> Any:
        """The present entries: a dictionary, or a list where they have no keys."""
        if isinstance(self.target, dict):
            return dict(self.target)
        if not isinstance(self.target, types.CellType):
            return list(self.target)
        try:
            return [self.target.cell_contents]
        except ValueError:  # the variable has no value yet
            return []

    def fill(self, entries: Any) -> None:
        """Put these entries back, and touch those only that differ."""
        target, kinds = self.target, self.restored
        if isinstance(target, dict):
            for key in [key for key in target if key not in entries and object in kinds]:
                del target[key]
            differ = {key: value for key, value in entries.items() if target.get(key, _ABSENT) is not value}
            target.update({key: value for key, value in differ.items() if isinstance(value, kinds)})
        elif not _same(self.entries(), entries):
            if isinstance(target, types.CellType):
                target.cell_contents = entries[0]
                return
            target.clear()
            target.update(entries) if isinstance(target, set) else target.extend(entries)


def _same(some: Iterable[Any], others: Iterable[Any]) -> bool:
    return list(map(id, some)) == list(map(id, others))


@dataclasses.dataclass(frozen=True)
class Kept:
    """Entries that are tensors, or hold some, and are set or written in every forward.

    Attributes:
        holder: Where they are.
        keys: Their keys; empty where they have none.
        number: Their number where they have no keys.
    """

    holder: Holder
    keys: tuple[Any, ...]
    number: int = 1

    def withhold(self) -> Callable[[], None]:
        """Put in tensors that refuse every use, as a forward would put in others; the result takes them out again."""
        target, entries = self.holder.target, self.holder.entries()
        if isinstance(target, dict):
            before = {key: entries[key] for key in self.keys if key in entries}
            target.update({key: self._stand_in(key) for key in self.keys})
            return functools.partial(self._give_back, before)
        values = [self._stand_in() for _ in range(self.number)]
        self.holder.fill(values if isinstance(target, types.CellType) else [*entries, *values])
        return functools.partial(self.holder.fill, entries)

    def _give_back(self, before: dict[Any, Any]) -> None:
        for key in self.keys:
            self.holder.target.pop(key, None)
        self.holder.target.update(before)

    def _stand_in(self, key: Any = None) -> Withheld:
        return withheld(NOT_KEPT.format(what=self.holder.what.format(key)))


class Before:
    """The entries of some holders at one time.

    Args:
        holders: The holders.
    """

    def __init__(self, holders: Iterable[Holder]) -> None:
        self._entries = [(holder, holder.entries()) for holder in holders]
        values = [value for _, entries in self._entries for value in _values(entries)]
        self._versions = {id(value): value._version for value in values if _has_version(value)}

    def kept(self) -> list[Kept]:
        """What has been set or written since then."""
        found = [self._kept(holder, entries) for holder, entries in self._entries]
        return [kept for kept in found if kept is not None]

    def _kept(self, holder: Holder, before: Any) -> Kept | None:
        now = holder.entries()
        if isinstance(now, dict):
            # torch's older weight norm and spectral norm compute a weight in every forward.
            own = now.get("_parameters") or ()
            keys = [key for key, value in now.items() if self._is_new(value, before.get(key, _ABSENT))]
            keys = [key for key in keys if f"{key}_g" not in own and f"{key}_orig" not in own]
            return Kept(holder, tuple(keys)) if keys else None
        old = before if _same(before, now[: len(before)]) else []
        added = [value for value in now[len(old) :] if self._is_new(value, _ABSENT)]
        written = [value for value in old if self._is_new(value, value)]
        return Kept(holder, (), len(added) or 1) if added or written else None

    def _is_new(self, value: Any, before: Any) -> bool:
        if value is not before:
            return _has_tensor(value)
        return _has_version(value) and value._version != self._versions.get(id(value))

    def restore(self) -> None:
        """Put the entries back."""
        for holder, entries in self._entries:
            holder.fill(entries)


@contextlib.contextmanager
def restored(holders: Iterable[Holder]) -> Iterator[None]:
    """After the block, the entries of some holders are as before; torch.export also copies a module's collections."""
    before = Before(holders)
    try:
        yield
    finally:
        before.restore()


def _values(entries: Any) -> Iterable[Any]:
    return entries.values() if isinstance(entries, dict) else entries


def _has_version(value: Any) -> bool:
    return isinstance(value, Tensor) and not value.is_inference()


def _has_tensor(value: Any, depth: int = 3) -> bool:
    """Whether a value is or holds a tensor or an array."""
    if isinstance(value, Tensor) or type(value).__module__ == "numpy":
        return True
    if depth == 0 or isinstance(value, nn.Module):
        return False
    if _is_plain_object(value):
        value = vars(value)
    inside = _values(value) if isinstance(value, (dict, list, tuple, set, frozenset, deque)) else ()
    return any(_has_tensor(each, depth - 1) for each in inside)


# -- where something can be kept --------------------------------------------------------------------------------------


def holders_of_network(module: nn.Module) -> Iterator[Holder]:
    """The attributes of a network and its children, and the collections and objects in them."""
    kind = type(module).__name__
    return _reachable([(f"{kind}.{path}" if path else kind, child) for path, child in module.named_modules()])


def holders_of_hook(hook: Any, owner: nn.Module, what: str = "") -> list[Holder]:
    """All that a hook can fill: what it is bound to, closes over or names, and the attributes of its module.

    Args:
        hook: The hook.
        owner: Its module.
        what: What all of it is called in messages.
    """
    return [dataclasses.replace(holder, what=what) for holder in _reachable([("", hook), ("", owner)])]


def _reachable(roots: Iterable[tuple[str, Any]]) -> Iterator[Holder]:
    """Everything that can be filled and is found from named objects."""
    waiting = deque((name, value, 0) for name, value in roots)
    seen: set[int] = set()
    while waiting:
        name, value, objects = waiting.popleft()
        if id(value) in seen:
            continue
        seen.add(id(value))
        inside: Iterable[tuple[str, Any]] = ()
        if isinstance(value, nn.Module):
            yield Holder(f"{name}.{{}}", vars(value), _FILLED)
            own = {key: each for key, each in vars(value).items() if key not in _INTERNAL}
            inside = [(f"{name}.{key}", each) for key, each in {**own, **value._modules}.items()]
        elif isinstance(value, (dict, list, tuple, set, frozenset, deque)):
            if len(value) <= MAX_LENGTH:
                if not isinstance(value, (tuple, frozenset)):
                    yield Holder(f"{name}[{{!r}}]" if isinstance(value, dict) else name, value)
                inside = [(name, each) for each in _values(value)]
        elif isinstance(value, types.CellType):
            holder = Holder(name, value)
            yield holder
            inside = [(name, each) for each in holder.entries()]
        elif isinstance(value, types.FunctionType):
            if not _is_others(value):
                yield Holder(name, value.__globals__, ())
            inside = [(name, each) for each in _named_by(value)]
        elif isinstance(value, (types.MethodType, types.BuiltinMethodType)):
            inside = [(name, value.__self__), (name, getattr(value, "__func__", None))]
        elif isinstance(value, functools.partial):
            inside = [(name, value.func), (name, value.args), (name, value.keywords)]
        elif objects < MAX_OBJECTS and _is_plain_object(value):
            objects += 1
            yield Holder(f"{name}.{{}}", vars(value))
            inside = [(f"{name}.{key}", each) for key, each in vars(value).items()]
        waiting.extend((inner, each, objects) for inner, each in inside)


def _is_plain_object(value: Any) -> bool:
    kind = type(value)
    if isinstance(value, (Tensor, type, types.ModuleType, types.FunctionType)) or not hasattr(value, "__dict__"):
        return False
    return kind.__module__.partition(".")[0] not in _OTHERS


def _is_others(function: types.FunctionType) -> bool:
    """Whether a function is torch's, Lightning's, Python's or ours."""
    package = (function.__module__ or "").partition(".")[0]
    return package in _OTHERS or (package in sys.stdlib_module_names and package != "__main__")


def _named_by(function: types.FunctionType) -> list[Any]:
    """What a function closes over, its defaults, and the globals that it names."""
    names = () if _is_others(function) else function.__code__.co_names
    found = [function.__globals__[name] for name in names if name in function.__globals__]
    return [*(function.__closure__ or ()), function.__defaults__, function.__kwdefaults__, *found]
