"""Whether tensors of a file are those of a network."""

from __future__ import annotations

import os
from collections.abc import Mapping

from torch import Tensor, nn


def check_state(path: str | os.PathLike[str], state: Mapping[str, Tensor], module: nn.Module, norm: str) -> None:
    """Compare the tensors of a file with the ``state_dict`` of a network.

    Args:
        path: of the file.
        state: its tensors by name.
        module: the network.
        norm: "keep", or what the batch norms were replaced by in the network of the file.

    Raises:
        ValueError: a tensor is in one of them only, or has another shape.
    """
    here = {name: tuple(value.shape) for name, value in module.state_dict().items()}
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
