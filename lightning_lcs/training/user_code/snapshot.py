"""The state of the user's objects: kept before their code runs once more, and set back afterwards."""

from __future__ import annotations

import array
import collections
import copy
import functools
import itertools
import operator
import random
import types
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils.data import DataLoader, Dataset, Sampler

from lightning_lcs.training.user_code.copies import is_shared

# The entries of longer collections are not looked into: a step must not get slower with every entry.
MOST_ENTRIES = 10_000
# In loaders, longer collections hold data rather than a position.
MOST_ENTRIES_IN_LOADERS = 100
_ATOMS = frozenset(
    (
        *(bool, int, float, complex, str, bytes, type, type(None), range, slice, torch.dtype, torch.device, torch.Size),
        *(types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.ModuleType, types.MappingProxyType),
    )
)
_BOUND = (types.MethodType, types.BuiltinFunctionType)
_GENERATORS = (torch.Generator, random.Random, np.random.Generator, np.random.BitGenerator, np.random.RandomState)
_LOADING = (DataLoader, Dataset, Sampler)
_NOT_STATE_IN = frozenset(
    "builtins concurrent functools io lightning lightning_fabric lightning_lcs logging multiprocessing pathlib "
    "pytorch_lightning queue rich threading torch tqdm weakref".split()
)
# What has state of all that comes with torch: optimizers, schedulers and sequences that a step draws from.
_STATE_IN_TORCH = ("torch.optim", "torch.quasirandom")
# Tensors outside of modules that are larger are copied only if their version or their address has changed.
MOST_COPIED = 4_000_000
_MODULE_OWN = frozenset(nn.Module().__dict__)
_HOOKS = tuple(name for name, value in nn.Module().__dict__.items() if "hooks" in name and isinstance(value, dict))
_TENSOR_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")
_LIGHTNING_OWN = frozenset(LightningModule().__dict__)


