"""Exports levels to files of ``torch.export``, which run without this package."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from lightning_lcs.export.base import (
    check_difference,
    difference,
    levels_of,
    program_of,
)
from lightning_lcs.export.registry import ExportedFile
from lightning_lcs.model import SubspaceModel
from lightning_lcs.utils.files import replacing_folder


def export_torch(
    model: SubspaceModel, folder: str | os.PathLike[str], alphas: Sequence[float] = (0.0, 0.5, 1.0)
) -> list[ExportedFile]:
    """Write one ``alpha_A.pt2`` per level; ``torch.export.load(path).module()`` runs it at any batch size.

    Each file is read back and compared with its level. Either all files are written or none.

    Args:
        model: A subspace with a single network, in evaluation.
        folder: The output folder, which is made if it does not exist.
        alphas: The levels in [0, 1]; with stored batch-norm statistics, the nearest stored levels. The default is 0,
            0.5 and 1.

    Returns:
        The files, by ascending alpha.

    Raises:
        ValueError: A level is outside [0, 1].
        RuntimeError: The input of the network is not known, the network can't be exported, or a file computes something
            else than its level.

    Example:
        >>> import torch
        >>> from lightning_lcs import SubspaceModel
        >>> from lightning_lcs.export import export_torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
        >>> model = SubspaceModel(net, torch.randn(2, 8), subspace="point").eval()
        >>> (file,) = export_torch(model, "programs", [0.5])
        >>> file.path.name, file.difference < 1e-4
        ('alpha_0.5.pt2', True)
    """
    found = []
    with replacing_folder(folder) as scratch:
        for alpha in levels_of(model, alphas):
            level = model.materialize(alpha)
            path = scratch / f"alpha_{alpha:g}.pt2"
            torch.export.save(program_of(model, level), path)
            with warnings.catch_warnings():
                warnings.filterwarnings(
                    "ignore", "The given buffer is not writable"
                )  # raised inside torch 2.9 when it reads a file
                again = torch.export.load(path).module()

            def run(args: Any, kwargs: Any, again: torch.nn.Module = again) -> list[Tensor]:
                with torch.no_grad():
                    leaves = pytree.tree_leaves(again(*args, **kwargs))
                return [leaf.cpu() for leaf in leaves if isinstance(leaf, Tensor)]

            off = difference(model, level, run)
            check_difference(off, path.name)
            found.append((path.name, alpha, path.stat().st_size, off))
    return [
        ExportedFile(path=Path(folder) / name, alphas=(alpha,), size_bytes=size, difference=off)
        for name, alpha, size, off in found
    ]
