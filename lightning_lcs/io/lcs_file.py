"""The file ``model.lcs``: a subspace as tensors and data, which can be loaded without the code of the network."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_lcs.graph.channels.plan import ChannelPlan
from lightning_lcs.graph.dry_run import run_without_data
from lightning_lcs.graph.program import Program
from lightning_lcs.io import container
from lightning_lcs.io.graph_json import network_from_data, network_to_data
from lightning_lcs.io.loaded_network import StoredNetwork, runs_at_any_size, stored_endpoints, stored_module
from lightning_lcs.io.plan_json import checked_name
from lightning_lcs.subspace.axis import check_alpha
from lightning_lcs.subspace.curves.level_table import NamedLevel, table_from_data, table_to_data
from lightning_lcs.subspace.mode import Level, Mode
from lightning_lcs.subspace.modes.registry import check_subspace, saved_mode
from lightning_lcs.subspace.part import TOGETHER, Part
from lightning_lcs.subspace.state import SubspaceState

VERSION = 3
MOST_NAMES = 100_000
_COMMON = ("version", "mode", "subspace", "line_parameters", "norm", "aliases", "statistics", "level_table", "classes")
_OF_NETWORK = (*_COMMON, "network", "any_size", "scales", "unsaved")
_OF_TENSORS = (*_COMMON, "shapes", "ranges")
_KINDS = ("parameter", "buffer", "constant", "endpoint_0", "statistics", "ranges", "state")


# -- writing ----------------------------------------------------------------------------------------------------------


def save(
    path: str | os.PathLike[str],
    state: SubspaceState,
    parts: Sequence[Part],
    levels: Sequence[NamedLevel],
    class_names: Sequence[str],
) -> None:
    """Write a subspace; see :meth:`SubspaceModel.save`."""
    if len(parts) > 1:
        raise NotImplementedError(f"save() writes a single network, and this subspace model has several; {TOGETHER}")
    header = common_header(state, levels, class_names)
    if state.mode.runs_as_graph:
        tensors, details = _network_tensors(state, parts[0])
    else:
        tensors, details = _module_tensors(state, parts[0])
    write(path, {**header, **details}, tensors)


def common_header(state: SubspaceState, levels: Sequence[NamedLevel], class_names: Sequence[str]) -> dict[str, Any]:
    """The part of the header that every file has, without the aliases."""
    return {
        "version": VERSION,
        **state.settings(),
        "level_table": table_to_data(levels),
        "classes": checked_classes(list(class_names)),
        "statistics": list(state.statistics),
    }


def network_header(data: Any, any_size: bool, scales: Iterable[str], unsaved: Iterable[str]) -> dict[str, Any]:
    """The further part of the header of a file that holds its network.

    Args:
        data: The graph and the plan; see :func:`network_to_data`.
        any_size: Whether images of another size may be run; see :func:`runs_at_any_size`.
        scales: The names of the scales of the norms.
        unsaved: The names of the tensors that are not in the ``state_dict``.
    """
    return {"network": data, "any_size": any_size, "scales": list(scales), "unsaved": list(unsaved)}


def write(path: str | os.PathLike[str], header: Mapping[str, Any], own: Mapping[str, Tensor]) -> None:
    """Write a file; a tensor with several names is written once."""
    tensors: dict[str, Tensor] = {}
    aliases = _put(tensors, own)
    container.write(path, {**header, "aliases": aliases}, tensors)


def _network_tensors(state: SubspaceState, part: Part) -> tuple[dict[str, Tensor], dict[str, Any]]:
    program, network = part.network.in_mode(False), part.network
    parameters = {name for name, _ in network.module.named_parameters(remove_duplicate=False)}
    saved = network.module.state_dict().keys()
    own = {f"{'parameter' if n in parameters else 'buffer'}.{n}": network.tensor(n) for n in program.names}
    own |= {f"endpoint_0.{n}": value for n, value in part.endpoints.items() if n in program.names}
    own |= {f"constant.{k}": value for k, value in enumerate(program.trace.constants.values())}
    for number, level in enumerate(state.statistics.values()):
        own |= {f"statistics.{number}.{n}": value for n, value in level.items() if n in program.names}
    data = network_to_data(program, part.plan)
    # A network that can't be loaded again is refused here, before the old file is replaced.
    made, plan = network_from_data(data, list(program.trace.constants.values()))
    check_network(made, plan, state.mode, {n: network.tensor(n).dtype for n in program.names})
    scales = [name for name in part.scale_names() if name in program.names]
    unsaved = [name for name in program.names if name not in saved]
    return own, network_header(data, runs_at_any_size(network), scales, unsaved)


def _module_tensors(state: SubspaceState, part: Part) -> tuple[dict[str, Tensor], dict[str, Any]]:
    own = {f"state.{name}": value for name, value in part.network.module.state_dict().items()}
    own |= {f"endpoint_0.{name}": value for name, value in state.endpoint_0.items()}
    for kind, levels in (("statistics", state.statistics), ("ranges", state.ranges)):
        for number, level in enumerate(levels.values()):
            own |= {f"{kind}.{number}.{name}": value for name, value in level.items()}
    frozen = {"frozen": state.frozen} if state.frozen else {}
    return own, {"shapes": state.shapes, "ranges": list(state.ranges), **frozen}


def _put(tensors: dict[str, Tensor], values: Mapping[str, Tensor]) -> dict[str, str]:
    """Add tensors, and return aliases: a tensor with several names is added once, and its other names are aliases."""
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
    """Return the names of classes, or raise an error.

    Raises:
        ValueError: They are not a list of text.
    """
    if not isinstance(names, list) or len(names) > MOST_NAMES or not all(isinstance(n, str) for n in names):
        raise ValueError(f"class_names={str(names)[:100]} is not a list of at most {MOST_NAMES:,} names")
    return names


def check_network(program: Program, plan: ChannelPlan, mode: Mode, dtypes: Mapping[str, torch.dtype]) -> None:
    """Raise a ``ValueError`` if a network can't run at its largest or smallest width."""
    run_without_data(program, plan.selection(1.0), dtypes, 2)
    run_without_data(program, plan.selection(mode.value(0.0)), dtypes, 1)


