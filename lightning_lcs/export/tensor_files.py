"""Writes and reads files of levels without their network, and checks whether they fit a network."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lightning_lcs.subspace.weights.computed import computed_weights, source_names, without_effects
from lightning_lcs.utils.files import replacing_folder


def write_tensors(path: str | os.PathLike[str], key: str, header: Mapping[str, Any], tensors: dict[str, Tensor]) -> int:
    """Write a safetensors file with a JSON header, whole or not at all.

    Args:
        path: The path of the file; its folder is made if it does not exist.
        key: The key of the header among the metadata.
        header: Plain data.
        tensors: The tensors by name.

    Returns:
        The size of the file in bytes.
    """
    target = Path(path)
    with replacing_folder(target.parent) as scratch:
        save_file(tensors, scratch / target.name, metadata={key: json.dumps(header)})
    return target.stat().st_size


def read_tensors(
    path: str | os.PathLike[str], key: str, versions: Sequence[int]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read the JSON header of a safetensors file and its tensors.

    Args:
        path: The path of the file.
        key: The key of the header among the metadata.
        versions: The versions of the format that can be read.

    Raises:
        KeyError: The file has no such header.
        ValueError: The file has another version.
        Exception: Any error of safetensors or of the file system.
    """
    with safe_open(Path(path), framework="pt") as file:
        header = json.loads((file.metadata() or {})[key])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if header["version"] not in versions:
        read = " and ".join(map(str, versions))
        raise ValueError(f"the file has format {header['version']!r}, and this version reads {read}")
    return header, tensors


def check_state(path: str | os.PathLike[str], state: Mapping[str, Tensor], module: nn.Module, norm: str) -> None:
    """Compare the tensors of a file with the ``state_dict`` of a network.

    A file has the weights that layers compute (weight norm, spectral norm and the like), and not their sources.

    Args:
        path: The path of the file.
        state: The tensors of the file by name.
        module: The network.
        norm: "keep", or the kind of norms that replaced the batch norms in the network of the file.

    Raises:
        ValueError: A tensor is in only one of them, or has another shape.
    """
    computed = {name: weight for name, weight in computed_weights(module).items() if name in state}
    sources = source_names(computed)
    here = {name: tuple(value.shape) for name, value in module.state_dict().items() if name not in sources}
    here |= {name: tuple(without_effects(weight).shape) for name, weight in computed.items()}
    there = {name: tuple(value.shape) for name, value in state.items()}
    for name in sorted(here.keys() | there.keys()):
        if here.get(name) == there.get(name):
            continue
        found = [f"has shape {shapes[name]}" if name in shapes else "is missing" for shapes in (there, here)]
        replaced = f"; its batch norms were replaced: give SubspaceModel(network, norm={norm!r}).module"
        raise ValueError(
            f"{os.fspath(path)} is of another architecture: {name} {found[0]} there and {found[1]} in "
            f"{type(module).__name__}{'' if norm == 'keep' else replaced}"
        )
