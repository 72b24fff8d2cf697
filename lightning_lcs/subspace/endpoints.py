"""The second endpoint of a line, kept beside the parameters that it belongs to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from lightning_lcs.functional.subspace import redraw
from lightning_lcs.graph.network import ENDPOINT_NAME
from lightning_lcs.subspace.line import Line

NOTHING_ON_LINE = {
    "norm": "no normalisation layer with scale and shift",
    "backbone": "no parameter outside the head",
    "all": "no parameter",
}


class Endpoint(nn.Module):
    """Endpoint 0 of the parameters of one module, as a child of that module under the same names.

    There every way to build an optimizer finds it in its partner's group: ``parameters()`` of any ancestor, groups by
    name, by submodule, by number of dimensions. It saves and loads nothing, so that every ``state_dict`` stays the
    user's own.

    Attributes:
        trained: it was trained or loaded, and is not to start anew.
    """

    trained = False

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        pass

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        pass


def _head(module: nn.Module) -> nn.Module:
    """The last linear layer of a network, by order of registration; an empty module where it has none."""
    linear = [child for child in module.modules() if isinstance(child, nn.Linear)]
    return linear[-1] if linear else nn.Module()


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a normalisation layer: by torch's classes, else by its name."""
    known = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)
    return isinstance(module, known) or "Norm" in type(module).__name__


def chosen_subspace(subspace: str | None, default: str, modules: Iterable[nn.Module], line: Line) -> str:
    """The subspace that was given, or else the mode's default: a point where nothing may lie on the line."""
    if subspace is not None:
        return subspace
    if any(next(_on_line(module, line.parameters), None) for module in modules):
        return default
    return "point"


def attach(modules: Sequence[nn.Module], line: Line, seed: int) -> list[dict[str, nn.Parameter]]:
    """Give the parameters on the line their second endpoint.

    A network that has second endpoints already, trained by another callback, keeps them as they are.

    Args:
        modules: the networks; their modules get children named ``lcs_endpoint_0``. On an error none has any.
        line: which parameters lie on the line, and how endpoint 0 starts (see
            :func:`lightning_lcs.functional.subspace.redraw`).
        seed: of the independent draws.

    Returns:
        For each network: qualified name of each parameter on the line -> its endpoint 0. Tied parameters share one,
        within a network and between networks.

    Raises:
        ValueError: nothing of any network is on the line, or a trained line of other parameters.
    """
    which = line.parameters
    trained = any(is_trained(module) for module in modules)
    on_line = [list(_on_line(module, which)) for module in modules]
    if not any(on_line):
        raise ValueError(
            f"Line(parameters={which!r}) finds {NOTHING_ON_LINE[which]} in the network; use "
            "line=Line(parameters='all') or subspace='point'"
        )
    if trained:
        return [_existing(module, found, which) for module, found in zip(modules, on_line, strict=True)]
    for module in modules:
        detach(module)
    partners: dict[int, nn.Parameter] = {}
    lines = []
    for module, found in zip(modules, on_line, strict=True):
        endpoints: dict[str, nn.Parameter] = {}
        for name, child, leaf, parameter in found:
            if id(parameter) not in partners:
                copy = parameter.detach().clone()
                partners[id(parameter)] = nn.Parameter(copy, requires_grad=parameter.requires_grad)
            if ENDPOINT_NAME not in child._modules:
                child.add_module(ENDPOINT_NAME, Endpoint())
            child.get_submodule(ENDPOINT_NAME).register_parameter(leaf, partners[id(parameter)])
            endpoints[name] = partners[id(parameter)]
        restart(module, endpoints, line.start, seed)
        lines.append(endpoints)
    return lines


def _existing(
    module: nn.Module, found: Sequence[tuple[str, nn.Module, str, nn.Parameter]], which: str
) -> dict[str, nn.Parameter]:
    """The second endpoints that a network has."""
    expected = [name for name, *_ in found]
    have = [name.replace(f"{ENDPOINT_NAME}.", "") for name, _ in _endpoint_parameters(module)]
    if sorted(expected) != sorted(have):
        raise ValueError(
            f"the network was trained on a line of other parameters than Line(parameters={which!r}) means: give the "
            "option that it was trained with, or a new network"
        )
    return {name: child.get_submodule(ENDPOINT_NAME).get_parameter(leaf) for name, child, leaf, _ in found}


def _endpoint_parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if ENDPOINT_NAME in name.split("."):
            yield name, parameter


def is_trained(module: nn.Module) -> bool:
    """Whether second endpoints of a network were trained or loaded."""
    return any(isinstance(child, Endpoint) and child.trained for child in module.modules())


def mark_trained(module: nn.Module) -> None:
    """Mark a network's second endpoints as trained or loaded."""
    for child in module.modules():
        if isinstance(child, Endpoint):
            child.trained = True


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
    """Set endpoint 0 from the weights as they are now; see :func:`attach`."""
    generator = torch.Generator().manual_seed(seed)
    done: set[int] = set()
    for name, endpoint in endpoints.items():
        if id(endpoint) not in done:
            done.add(id(endpoint))
            parameter = module.get_parameter(name)
            endpoint.copy_(redraw(parameter, generator) if start == "independent" else parameter)


def detach(module: nn.Module) -> None:
    """Take every second endpoint away again."""
    for child in list(module.modules()):
        child._modules.pop(ENDPOINT_NAME, None)


def user_parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The network's own parameters by qualified name, each once, without second endpoints."""
    for name, parameter in module.named_parameters():
        if ENDPOINT_NAME not in name.split("."):
            yield name, parameter