# -- reading ----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class SavedSubspace:
    """The content of a file, checked for consistency.

    Attributes:
        state: The subspace.
        levels: The level table.
        class_names: The names of the classes.
        part: The network, if the file holds it; else ``None``.
        weights: The ``state_dict`` of the network, if the file does not hold the network itself.
    """

    state: SubspaceState
    levels: tuple[NamedLevel, ...]
    class_names: tuple[str, ...]
    part: Part | None
    weights: dict[str, Tensor]


def read(path: str | os.PathLike[str]) -> SavedSubspace:
    """Map a file into memory, check it, and return its content.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is of another kind or version, or it is damaged.
    """
    header, stored = container.read(path)
    with errors_of(path):
        content = Content(header, stored)
        state = SubspaceState(
            mode=content.mode,
            subspace=content.subspace,
            line_parameters=str(header["line_parameters"]),
            norm=str(header["norm"]),
            targets=[""],
            shapes=header.get("shapes", {}),
            endpoint_0=content.of("endpoint_0"),
            statistics=content.levels("statistics"),
            ranges={} if content.mode.runs_as_graph else content.levels("ranges"),
            inputs=[],
            frozen=list(map(checked_name, header.get("frozen", []))),
        )
        part = _stored_part(content, state) if content.mode.runs_as_graph else None
        return SavedSubspace(state, content.table, content.classes, part, content.of("state"))