class Snapshot:
    """What the user's objects hold at one moment; :meth:`restore` sets them back.

    Objects are kept as they are, and their contents are set back in place: attributes (of modules, metrics, callbacks
    and plain objects), hooks of modules, dictionaries, lists, sets and deques, tensors, arrays, random generators,
    optimizers and schedulers, however deep they lie. Loaders, data sets, samplers, files, queues, threads and iterators
    are not state.

    Tensors are copied each time, because code writes to them through ``.data``, which no version shows. Outside of
    modules, a tensor of more than four million entries is copied only if its version or its address has changed since
    the earlier snapshot.

    Args:
        roots: The objects to start from.
        trained: The parameters that only the optimizer changes; they are left out.
        earlier: An earlier snapshot, whose copies are used again, and which is of no use afterwards. The default is
            none.
        others: Objects that are not looked into, such as the trainer's optimizers. The default is none.
        loaders: Whether loaders, data sets and samplers are state, for roots that are loaders. What they share with
            their copies (see :func:`copied`), such as images above 1 MiB and networks, is not, nor are the entries of
            collections longer than 100. The default is false.
    """

    def __init__(
        self,
        roots: Iterable[Any],
        trained: Iterable[Tensor] = (),
        earlier: Snapshot | None = None,
        others: Iterable[Any] = (),
        loaders: bool = False,
    ) -> None:
        self._loaders = loaders
        self._atoms = _ATOMS - {*_BOUND} if loaders else _ATOMS
        self._undo: list[Callable[[], None]] = []
        self._hooks: list[tuple[Any, str, dict[int, Any]]] = []
        self._plain: dict[int, Tensor] = {}
        self._always: dict[int, Tensor] = {}
        self._seen = set(map(id, (*trained, *others)))
        self._open = list(roots)
        while self._open:
            self._visit(self._open.pop())
        self._always.update({key: t for key, t in self._plain.items() if t.numel() <= MOST_COPIED})
        for key in self._always:
            self._plain.pop(key, None)
        known = {} if earlier is None else earlier._copies
        self._copies: dict[int, _Copy] = {
            key: _copy_of(tensor, known.get(key), False) for key, tensor in self._plain.items()
        }
        again = {key: _copy_of(tensor, known.get(key), True) for key, tensor in self._always.items()}
        _copy([kept.values for kept in again.values()], [kept.tensor for kept in again.values()])
        self._copies.update(again)

    def restore(self) -> None:
        """Set everything back; it may be called several times."""
        for undo in self._undo:
            undo()
        for owner, name, before in self._hooks:
            hooks = getattr(owner, name)
            if hooks or before:
                hooks.clear()
                hooks.update(before)
        written = [kept for key, kept in self._copies.items() if key in self._always or kept.is_changed()]
        for kept in written:
            if kept.tensor.layout != torch.strided:
                kept.tensor.data = kept.values.clone()
            elif _state(kept.tensor)[1:] != kept.state[1:]:
                kept.tensor.data = kept.storage  # the present storage may be another tensor's as well
        # Through .data no version changes: what was prepared from the tensors stays valid.
        _copy([kept.tensor.data for kept in written], [kept.values for kept in written])
        for kept in written:
            kept.state = _state(kept.tensor)

    def _visit(self, value: Any) -> None:
        kind = type(value)
        if kind in self._atoms or id(value) in self._seen or (self._loaders and is_shared(value, kind)):
            return
        self._seen.add(id(value))
        if isinstance(value, Tensor):
            self._plain[id(value)] = value
            if value.is_leaf and value.grad is not None:
                self._keep_gradient(value)
        elif isinstance(value, nn.Module):
            self._visit_module(value)
        elif isinstance(value, dict):
            self._keep_dictionary(value)
            self._follow(dict.values(value))
        elif isinstance(value, (list, collections.deque, set, bytearray)):
            self._keep_collection(value)
            self._follow(value)
        elif isinstance(value, (tuple, frozenset)):
            self._follow(value)
        elif isinstance(value, np.ndarray) and value.flags.writeable:
            before = value.copy()
            self._undo.append(lambda: _write_array(value, before))
        elif isinstance(value, array.array):
            entries = value[:]
            self._undo.append(lambda: operator.setitem(value, slice(None), entries))
        elif kind in _BOUND:
            self._open.append(value.__self__)
        elif kind is functools.partial:
            self._open.extend((value.args, value.keywords))
        elif isinstance(value, _GENERATORS) and not isinstance(value, random.SystemRandom):
            self._undo.append(_reset_of(value))
        if self._is_looked_into(value):
            self._visit_object(value)

    def _is_looked_into(self, value: Any) -> bool:
        if isinstance(value, _LOADING):
            return self._loaders
        home = type(value).__module__
        others = home.partition(".")[0] in _NOT_STATE_IN and not home.startswith(_STATE_IN_TORCH)
        return not others and not isinstance(value, (Tensor, nn.Module))

    def _visit_module(self, module: nn.Module) -> None:
        own = module.__dict__
        for values in (own, own["_parameters"], own["_buffers"], own["_modules"]):
            if values:
                self._keep_dictionary(values)
        self._hooks += [(module, name, dict(own[name])) for name in _HOOKS]
        parameters = [parameter for parameter in own["_parameters"].values() if parameter is not None]
        self._hooks += [(p, name, dict(getattr(p, name) or ())) for p in parameters for name in _TENSOR_HOOKS]
        tensors = [*own["_parameters"].values(), *own["_buffers"].values()]
        self._always.update({id(t): t for t in tensors if self._is_state(t)})
        skipped = _LIGHTNING_OWN if isinstance(module, LightningModule) else _MODULE_OWN
        self._open.extend(own["_modules"].values())
        self._open.extend(v for name, v in own.items() if type(v) not in self._atoms and name not in skipped)

    def _is_state(self, tensor: Tensor | None) -> bool:
        return tensor is not None and id(tensor) not in self._seen and not is_lazy(tensor)

    def _visit_object(self, value: Any) -> None:
        attributes = getattr(value, "__dict__", None)
        if isinstance(attributes, dict) and attributes:
            self._keep_dictionary(attributes)
            self._follow(attributes.values())
        before = {name: getattr(value, name) for name in _slots(type(value)) if hasattr(value, name)}
        if before:

            def undo() -> None:
                for name, old in before.items():
                    if getattr(value, name, None) is not old:
                        object.__setattr__(value, name, old)

            self._undo.append(undo)
            self._follow(before.values())

    def _keep_gradient(self, tensor: Tensor) -> None:
        """The gradient of a tensor that is no parameter; those of parameters are apart already."""
        gradient = tensor.grad
        self._undo.append(lambda: setattr(tensor, "grad", gradient))
        self._open.append(gradient)

    def _keep_dictionary(self, values: dict[Any, Any]) -> None:
        # The methods of the class itself: subclasses may refuse some of theirs, or show something else.
        kind = collections.OrderedDict if isinstance(values, collections.OrderedDict) else dict
        before = {name: _own_count(value) for name, value in kind.items(values)}

        def undo() -> None:
            same = len(values) == len(before) and all(map(operator.is_, kind.__iter__(values), before))
            if not same or not all(map(operator.is_, kind.values(values), before.values())):
                kind.clear(values)
                for name, value in before.items():
                    kind.__setitem__(values, name, _own_count(value))

        self._undo.append(undo)

    def _keep_collection(self, values: Any) -> None:
        # The methods of the class itself: subclasses may copy and fill themselves in another way.
        kind: Any = next(kind for kind in (list, collections.deque, set, bytearray) if isinstance(values, kind))
        before = list(values)

        def undo() -> None:
            if len(values) != len(before) or not all(map(operator.is_, values, before)):
                kind.clear(values)
                (kind.update if kind is set else kind.extend)(values, before)

        self._undo.append(undo)

    def _follow(self, values: Any) -> None:
        most = MOST_ENTRIES_IN_LOADERS if self._loaders else MOST_ENTRIES
        if len(values) <= most and not self._atoms.issuperset(map(type, values)):
            self._open.extend(values)


