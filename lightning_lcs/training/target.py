"""The network or the subspace model that a LightningModule holds, and the guard that every step runs through it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torchmetrics import Metric, MetricCollection

from lightning_lcs.model import SubspaceModel

Target = str | Sequence[str] | None


def find_targets(module: LightningModule, target: Target, final: bool = True) -> dict[str, nn.Module] | None:
    """The networks to compress, by their path in the module ("" for the module itself).

    Args:
        module: The user's LightningModule.
        target: A path, several paths, "self" for the module's own forward, or ``None`` to find the network.
        final: Whether the module has built all its networks.

    Returns:
        The networks; ``None`` where the module has none, or has not built the named one yet.

    Raises:
        ValueError: A path does not exist, or no path was given and there is more than one candidate.
    """
    if target == "self":
        return {"": module}
    if target is not None:
        paths = [target] if isinstance(target, str) else list(target)
        if not final and any(_missing(module, path) for path in paths):
            return None
        return _uncompiled({path: _named(module, path) for path in paths})
    candidates = {name: child for name, child in module.named_children() if _is_candidate(child)}
    if len(candidates) > 1:
        raise ValueError(
            f"target is not given, and {type(module).__name__} has several networks: {', '.join(candidates)}; name one "
            f"(target={next(iter(candidates))!r}), a list of them, or target='self' for the module's own forward"
        )
    return _uncompiled(candidates) or None


def _uncompiled(targets: dict[str, nn.Module]) -> dict[str, nn.Module]:
    for path, network in targets.items():
        if "_orig_mod" in network._modules:
            raise ValueError(
                f"{path} was wrapped by torch.compile, and levels are cut from the network inside: compile it in place "
                f"({path}.compile()), or name what is inside with target={path + '._orig_mod'!r}"
            )
    return targets


def _missing(module: LightningModule, path: str) -> bool:
    try:
        module.get_submodule(path)
    except AttributeError:
        return True
    return False


def _named(module: LightningModule, path: str) -> nn.Module:
    try:
        return module.get_submodule(path)
    except AttributeError as error:
        parent, where = _deepest(module, path)
        names = ", ".join(f"{where}.{name}" if where else name for name, _ in parent.named_children()) or "none"
        owner = repr(where) if where else type(module).__name__
        raise ValueError(
            f"target={path!r} does not exist in {type(module).__name__}; the children of {owner} are: {names}"
        ) from error


def _deepest(module: nn.Module, path: str) -> tuple[nn.Module, str]:
    """The deepest module on a path that exists, and its own path."""
    found: list[str] = []
    for name in path.split("."):
        if name not in module._modules:
            break
        module = module.get_submodule(name)
        found.append(name)
    return module, ".".join(found)


def _is_candidate(child: nn.Module) -> bool:
    return not _is_judge(child) and any(parameter.requires_grad for parameter in child.parameters())


def _is_judge(child: nn.Module) -> bool:
    loss = type(child).__module__ == "torch.nn.modules.loss" or type(child).__name__.lower().endswith("loss")
    return loss or isinstance(child, (Metric, MetricCollection))


def find_subspace_model(trainer: Trainer, module: LightningModule) -> tuple[SubspaceModel, bool]:
    """The subspace model, and whether an ``LCSCallback`` in the trainer manages it.

    Raises:
        RuntimeError: Neither the trainer's callbacks nor the module hold exactly one.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        model = getattr(callback, "subspace_model", None)
        if isinstance(model, SubspaceModel):
            return model, True
    models = [child for child in module.modules() if isinstance(child, SubspaceModel)]
    if len(models) != 1:
        raise RuntimeError(
            f"{type(module).__name__} holds {len(models)} subspace models, and the trainer has no LCSCallback: add "
            "LCSCallback(), or wrap the network in one SubspaceModel"
        )
    return models[0], False


class NeverRanError(RuntimeError):
    """A step never called the network."""


@dataclasses.dataclass
class Guard:
    """Whether a guarded step skipped its batch."""

    skipped: bool = False


@contextlib.contextmanager
def guarded(model: SubspaceModel, level: float, step: str) -> Iterator[Guard]:
    """Check that the network runs inside the block (unless the step skips its batch), and only through its forward.

    Raises:
        RuntimeError: The network did not run, one of its submodules was called without its forward, which would have
            run uncompressed, or the step used something that the network's own code would have kept.
    """
    guard = Guard()
    if model.mode.is_full(level):
        yield guard
        return
    inner = {
        id(child): f"{type(part.network.module).__name__}.{name}"
        for part in model.parts
        for name, child in part.network.module.named_modules()
        if child is not part.network.module
        and not _is_judge(child)
        and any(p is not None for p in child._parameters.values())
    }
    for part in model.parts:
        inner.pop(id(part.network.module), None)
    calls = [part.calls for part in model.parts]

    def refuse(child: nn.Module, args: Any) -> None:
        running = any(part.running for part in model.parts) or torch.compiler.is_exporting()
        if id(child) in inner and not running:
            raise RuntimeError(
                f"{step} called {inner[id(child)]} directly at alpha={level:g}, past the forward of the network, so "
                "that it would run uncompressed; call the network itself, or name the parts that are called as "
                "target=['...', '...']"
            )

    handle = nn.modules.module.register_module_forward_pre_hook(refuse)
    try:
        with contextlib.ExitStack() as stack:
            for part in model.parts:
                stack.enter_context(part.network.withholding())
            yield guard
    finally:
        handle.remove()
    if guard.skipped:
        return
    for part, before in zip(model.parts, calls, strict=True):
        if part.calls == before:
            name = part.name or type(part.network.module).__name__
            raise NeverRanError(
                f"{step} never called {name}, so that nothing ran at alpha={level:g}; name the network that it calls "
                "with target="
            )