@contextlib.contextmanager
def errors_of(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn errors inside the block that come from a malformed file into errors that name the file.

    Raises:
        ValueError: Instead of any error that malformed content may cause.
    """
    try:
        yield
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, RecursionError) as error:
        reason = str(error) if isinstance(error, ValueError) else repr(error)
        raise ValueError(f"{os.fspath(path)} can't be loaded: {reason}") from error


class Content:
    """The checked content that every kind of file has."""

    def __init__(self, header: dict[str, Any], stored: Mapping[str, Tensor]) -> None:
        if header.get("version") != VERSION:
            raise ValueError(
                f"the file was written in format {repr(header.get('version'))[:100]}, and this lightning-lcs reads "
                f"{VERSION}; install the version that wrote it"
            )
        self.header = header
        self.mode: Mode = saved_mode(header["mode"])
        expected = _OF_NETWORK if self.mode.runs_as_graph else _OF_TENSORS
        if header.keys() - {"frozen"} != set(expected):
            raise ValueError(f"its header has the keys {sorted(header)} instead of {sorted(expected)}")
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
        """The tensors of one kind, by qualified name."""
        return {checked_name(n.partition(".")[2]): value for n, value in self._tensors.items() if _kind(n) == kind}

    def constants(self) -> list[Tensor]:
        """The constant tensors of the graph, in the order of their numbers."""
        return [value for _, value in sorted(self.of("constant").items(), key=lambda item: int(item[0]))]

    def levels(self, kind: str) -> dict[float, dict[str, Tensor]]:
        """The tensors of each level."""
        alphas = self.header[kind]
        if not isinstance(alphas, list) or len({check_alpha(alpha) for alpha in alphas}) < len(alphas):
            raise ValueError(f"its {kind} are not for distinct levels in [0, 1]")
        found: dict[float, dict[str, Tensor]] = {float(alpha): {} for alpha in alphas}
        for name, value in self.of(kind).items():
            number, _, own = name.partition(".")
            found[float(alphas[int(number)])][own] = value
        return found


def _kind(name: str) -> str:
    return name.partition(".")[0]


def _stored_part(content: Content, state: SubspaceState) -> Part:
    """The network in a file."""
    header, mode, constants, line = content.header, state.mode, content.constants(), state.endpoint_0
    parameters, buffers = content.of("parameter"), content.of("buffer")
    program, plan = network_from_data(header["network"], constants)
    own = {**buffers, **parameters}
    if (
        own.keys() != set(program.names)
        or own.keys() != plan.tensors.keys()
        or len(own) < len(buffers) + len(parameters)
    ):
        raise ValueError("its tensors are not those that its network takes")
    check_shapes("its plan", {name: plan.selection(1.0).shape(name) for name in own}, own)
    check_shapes("endpoint 0", {name: list(own[name].shape) for name in line}, line)
    if not line.keys() <= parameters.keys() or any(value.dtype != own[name].dtype for name, value in line.items()):
        raise ValueError("its line holds tensors that are not parameters of its network")
    if not isinstance(header["any_size"], bool) or not set(header["scales"]) | set(header["unsaved"]) <= own.keys():
        raise ValueError("its header names tensors that its network does not take")
    check_network(program, plan, mode, {name: value.dtype for name, value in own.items()})
    module = stored_module(parameters, buffers, line, header["unsaved"])
    network = StoredNetwork(module, header["network"], constants, header["any_size"], program, plan)
    part = Part("", "", network, endpoints=stored_endpoints(module, line), scales=tuple(header["scales"]), warned=True)
    expected = {name for mean, (variance, _) in program.statistics.items() for name in (mean, variance)}
    for alpha, values in state.statistics.items():
        shape = mode.example_execution(part, Level(mode, alpha), training=False).shape
        check_shapes(f"the statistics of alpha={alpha:g}", {name: shape(name) for name in expected}, values)
    return part


def check_weights(saved: SavedSubspace, module: nn.Module) -> None:
    """Check that a module has the architecture from which a file without a network was saved.

    Raises:
        ValueError: The module has another architecture, or a tensor of a level has another shape.
    """
    names = saved.state.state_names(module)
    mine = {name: list(value.shape) for name, value in module.state_dict().items() if name in names}
    check_shapes("the file", mine, saved.weights)
    levels = (*saved.state.statistics.values(), *saved.state.ranges.values())
    for name, value in ((name, value) for tensors in levels for name, value in tensors.items()):
        expected = [2] if name.endswith(".input_range") else mine.get(name)
        if list(value.shape) != expected:
            raise ValueError(
                f"it has a tensor of shape {list(value.shape)} for {name!r} of a level instead of {expected}"
            )


def check_shapes(what: str, expected: Mapping[str, Sequence[int]], values: Mapping[str, Tensor]) -> None:
    """Check that tensors have the names and shapes of those of a network.

    Raises:
        ValueError: There is one too many, one is missing, or one has another shape.
    """
    if expected.keys() != values.keys():
        name = sorted(expected.keys() ^ values.keys())[0]
        raise ValueError(f"{what} and its network have different tensors: only one has {name!r}")
    for name, shape in expected.items():
        if list(shape) != list(values[name].shape):
            raise ValueError(f"{what} has shape {list(values[name].shape)} for {name!r}, and its network {list(shape)}")
