"""A level as a program of ``torch.export``, and the check of exported programs against it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, ShapesCollection

from lightning_lcs.model import SubspaceModel
from lightning_lcs.subspace.axis import check_alpha
from lightning_lcs.subspace.part import TOGETHER

# The largest allowed difference between an exported file and the level in torch, relative to the largest output.
TOLERANCE = 1e-4
# Not 1, which torch.export would treat as a constant, and not likely to be equal to a number of channels.
_TRACED = 11
_CHECKED = (1, 3)


def levels_of(model: SubspaceModel, alphas: Sequence[float]) -> list[float]:
    """The levels that run when these alphas are set, ascending and each once.

    Raises:
        ValueError: There is no alpha, or one is outside [0, 1].
    """
    if not alphas:
        raise ValueError("alphas is empty: give at least one level in [0, 1], such as [0, 0.5, 1]")
    return sorted({model.nearest_level(check_alpha(alpha)) for alpha in alphas})


def example_batch(model: SubspaceModel, samples: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of the network with a number of samples. Floating-point tensors are random, but the same at each call.

    Raises:
        RuntimeError: The network was never called and has no ``example_inputs``, or there are several networks.
    """
    if len(model.parts) != 1:
        raise RuntimeError(f"an export needs a single network, and this subspace model has several; {TOGETHER}")
    args, kwargs = model.parts[0].network.example_inputs()
    batch = next(leaf.shape[0] for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf.ndim)
    generator = torch.Generator().manual_seed(0)

    def resized(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or leaf.ndim == 0 or leaf.shape[0] != batch:
            return leaf
        if leaf.is_floating_point():
            return torch.randn(samples, *leaf.shape[1:], generator=generator).to(leaf)
        return leaf[torch.arange(samples, device=leaf.device) % batch].clone()

    args, kwargs = pytree.tree_map(resized, (args, kwargs))
    return args, kwargs


def program_of(model: SubspaceModel, level: nn.Module) -> ExportedProgram:
    """The network of a level, exported with an open batch dimension.

    Args:
        model: The subspace, which gives the arguments.
        level: The network, from ``model.materialize``.
    """
    args, kwargs = example_batch(model, _TRACED)
    shapes = ShapesCollection()  # type: ignore[no-untyped-call]
    for leaf in pytree.tree_leaves((args, kwargs)):
        if isinstance(leaf, Tensor) and leaf.ndim and leaf.shape[0] == _TRACED:
            shapes[leaf] = {0: Dim.DYNAMIC}
    # A copy, because the hooks that quantize inputs keep what they compute in the first call, which has no data here.
    with torch.no_grad():
        return torch.export.export(copy.deepcopy(level), args, kwargs, dynamic_shapes=shapes, strict=False)


def difference(model: SubspaceModel, level: nn.Module, run: Callable[[Any, Any], Sequence[Tensor]]) -> float:
    """The largest difference between a level and its exported program, relative to the level's largest output.

    It is measured at two batch sizes.

    Args:
        model: The subspace, which gives the arguments.
        level: The network, from ``model.materialize``.
        run: Takes arguments and keyword arguments, and returns the outputs of the exported program as a flat list.
    """
    found = 0.0
    for samples in _CHECKED:
        args, kwargs = example_batch(model, samples)
        with torch.no_grad():
            expected = [leaf for leaf in pytree.tree_leaves(level(*args, **kwargs)) if isinstance(leaf, Tensor)]
        for ours, theirs in zip(run(args, kwargs), expected, strict=True):
            scale = theirs.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
            found = max(found, float((ours.double() - theirs.cpu().double()).abs().max() / scale.cpu()))
    return found


def check_difference(found: float, what: str, tolerance: float = TOLERANCE) -> None:
    """Raise an error if an exported program differs from its level.

    Raises:
        RuntimeError: The difference is above the tolerance, or it is NaN.
    """
    if not found <= tolerance:
        raise RuntimeError(
            f"{what} differs from the level in torch by {found:.1e} of the largest output, and {tolerance:g} is "
            "allowed; no file was written"
        )
