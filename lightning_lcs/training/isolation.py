"""Call a module's step again and leave the module's state and logs unchanged."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from lightning_lcs.model import SubspaceModel


@contextlib.contextmanager
def quiet(module: LightningModule, model: SubspaceModel, log: Callable[..., None] | None = None) -> Iterator[None]:
    """Inside the block, redirect what the module logs and reset its torchmetrics.

    Afterwards both are as before, and so are the module's plain attributes and collections (a best value, a counter, a
    list of outputs) and the buffers outside the network (below alpha = 1 nothing writes the buffers inside).

    Args:
        module: The user's LightningModule.
        model: The subspace model of its network.
        log: Takes the calls that reach Lightning's ``log``. The default is to drop them.
    """
    with metrics_set_aside(module), _attributes_kept(module), _buffers_kept(module, model), _logs_to(log, module):
        yield


@contextlib.contextmanager
def _logs_to(sink: Callable[..., None] | None, module: LightningModule) -> Iterator[None]:
    """Inside the block, replace Lightning's own ``log`` for one module; a ``log`` that the user wrote on top runs.

    The method of the class is replaced, and other modules keep their behaviour.
    """
    base = next(kind for kind in reversed(type(module).__mro__) if "log" in kind.__dict__)
    original = base.log  # type: ignore[attr-defined]

    @functools.wraps(original)
    def log(self: LightningModule, name: str, value: Any, *args: Any, **kwargs: Any) -> None:
        if self is not module:
            original(self, name, value, *args, **kwargs)
        elif sink is not None:
            sink(name, value, *args, **kwargs)

    base.log = log  # type: ignore[attr-defined]
    try:
        yield
    finally:
        base.log = original  # type: ignore[attr-defined]


@contextlib.contextmanager
def _attributes_kept(module: LightningModule) -> Iterator[None]:
    own = {name: value for name, value in module.__dict__.items() if name not in _internal_names()}
    plain = {k: v for k, v in own.items() if isinstance(v, (bool, int, float, str, Tensor, type(None)))}
    collections = {k: (v, copy.copy(v)) for k, v in own.items() if isinstance(v, (list, dict, set, deque))}
    try:
        yield
    finally:
        module.__dict__.update(plain)
        for name, (value, before) in collections.items():
            module.__dict__[name] = value
            value.clear()
            value.extend(before) if isinstance(value, (list, deque)) else value.update(before)


@functools.cache
def _internal_names() -> frozenset[str]:
    return frozenset(LightningModule().__dict__)


@contextlib.contextmanager
def _buffers_kept(module: LightningModule, model: SubspaceModel) -> Iterator[None]:
    inside = {id(child) for part in model.parts for child in part.network.module.modules()}
    if id(module) in inside:  # target="self": below alpha = 1 the network's buffers are not written
        inside.remove(id(module))
    # Batch norm writes its statistics without increasing their version.
    kept = [
        (child._buffers, name, buffer, buffer.detach().clone(), None if _is_norm(child) else buffer._version)
        for child in module.modules()
        if id(child) not in inside and not isinstance(child, Metric)
        for name, buffer in child._buffers.items()
        if buffer is not None
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for owner, name, buffer, before, version in kept:
                owner[name] = buffer
                if buffer._version != version:
                    buffer.copy_(before)


def _is_norm(child: torch.nn.Module) -> bool:
    return isinstance(child, torch.nn.modules.batchnorm._NormBase)


@contextlib.contextmanager
def metrics_set_aside(module: torch.nn.Module) -> Iterator[None]:
    """Inside the block, every torchmetrics object of the module is reset; afterwards it is as before."""
    metrics = [child for child in module.modules() if isinstance(child, (Metric, MetricCollection))]
    saved = [(metric, _attributes(metric)) for metric in metrics]
    try:
        for metric in metrics:
            if isinstance(metric, Metric):
                # reset() empties list states in place, so that it gets new lists.
                for name, default in metric._defaults.items():
                    if isinstance(default, list):
                        setattr(metric, name, [])
                metric.reset()
        yield
    finally:
        for metric, attributes in saved:
            metric.__dict__.clear()
            metric.__dict__.update(attributes)


def _attributes(metric: Metric | MetricCollection) -> dict[str, Any]:
    """The attributes, with containers of states and groups copied one level deep."""
    plain: dict[str, Any] = {k: list(v) if isinstance(v, list) else v for k, v in metric.__dict__.items()}
    groups = plain.get("_groups")
    if isinstance(groups, dict):
        plain["_groups"] = {key: list(value) for key, value in groups.items()}
    return plain
