"""The file ``model.lcs``: a subspace as tensors and data, so that loading needs no code but this."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lightning_lcs.graph.channels.plan import ChannelPlan
from lightning_lcs.graph.dry_run import rehearse
from lightning_lcs.graph.network import ENDPOINT_NAME
from lightning_lcs.graph.program import Program
from lightning_lcs.io import checkpoint, container
from lightning_lcs.io.graph_json import network_from_data, network_to_data
from lightning_lcs.io.loaded_network import StoredModule, StoredNetwork, runs_at_any_size
from lightning_lcs.io.plan_json import checked_name
from lightning_lcs.runtime.memory_format import check_layout, lay_out
from lightning_lcs.runtime.runtime import Runtime
from lightning_lcs.subspace import endpoints
from lightning_lcs.subspace.level_table import NamedLevel, table_from_data, table_to_data
from lightning_lcs.subspace.modes.registry import (
    Mode,
    Structured,
    check_alpha,
    check_subspace,
    mode_to_dict,
    parse_mode,
)
from lightning_lcs.subspace.network import TOGETHER, Part
from lightning_lcs.subspace.norms import state_without_statistics

if TYPE_CHECKING:
    from lightning_lcs.model import SubspaceModel

VERSION = 3
MOST_NAMES = 100_000
_COMMON = ("version", "mode", "subspace", "line_parameters", "norm", "aliases", "statistics", "level_table", "classes")
_OF_NETWORK = (*_COMMON, "network", "any_size", "scales", "unsaved")
_OF_TENSORS = (*_COMMON, "shapes", "ranges")
_KINDS = ("parameter", "buffer", "constant", "endpoint_0", "statistics", "ranges", "state")


# -- saving -----------------------------------------------------------------------------------------------------------


def save(
    model: SubspaceModel, path: str | os.PathLike[str], table: Sequence[NamedLevel], class_names: Sequence[str]
) -> None:
    """See :meth:`SubspaceModel.save`."""
    if len(model.parts) > 1:
        raise NotImplementedError(f"save() writes a single network, and this subspace model has several; {TOGETHER}")
    part = model.parts[0]
    header = {
        "version": VERSION,
        "mode": mode_to_dict(model.mode),
        "subspace": model.subspace,
        "line_parameters": model.line_parameters,
        "norm": model.norm,
        "level_table": table_to_data(table),
        "classes": checked_classes(list(class_names)),
        "statistics": list(model.statistics),
    }
    if isinstance(model.mode, Structured):
        own, more = _network_tensors(model, part)
    else:
        own, more = _module_tensors(model, part)
    write(path, {**header, **more}, own)


def write(path: str | os.PathLike[str], header: Mapping[str, Any], own: Mapping[str, Tensor]) -> None:
    """Write a file; tensors that go by several names once."""
    tensors: dict[str, Tensor] = {}
    aliases = _put(tensors, own)
    container.write(path, {**header, "aliases": aliases}, tensors)


def _network_tensors(model: SubspaceModel, part: Part) -> tuple[dict[str, Tensor], dict[str, Any]]:
    program, network = part.network.in_mode(False), part.network
    parameters = {name for name, _ in network.module.named_parameters(remove_duplicate=False)}
    saved = network.module.state_dict().keys()
    own = {f"{'parameter' if n in parameters else 'buffer'}.{n}": network.tensor(n) for n in program.names}
    own |= {f"endpoint_0.{n}": value for n, value in part.endpoints.items() if n in program.names}
    own |= {f"constant.{k}": value for k, value in enumerate(program.trace.constants.values())}
    for number, level in enumerate(model.statistics.values()):
        own |= {f"statistics.{number}.{n}": value for n, value in level.items() if n in program.names}
    data = network_to_data(program, network.plan)
    # What can't be loaded again is refused here, before the old file is replaced.
    made, plan = network_from_data(data, list(program.trace.constants.values()))
    check_network(made, plan, model.mode, {n: network.tensor(n).dtype for n in program.names})
    return own, {
        "network": data,
        "any_size": runs_at_any_size(network),
        "scales": [name for name in part.scale_names() if name in program.names],
        "unsaved": [name for name in program.names if name not in saved],
    }


def _module_tensors(model: SubspaceModel, part: Part) -> tuple[dict[str, Tensor], dict[str, Any]]:
    own = {f"state.{name}": value for name, value in part.network.module.state_dict().items()}
    own |= {f"endpoint_0.{name}": value for name, value in part.endpoints.items()}
    for kind, levels in (("statistics", model.statistics), ("ranges", model.ranges)):
        for number, level in enumerate(levels.values()):
            own |= {f"{kind}.{number}.{name}": value for name, value in level.items()}
    return own, {"shapes": checkpoint.state_of(model)["shapes"], "ranges": list(model.ranges)}


def _put(tensors: dict[str, Tensor], values: Mapping[str, Tensor]) -> dict[str, str]:
    """Add tensors; one that goes by several names is written once, and the other names are its aliases."""
    aliases: dict[str, str] = {}
    seen: dict[Any, str] = {}
    for name, value in values.items():
        checked_name(name)
        key = (
            (value.data_ptr(), value.shape, value.stride(), value.dtype, name.partition(".")[0])
            if value.numel()
            else name
        )
        if key in seen:
            aliases[name] = seen[key]
        else:
            seen[key] = name
            tensors[name] = value.detach()
    return aliases


def checked_classes(names: Any) -> list[str]:
    """Names of classes.

    Raises:
        ValueError: they are no list of text.
    """
    if not isinstance(names, list) or len(names) > MOST_NAMES or not all(isinstance(n, str) for n in names):
        raise ValueError(f"class_names={str(names)[:100]} is no list of at most {MOST_NAMES:,} names")
    return names


# -- loading ----------------------------------------------------------------------------------------------------------


def load(
    cls: type[SubspaceModel], path: str | os.PathLike[str], module: nn.Module | None = None, layout: str = "auto"
) -> SubspaceModel:
    """See :meth:`SubspaceModel.load`."""
    check_layout(layout)
    header, stored = container.read(path)
    try:
        content = Content(header, stored)
        if isinstance(content.mode, Structured):
            if module is not None:
                raise ValueError("it holds its network: leave module= out")
            return _load_network(cls, content, content.mode, layout)
        if module is None:
            name = header["mode"]["name"]
            raise ValueError(
                f"it is {name}, and holds the tensors of a network without its code: give SubspaceModel.load(path, "
                "module=...) the network that it was trained from"
            )
        return _load_module(cls, content, module)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, RecursionError) as error:
        reason = str(error) if isinstance(error, ValueError) else repr(error)
        raise ValueError(f"{os.fspath(path)} can't be loaded: {reason}") from error


class Content:
    """What every file holds, checked."""

    def __init__(self, header: dict[str, Any], stored: Mapping[str, Tensor]) -> None:
        if header.get("version") != VERSION:
            raise ValueError(
                f"the file was written in format {repr(header.get('version'))[:100]}, and this lightning-lcs reads "
                f"{VERSION}; install the version that wrote it"
            )
        self.header = header
        self.mode: Mode = parse_mode(header["mode"])
        expected = _OF_NETWORK if isinstance(self.mode, Structured) else _OF_TENSORS
        if header.keys() != set(expected):
            raise ValueError(f"its header has the keys {sorted(header)}, and not {sorted(expected)}")
        self.subspace = check_subspace(header["subspace"])
        self.table = table_from_data(header["level_table"])
        self.classes = tuple(checked_classes(header["classes"]))
        self._tensors = dict(stored)
        for name, original in header["aliases"].items():
            if name in self._tensors or original not in stored or _kind(name) != _kind(original):
                raise ValueError(f"its alias {name[:100]!r} stands for {str(original)[:100]!r}, which is not possible")
            self._tensors[name] = stored[original]
        unknown = next((name for name in self._tensors if _kind(name) not in _KINDS), None)
        if unknown is not None:
            raise ValueError(f"it holds the tensor {unknown[:100]!r}, which has no meaning")

    def of(self, kind: str) -> dict[str, Tensor]:
        """Tensors of one kind, by qualified name."""
        return {checked_name(n.partition(".")[2]): value for n, value in self._tensors.items() if _kind(n) == kind}

    def levels(self, kind: str) -> dict[float, dict[str, Tensor]]:
        """Tensors of each level."""
        alphas = self.header[kind]
        if not isinstance(alphas, list) or len({check_alpha(alpha) for alpha in alphas}) < len(alphas):
            raise ValueError(f"its {kind} are not of levels in [0, 1], each once")
        found: dict[float, dict[str, Tensor]] = {float(alpha): {} for alpha in alphas}
        for name, value in self.of(kind).items():
            number, _, own = name.partition(".")
            found[float(alphas[int(number)])][own] = value
        return found


def _kind(name: str) -> str:
    return name.partition(".")[0]


def _load_network(cls: type[SubspaceModel], content: Content, mode: Structured, layout: str) -> SubspaceModel:
    header = content.header
    constants = [value for _, value in sorted(content.of("constant").items(), key=lambda item: int(item[0]))]
    parameters, buffers, line = content.of("parameter"), content.of("buffer"), content.of("endpoint_0")
    program, plan = network_from_data(header["network"], constants)
    own = {**buffers, **parameters}
    if (
        own.keys() != set(program.names)
        or own.keys() != plan.tensors.keys()
        or len(own) < len(buffers) + len(parameters)
    ):
        raise ValueError("its tensors are not those that its network takes")
    _same_shapes("its plan", {name: plan.selection(1.0).shape(name) for name in own}, own)
    _same_shapes("endpoint 0", {name: list(own[name].shape) for name in line}, line)
    if not line.keys() <= parameters.keys() or any(value.dtype != own[name].dtype for name, value in line.items()):
        raise ValueError("its line holds something else than parameters of its network")
    if not isinstance(header["any_size"], bool) or not set(header["scales"]) | set(header["unsaved"]) <= own.keys():
        raise ValueError("its header names tensors that its network does not take")
    check_network(program, plan, mode, {name: value.dtype for name, value in own.items()})
    module = _module(parameters, buffers, line, header["unsaved"])
    network = StoredNetwork(module, header["network"], constants, header["any_size"], program, plan)
    model = cls(module, subspace="point")
    part = Part("", "", network, endpoints=_endpoints_of(module, line), scales=tuple(header["scales"]), told=True)
    model.parts, model.mode, model.subspace = [part], mode, content.subspace
    model.line_parameters, model.norm = str(header["line_parameters"]), str(header["norm"])
    statistics = content.levels("statistics")
    expected = {name for mean, (variance, _) in program.statistics.items() for name in (mean, variance)}
    for alpha, values in statistics.items():
        at = part.selection(mode, alpha)
        _same_shapes(f"the statistics of alpha={alpha:g}", {name: at.shape(name) for name in expected}, values)
    model.statistics = statistics
    model.levels, model.class_names, model.settled = content.table, content.classes, True
    model.training = False
    lay_out(part, mode, statistics, layout, max((level.macs for level in content.table), default=0))
    model.runtime = Runtime(part, mode)
    return model


def check_network(program: Program, plan: ChannelPlan, mode: Mode, dtypes: Mapping[str, torch.dtype]) -> None:
    """Raise ``ValueError`` where a network can't run at its full or at its least width."""
    rehearse(program, plan.selection(1.0), dtypes, 2)
    rehearse(program, plan.selection(mode.width(0.0)), dtypes, 1)


