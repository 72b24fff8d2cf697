"""The file ``model.lcs``: safetensors with a JSON header that holds the network, so that loading needs no code."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lightning_lcs import _checkpoint
from lightning_lcs.channels.serial import graph_from_data, graph_to_data
from lightning_lcs.channels.standalone import MaterializedModel
from lightning_lcs.modes import Structured, mode_to_dict

if TYPE_CHECKING:
    from lightning_lcs.model import SubspaceModel

_KEY = "lightning_lcs"


def save(model: SubspaceModel, path: str | os.PathLike[str]) -> None:
    """See :meth:`SubspaceModel.save`."""
    if not isinstance(model.mode, Structured):
        raise NotImplementedError(
            f"save() writes structured subspaces, and this one is {mode_to_dict(model.mode)['name']}: keep its "
            "checkpoint (SubspaceModel.from_checkpoint opens it), or save materialize(alpha).state_dict()"
        )
    statistics, model.statistics = model.statistics, {}
    try:
        full = model.materialize(1.0)
    finally:
        model.statistics = statistics
    if not isinstance(full, MaterializedModel):
        raise NotImplementedError("save() writes a single network, and this subspace model has several")
    state = _checkpoint.state_of(model)
    tensors: dict[str, Tensor] = {}
    aliases = _put(tensors, "endpoint_1.", dict(full.named_parameters(remove_duplicate=False)))
    aliases |= _put(tensors, "buffer.", dict(full.named_buffers(remove_duplicate=False)))
    own = {name.partition(".")[2] for name in (*tensors, *aliases)}
    aliases |= _put(tensors, "endpoint_0.", {k: v for k, v in state["endpoint_0"].items() if k in own})
    for number, level in enumerate(state["statistics"]):
        aliases |= _put(tensors, f"statistics_{number}.", level["tensors"])
    args, kwargs = model.parts[0].network.example or ((), {})
    header = {
        **{key: state[key] for key in ("version", "mode", "subspace", "line_parameters")},
        "line": sorted(name for name in state["endpoint_0"] if name in own),
        "levels": [level["alpha"] for level in state["statistics"]],
        "graph": graph_to_data(full.graph),
        "aliases": aliases,
        "inputs": [_spec(value) for value in args],
        "keyword_inputs": {name: _spec(value) for name, value in kwargs.items()},
    }
    target = Path(path)
    scratch = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        save_file(tensors, scratch, metadata={_KEY: json.dumps(header)})
        scratch.replace(target)
    finally:
        scratch.unlink(missing_ok=True)


def load(cls: type[SubspaceModel], path: str | os.PathLike[str]) -> SubspaceModel:
    """See :meth:`SubspaceModel.load`."""
    header, tensors = _read(path)
    _checkpoint.check_version(header)
    for name, original in header["aliases"].items():
        tensors[name] = tensors[original]
    root = nn.Module()
    shared: dict[int, nn.Parameter] = {}
    for name, value in tensors.items():
        kind, _, own = name.partition(".")
        if kind == "endpoint_1":
            _put_in(root, own, shared.setdefault(id(value), nn.Parameter(value, requires_grad=False)))
        elif kind == "buffer":
            _put_in(root, own, value)
    network = MaterializedModel(root, graph_from_data(header["graph"]), for_training=False)
    args = tuple(_example(spec) for spec in header["inputs"])
    kwargs = {name: _example(spec) for name, spec in header["keyword_inputs"].items()}
    # The line of a saved network is the parameters that it was saved with, whatever module they lived in.
    model = cls(network, mode=header["mode"], subspace="point")
    part = model.parts[0]
    part.endpoints = {name: nn.Parameter(tensors[f"endpoint_0.{name}"], requires_grad=False) for name in header["line"]}
    model.subspace, model.line_parameters = header["subspace"], header["line_parameters"]
    part.network.program(args, kwargs)
    model.statistics = {
        float(alpha): {
            name.partition(".")[2]: value for name, value in tensors.items() if name.startswith(f"statistics_{number}.")
        }
        for number, alpha in enumerate(header["levels"])
    }
    model.training = False
    return model


def _read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not Path(path).exists():
        raise FileNotFoundError(f"{os.fspath(path)} does not exist")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            header = json.loads(metadata[_KEY])
            return header, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, json.JSONDecodeError, OSError) as error:
        raise ValueError(f"{os.fspath(path)} is not a lightning-lcs file, or it is damaged: {error}") from error


def _put(tensors: dict[str, Tensor], prefix: str, values: dict[str, Tensor]) -> dict[str, str]:
    """Add tensors; those that share memory are written once, and the others named as aliases."""
    aliases: dict[str, str] = {}
    seen: dict[int, str] = {}
    for name, value in values.items():
        if id(value) in seen:
            aliases[prefix + name] = seen[id(value)]
        else:
            seen[id(value)] = prefix + name
            tensors[prefix + name] = value.detach().cpu().contiguous().clone()
    return aliases


def _put_in(root: nn.Module, name: str, value: Tensor) -> None:
    *path, leaf = name.split(".")
    for part in path:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root.get_submodule(part)
    if isinstance(value, nn.Parameter):
        root.register_parameter(leaf, value)
    else:
        root.register_buffer(leaf, value)


def _spec(value: Any) -> dict[str, Any]:
    if not isinstance(value, Tensor):
        raise NotImplementedError(f"save() takes networks whose arguments are tensors, not {type(value).__name__}")
    return {"shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}


def _example(spec: dict[str, Any]) -> Tensor:
    dtype = getattr(torch, str(spec["dtype"]))
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"the file names the type {spec['dtype']!r} of an input, which is not a tensor type")
    return torch.zeros(spec["shape"], dtype=dtype)