class _Copy:
    """A tensor, the storage that it had, and the values that it had."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self.storage = tensor.data
        self.values = tensor.detach().clone()
        self.state = _state(tensor)

    def is_changed(self) -> bool:
        """Whether the tensor may have been written to; inference tensors don't tell."""
        return self.state[0] is None or self.state != _state(self.tensor)


def _copy_of(tensor: Tensor, known: _Copy | None, registered: bool) -> _Copy:
    """The earlier copy of a tensor where its values still hold, or will be copied again."""
    if known is None or known.tensor is not tensor:
        return _Copy(tensor)
    fits = known.state[1:] == _state(tensor)[1:] if registered else not known.is_changed()
    return known if fits else _Copy(tensor)


def _state(tensor: Tensor) -> tuple[Any, ...]:
    """What changes when a tensor is written to: its version (none in inference mode), its address, its form."""
    version = None if tensor.is_inference() else tensor._version
    address = tensor.data_ptr() if tensor.layout == torch.strided and not tensor.is_nested else None
    return version, address, tensor.shape, tensor.dtype, tensor.device


def _copy(targets: list[Tensor], sources: list[Tensor]) -> None:
    groups: dict[Any, tuple[list[Tensor], list[Tensor]]] = {}
    for target, source in zip(targets, sources, strict=True):
        if target.layout != torch.strided:
            with torch.inference_mode(target.is_inference()), torch.no_grad():
                target.copy_(source)
            continue
        if 0 in target.stride() and target.numel() > 1:  # expanded: several entries lie at one address
            once = tuple(slice(0, 1) if step == 0 else slice(None) for step in target.stride())
            target, source = target.detach()[once], source[once]
        group = groups.setdefault((target.dtype, target.device, target.is_inference()), ([], []))
        group[0].append(target)
        group[1].append(source)
    for (_, _, inference), (into, out_of) in groups.items():
        with torch.inference_mode(inference), torch.no_grad():
            torch._foreach_copy_(into, out_of)


def _write_array(array: np.ndarray, before: np.ndarray) -> None:
    if array.shape != before.shape:
        array.resize(before.shape, refcheck=False)
    np.copyto(array, before)


def _own_count(value: Any) -> Any:
    """A copy of an ``itertools.count``, which goes on from the same number and can't be set back; others as is."""
    return copy.copy(value) if type(value) is itertools.count else value


def _slots(kind: type[Any]) -> list[str]:
    found = []
    for base in kind.__mro__:
        slots = base.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if not name.endswith("__"):
                private = name.startswith("__")
                found.append(f"_{base.__name__.lstrip('_')}{name}" if private else name)
    return found


def _reset_of(generator: Any) -> Callable[[], Any]:
    """A function that sets a random generator back to its present state."""
    if isinstance(generator, (np.random.Generator, np.random.BitGenerator)):
        source = generator.bit_generator if isinstance(generator, np.random.Generator) else generator
        bits = copy.deepcopy(source.state)
        return lambda: setattr(source, "state", bits)
    read, write = ("getstate", "setstate") if isinstance(generator, random.Random) else ("get_state", "set_state")
    state = getattr(generator, read)()
    return lambda: getattr(generator, write)(state)