def _same_shapes(what: str, expected: Mapping[str, Sequence[int]], values: Mapping[str, Tensor]) -> None:
    if expected.keys() != values.keys():
        name = sorted(expected.keys() ^ values.keys())[0]
        raise ValueError(f"{what} and its network have different tensors: only one has {name!r}")
    for name, shape in expected.items():
        if list(shape) != list(values[name].shape):
            raise ValueError(f"{what} has shape {list(values[name].shape)} for {name!r}, and its network {list(shape)}")


def _module(
    parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor], line: Mapping[str, Tensor], unsaved: Iterable[str]
) -> StoredModule:
    """A module that holds tensors under their names; tensors that are one stay one."""
    root = StoredModule()
    shared: dict[int, nn.Parameter] = {}
    for name, value in parameters.items():
        holder, leaf = _holder(root, name)
        holder.register_parameter(leaf, shared.setdefault(id(value), nn.Parameter(value, requires_grad=False)))
    for name, value in buffers.items():
        holder, leaf = _holder(root, name)
        holder.register_buffer(leaf, value, persistent=name not in unsaved)
    for name, value in line.items():
        holder, leaf = _holder(root, name)
        if ENDPOINT_NAME not in holder._modules:
            holder.add_module(ENDPOINT_NAME, endpoints.Endpoint())
        end = shared.setdefault(id(value), nn.Parameter(value, requires_grad=False))
        holder.get_submodule(ENDPOINT_NAME).register_parameter(leaf, end)
    endpoints.settle(root)
    return root


