"""The second endpoint of a line, stored beside the parameters that it belongs to."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from lightning_lcs.functional.subspace import redraw
from lightning_lcs.graph.traced_network import ENDPOINT_NAME
from lightning_lcs.subspace.weights.line import Line

NOTHING_ON_LINE = {
    "norm": "no normalisation layer with scale and shift",
    "backbone": "no parameter outside the head",
    "all": "no parameter",
}


class Endpoint(nn.Module):
    """Endpoint 0 of the parameters of one module, stored in a child of that module under the same names.

    In this place every way to build an optimizer puts it into the group of its partner: ``parameters()`` of any
    ancestor, or groups by name, by submodule or by number of dimensions. The child saves and loads nothing, so that
    every ``state_dict`` keeps the keys of the user's own network.

    A hidden endpoint is an attribute of its module and not one of its children, so that ``parameters()`` of any
    ancestor are those of the user's own network. Copies and pickles of the module take it along.

    Attributes:
        trained: Whether the endpoint was trained or loaded, so that it must not be initialised again.
    """

    trained = False

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        pass

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        pass


def _head(module: nn.Module) -> nn.Module:
    """The last linear layer of a network, in order of registration; an empty module if there is none."""
    linear = [child for child in module.modules() if isinstance(child, nn.Linear)]
    return linear[-1] if linear else nn.Module()


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a normalisation layer, judged by torch's classes or else by its class name."""
    known = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)
    return isinstance(module, known) or "Norm" in type(module).__name__


def chosen_subspace(subspace: str | None, default: str, modules: Iterable[nn.Module], line: Line) -> str:
    """The subspace that was given, or else the default of the mode; a point if no parameter may lie on the line."""
    if subspace is not None:
        return subspace
    if any(next(_on_line(module, line.parameters), None) for module in modules):
        return default
    return "point"


def attach(modules: Sequence[nn.Module], line: Line, seed: int) -> list[dict[str, nn.Parameter]]:
    """Give the parameters that lie on the line a second endpoint.

    A network whose second endpoints were trained by an earlier callback keeps them as they are.

    Args:
        modules: The networks. Their modules get children named ``lcs_endpoint_0``; after an error none of them has any.
        line: The options of the line: which parameters lie on it, and how endpoint 0 starts (see
            :func:`lightning_lcs.functional.subspace.redraw`).
        seed: The seed of the independent draws.

    Returns:
        For each network, endpoint 0 of each parameter on the line by its qualified name. Tied parameters share one
        endpoint, within a network and between networks.

    Raises:
        ValueError: No parameter of any network lies on the line, or a network was trained on a line of other
            parameters.
    """
    which = line.parameters
    for module in modules:
        show(module.modules())  # of a copy that was made while a trainer ran
    trained = any(is_trained(module) for module in modules)
    on_line = [list(_on_line(module, which)) for module in modules]
    if not any(on_line):
        raise ValueError(
            f"Line(parameters={which!r}) finds {NOTHING_ON_LINE[which]} in the network; use "
            "line=Line(parameters='all') or subspace='point'"
        )
    if trained:
        return [_existing(module, entries, which) for module, entries in zip(modules, on_line, strict=True)]
    for module in modules:
        detach(module)
    partners: dict[int, nn.Parameter] = {}
    lines = []
    for module, entries in zip(modules, on_line, strict=True):
        endpoints: dict[str, nn.Parameter] = {}
        for name, child, leaf, parameter in entries:
            if id(parameter) not in partners:
                own = parameter.detach().clone()
                partners[id(parameter)] = nn.Parameter(own, requires_grad=parameter.requires_grad)
            if ENDPOINT_NAME not in child._modules:
                child.add_module(ENDPOINT_NAME, Endpoint())
            child.get_submodule(ENDPOINT_NAME).register_parameter(leaf, partners[id(parameter)])
            endpoints[name] = partners[id(parameter)]
        restart(module, endpoints, line.start, seed)
        lines.append(endpoints)
    return lines


def _existing(
    module: nn.Module, entries: Sequence[tuple[str, nn.Module, str, nn.Parameter]], which: str
) -> dict[str, nn.Parameter]:
    """The second endpoints that a network already has."""
    expected = [name for name, *_ in entries]
    have = [name.replace(f"{ENDPOINT_NAME}.", "") for name, _ in _endpoint_parameters(module)]
    if sorted(expected) != sorted(have):
        raise ValueError(
            f"the network was trained on a line of other parameters than those of Line(parameters={which!r}): give the "
            "option that it was trained with, or a new network"
        )
    return {name: child.get_submodule(ENDPOINT_NAME).get_parameter(leaf) for name, child, leaf, _ in entries}


def _endpoint_parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if ENDPOINT_NAME in name.split("."):
            yield name, parameter