def _endpoints_of(module: nn.Module, names: Iterable[str]) -> dict[str, nn.Parameter]:
    found = {}
    for name in names:
        path, _, leaf = name.rpartition(".")
        found[name] = module.get_submodule(path).get_submodule(ENDPOINT_NAME).get_parameter(leaf)
    return found


def _holder(root: nn.Module, name: str) -> tuple[nn.Module, str]:
    *path, leaf = name.split(".")
    holder = root
    for part in path:
        if part not in holder._modules:
            holder.add_module(part, nn.Module())
        holder = holder.get_submodule(part)
    return holder, leaf


def _load_module(cls: type[SubspaceModel], content: Content, module: nn.Module) -> SubspaceModel:
    header, weights, line = content.header, content.of("state"), content.of("endpoint_0")
    own = set(module.state_dict()) if header["norm"] == "keep" else state_without_statistics(module)
    mine = {name: list(value.shape) for name, value in module.state_dict().items() if name in own}
    _same_shapes("the file", mine, weights)
    levels = {kind: content.levels(kind) for kind in ("statistics", "ranges")}
    for name, value in ((n, v) for of in levels.values() for tensors in of.values() for n, v in tensors.items()):
        expected = [2] if name.endswith(".input_range") else mine.get(name)
        if list(value.shape) != expected:
            raise ValueError(
                f"it has a tensor of shape {list(value.shape)} for {name!r} of a level, and not {expected}"
            )
    trained = endpoints.is_settled(module)
    state = {
        **{key: header[key] for key in ("mode", "line_parameters", "norm", "shapes")},
        "version": checkpoint.VERSION,
        "subspace": content.subspace,
        "targets": [""],
        "endpoint_0": line,
        **{
            kind: [{"alpha": alpha, "tensors": tensors} for alpha, tensors in of.items()] for kind, of in levels.items()
        },
    }
    model = cls(module, mode=content.mode, **{key: header[key] for key in ("subspace", "line_parameters", "norm")})
    try:
        checkpoint.check_state(model, state)
    except ValueError:
        if not trained:
            endpoints.detach(module)
        raise
    module.load_state_dict(weights)
    checkpoint.load_state(model, state)
    model.levels, model.class_names = content.table, content.classes
    return model.eval()