def _endpoint_of(holder: nn.Module) -> Any:
    """The second endpoint of one module, shown or hidden; ``None`` where it has none."""
    return holder._modules.get(ENDPOINT_NAME, holder.__dict__.get(ENDPOINT_NAME))


def is_trained(module: nn.Module) -> bool:
    """Whether the second endpoints of a network were trained or loaded."""
    endpoints = [_endpoint_of(child) for child in module.modules()]
    return any(endpoint.trained for endpoint in endpoints if endpoint is not None)


def mark_trained(module: nn.Module) -> None:
    """Mark a network's second endpoints as trained or loaded."""
    for child in module.modules():
        endpoint = _endpoint_of(child)
        if endpoint is not None:
            endpoint.trained = True


def hide(modules: Iterable[nn.Module]) -> list[nn.Module]:
    """Hide the second endpoints of modules, and return the modules that have one."""
    holders = [module for module in list(modules) if _endpoint_of(module) is not None]
    for holder in holders:
        if ENDPOINT_NAME in holder._modules:
            holder.__dict__[ENDPOINT_NAME] = holder._modules.pop(ENDPOINT_NAME)
    return holders


def show(modules: Iterable[nn.Module]) -> None:
    """Make the hidden second endpoints of modules their children again, the last ones."""
    for module in list(modules):
        if ENDPOINT_NAME in module.__dict__:
            module._modules[ENDPOINT_NAME] = module.__dict__.pop(ENDPOINT_NAME)


def copy_into(module: nn.Module, other: nn.Module) -> None:
    """Give a copy of a module copies of its second endpoints, hidden where they are hidden in the module."""
    memo: dict[int, Any] = {}  # parameters that are one stay one
    for path, child in list(module.named_modules()):
        endpoint = _endpoint_of(child)
        if endpoint is not None:
            twin = other.get_submodule(path)
            twin._modules.pop(ENDPOINT_NAME, None)
            place = twin._modules if ENDPOINT_NAME in child._modules else twin.__dict__
            place[ENDPOINT_NAME] = copy.deepcopy(endpoint, memo).to(next(twin.parameters()).device)


def paired(module: nn.Module, other: nn.Module) -> Iterator[tuple[nn.Parameter, nn.Parameter]]:
    """The parameters of the second endpoints of a module, and those of its copy."""
    for path, child in list(module.named_modules()):
        endpoint = _endpoint_of(child)
        if endpoint is not None:
            twin = _endpoint_of(other.get_submodule(path))
            yield from ((w0, twin.get_parameter(leaf)) for leaf, w0 in endpoint.named_parameters())


def follow(pairs: Iterable[tuple[nn.Parameter, nn.Parameter]]) -> None:
    """Freeze, release and move each endpoint 0 as its partner was while it was hidden.

    Args:
        pairs: ``(w0, w1)`` of every parameter on the line.
    """
    for w0, w1 in pairs:
        w0.requires_grad_(w1.requires_grad)
        if (w0.device, w0.dtype) != (w1.device, w1.dtype):
            w0.data = w0.data.to(w1.device, w1.dtype)
            w0.grad = None if w0.grad is None else w0.grad.to(w1.device, w1.dtype)


def _on_line(module: nn.Module, which: str) -> Iterator[tuple[str, nn.Module, str, nn.Parameter]]:
    children = list(module.named_modules())
    shared = {id(parameter) for parameter in _head(module).parameters()} if which == "backbone" else set()
    for path, child in children:
        if isinstance(child, Endpoint) or (which == "norm" and not is_norm(child)):
            continue
        for leaf, parameter in list(child._parameters.items()):
            if parameter is not None and parameter.is_floating_point() and id(parameter) not in shared:
                yield f"{path}.{leaf}" if path else leaf, child, leaf, parameter


@torch.no_grad()
def restart(module: nn.Module, endpoints: dict[str, nn.Parameter], start: str, seed: int) -> None:
    """Set endpoint 0 from the present weights; see :func:`attach`."""
    generator = torch.Generator().manual_seed(seed)
    done: set[int] = set()
    for name, endpoint in endpoints.items():
        if id(endpoint) not in done:
            done.add(id(endpoint))
            parameter = module.get_parameter(name)
            # A frozen parameter, such as that of a teacher, would keep what is drawn for it.
            drawn = start == "independent" and parameter.requires_grad
            endpoint.copy_(redraw(parameter, generator) if drawn else parameter)


def detach(module: nn.Module) -> None:
    """Remove every second endpoint."""
    for child in list(module.modules()):
        child._modules.pop(ENDPOINT_NAME, None)
        child.__dict__.pop(ENDPOINT_NAME, None)


def user_parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The network's own parameters by qualified name, each once, without second endpoints."""
    for name, parameter in module.named_parameters():
        if ENDPOINT_NAME not in name.split("."):
            yield name, parameter
