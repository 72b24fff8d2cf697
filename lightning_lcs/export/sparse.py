"""Files of sparse levels, whose size shrinks with sparsity; levels differ by one comparison per weight."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from lightning_lcs.export.registry import ExportedFile
from lightning_lcs.export.sparse_coding import VALUES, Packed, pack, pack_all, unpack
from lightning_lcs.export.tensor_files import check_state, read_tensors, write_tensors
from lightning_lcs.model import SubspaceModel
from lightning_lcs.subspace.axis import check_alpha
from lightning_lcs.subspace.modes import Unstructured
from lightning_lcs.subspace.weights.computed import make_plain

_KEY = "lightning_lcs_sparse"
_VERSION = 2


@overload
def pack_sparse(tensors: Tensor, values: str = "float32") -> Packed: ...
@overload
def pack_sparse(tensors: Mapping[str, Tensor], values: str = "float32") -> dict[str, Packed]: ...
def pack_sparse(tensors: Tensor | Mapping[str, Tensor], values: str = "float32") -> Packed | dict[str, Packed]:
    """Pack a tensor, or all tensors of a ``state_dict``, each by the smallest coding: mask, distances, or dense.

    Args:
        tensors: The float32 tensors. Tensors of other types, or that are not sparse enough to gain, stay as they are.
        values: The type of the packed entries: "float32" (they come back bit for bit, with positive zeros), "float16"
            or "int8" (one scale per tensor). The default is "float32".

    Returns:
        The packed tensor, or the packed tensors by name.

    Raises:
        ValueError: ``values`` is not known, or a tensor holds a number that this type can't hold.

    Example:
        >>> import torch
        >>> from lightning_lcs.export import pack_sparse, unpack_sparse
        >>> packed = pack_sparse(torch.tensor([0.0] * 99 + [0.5]))
        >>> packed.size_bytes < 20, float(unpack_sparse(packed)[-1])
        (True, 0.5)
    """
    return pack(tensors, values) if isinstance(tensors, Tensor) else pack_all(tensors, values)


@overload
def unpack_sparse(packed: Packed) -> Tensor: ...
@overload
def unpack_sparse(packed: Mapping[str, Packed]) -> dict[str, Tensor]: ...
def unpack_sparse(packed: Packed | Mapping[str, Packed]) -> Tensor | dict[str, Tensor]:
    """Unpack what :func:`pack_sparse` packed.

    Args:
        packed: A packed tensor, or several by name.

    Returns:
        The tensor, or the tensors by name.

    Raises:
        ValueError: The parts do not fit each other.

    Example:
        >>> import torch
        >>> from lightning_lcs.export import pack_sparse, unpack_sparse
        >>> state = {"weight": torch.tensor([0.0] * 99 + [0.5]), "steps": torch.tensor(7)}
        >>> unpacked = unpack_sparse(pack_sparse(state))
        >>> torch.equal(unpacked["weight"], state["weight"])
        True
    """
    if isinstance(packed, Packed):
        return unpack(packed)
    return {name: unpack(one) for name, one in packed.items()}


class SparseLevels:
    """The levels of a file, in a network: a change of level is one comparison per weight.

    :func:`load_sparse` makes it. The weights of the densest level are held beside those that run.

    Args:
        module: The network that runs the levels; its parameters and buffers are overwritten.
        densest: The parameters and buffers of the densest level, by name.
        levels: What distinguishes each level from the densest one.

    Attributes:
        alphas: The levels in the file, ascending.
        alpha: The level that the network runs.

    Example:
        >>> import torch
        >>> from lightning_lcs import SubspaceModel
        >>> from lightning_lcs.export import load_sparse, save_sparse
        >>> def network():
        ...     return torch.nn.Sequential(*(torch.nn.Linear(8, 8) for _ in range(4)))
        >>> model = SubspaceModel(network(), mode="unstructured", subspace="point").eval()
        >>> file = save_sparse(model, "sparse.safetensors", [0.0, 1.0])
        >>> small = network()
        >>> load_sparse("sparse.safetensors", small).set_alpha(0.0)
        >>> int(small[1].weight.count_nonzero())
        2
    """

    def __init__(self, module: nn.Module, densest: Mapping[str, Tensor], levels: Sequence[_StoredLevel]) -> None:
        self._targets = {**dict(module.named_parameters(remove_duplicate=False)), **dict(module.named_buffers())}
        self._densest = densest
        self._levels = {level.alpha: level for level in levels}
        self.alphas = tuple(sorted(self._levels))
        self.alpha = self.alphas[-1]
        self.set_alpha(self.alpha)

    @torch.no_grad()
    def set_alpha(self, alpha: float) -> None:
        """Put the weights and statistics of a level into the network.

        Args:
            alpha: The level, one of :attr:`alphas`.

        Raises:
            ValueError: The file does not hold this level.
        """
        level = self._levels.get(alpha)
        if level is None:
            raise ValueError(f"alpha={alpha!r} is not in the file, which holds {', '.join(map(repr, self.alphas))}")
        for name, dense in self._densest.items():
            if name in level.tensors:
                value = level.tensors[name]
            elif name in level.thresholds:
                value = nn.functional.hardshrink(dense, level.thresholds[name])
            else:
                value = dense
            self._targets[name].copy_(value)
        self.alpha = alpha


@dataclasses.dataclass(frozen=True)
class _StoredLevel:
    """The differences of a level from the densest one: magnitudes up to which weights are zero, and whole tensors."""

    alpha: float
    thresholds: Mapping[str, float]
    tensors: Mapping[str, Tensor]


def save_sparse(
    model: SubspaceModel,
    path: str | os.PathLike[str],
    alphas: float | Sequence[float] = 0.0,
    values: str = "float32",
) -> ExportedFile:
    """Write sparse levels into one file: safetensors with a JSON header, no pickle.

    The weights of the densest level stand in it, packed. A sparser level is a threshold for each of them, and its own
    batch-norm statistics; tensors that no threshold gives (of a line, or among equal magnitudes) stand in the file
    again, so that several levels of a line take as many times the room. So do values of fewer bits, among which equal
    magnitudes are common.

    Args:
        model: A subspace with a single network in unstructured mode.
        path: The path of the file.
        alphas: A level, or several levels. The default is 0.
        values: The type of packed weights; see :func:`pack_sparse`. The default is "float32".

    Returns:
        The file: its path, levels and size, and the size of the dense tensors.

    Raises:
        ValueError: The mode is another one, a level is outside [0, 1], or a number does not fit ``values``.
        OSError: The file could not be written; the old one is as it was.

    Example:
        >>> import torch
        >>> from lightning_lcs import SubspaceModel
        >>> from lightning_lcs.export import save_sparse
        >>> network = torch.nn.Sequential(*(torch.nn.Linear(64, 64) for _ in range(4)))
        >>> model = SubspaceModel(network, mode="unstructured", subspace="point").eval()
        >>> file = save_sparse(model, "sparse.safetensors", [0.0, 0.5])
        >>> file.alphas, file.size_bytes < file.dense_bytes
        ((0.0, 0.5), True)
    """
    if not isinstance(model.mode, Unstructured) or len(model.parts) != 1:
        raise ValueError(
            f"save_sparse() takes a single network in unstructured mode, and this subspace is {model.mode}"
        )
    if values not in VALUES:
        raise ValueError(f"values={values!r} is not known; choose one of {', '.join(map(repr, VALUES))}")
    asked = [alphas] if isinstance(alphas, (int, float)) else list(alphas)
    if not asked:
        raise ValueError("alphas is empty: give at least one level in [0, 1]")
    chosen = sorted({model.nearest_level(check_alpha(alpha)) for alpha in asked})
    states = {
        alpha: {k: v.detach().cpu() for k, v in model.materialize(alpha).state_dict().items()} for alpha in chosen
    }
    densest = states[chosen[-1]]
    tensors: dict[str, Tensor] = {}
    header: dict[str, Any] = {
        "version": _VERSION,
        "norm": model.norm,
        "densest": chosen[-1],
        "packed": {},
        "levels": [],
    }
    _put(header["packed"], tensors, "densest/", pack_all(densest, values))
    # Thresholds apply to the values that are read back. Rounding moves no value across a threshold.
    read = {name: unpack(pack(value, values)) for name, value in densest.items()}
    for alpha in chosen[:-1]:
        thresholds: dict[str, float] = {}
        others: dict[str, Tensor] = {}
        for name, value in states[alpha].items():
            if torch.equal(value, densest[name]):
                continue
            threshold = _threshold(value, densest[name], read[name])
            if threshold is None:
                others[name] = value
            else:
                thresholds[name] = threshold
        _put(header["packed"], tensors, f"{alpha!r}/", pack_all(others, values))
        header["levels"].append({"alpha": alpha, "thresholds": thresholds, "tensors": sorted(others)})
    return ExportedFile(
        path=Path(path),
        alphas=tuple(chosen),
        size_bytes=write_tensors(path, _KEY, header, tensors),
        dense_bytes=sum(value.numel() * value.element_size() for value in densest.values()),
    )


def load_sparse(path: str | os.PathLike[str], module: nn.Module) -> SparseLevels:
    """Read a file of :func:`save_sparse` into a network of the same architecture; the densest level is set.

    Args:
        path: The path of the file.
        module: The network, with its norms replaced if the subspace has ``norm=``. All of its parameters and buffers
            are overwritten; weights under parametrizations become plain parameters.

    Returns:
        The levels, in the network.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not of this kind, is damaged, or is of another architecture; the network is unchanged.

    Example:
        >>> import torch
        >>> from lightning_lcs import SubspaceModel
        >>> from lightning_lcs.export import load_sparse, save_sparse
        >>> def network():
        ...     return torch.nn.Sequential(*(torch.nn.Linear(8, 8) for _ in range(4)))
        >>> model = SubspaceModel(network(), mode="unstructured", subspace="point").eval()
        >>> file = save_sparse(model, "sparse.safetensors", [0.0, 1.0])
        >>> levels = load_sparse("sparse.safetensors", network())
        >>> levels.set_alpha(0.0)
        >>> levels.alphas
        (0.0, 1.0)
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"{os.fspath(path)} does not exist")
    try:
        header, held = read_tensors(path, _KEY, [_VERSION])
        tensors = {name: unpack(_get(spec, held, name)) for name, spec in header["packed"].items()}
        densest = {name.removeprefix("densest/"): v for name, v in tensors.items() if name.startswith("densest/")}
        levels, norm = [_StoredLevel(float(header["densest"]), {}, {})], str(header["norm"])
        for level in header["levels"]:
            own = {name: tensors[f"{level['alpha']!r}/{name}"] for name in level["tensors"]}
            levels.append(_StoredLevel(float(level["alpha"]), dict(level["thresholds"]), own))
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError, OSError) as error:
        raise ValueError(f"{os.fspath(path)} is not a file of sparse levels, or it is damaged: {error}") from error
    check_state(path, densest, module, norm)
    make_plain(module, densest)
    return SparseLevels(module, densest, levels)


def _threshold(value: Tensor, densest: Tensor, read: Tensor) -> float | None:
    """The magnitude above which a sparser level keeps entries; ``None`` if no threshold gives that level."""
    zeros = value == 0
    if not value.is_floating_point() or not bool(zeros.any()) or not torch.equal(value[~zeros], densest[~zeros]):
        return None
    threshold = float(read[zeros].abs().max())
    kept = nn.functional.hardshrink(read, threshold)
    return threshold if torch.equal(kept, torch.where(zeros, torch.zeros_like(read), read)) else None


def _put(specs: dict[str, Any], tensors: dict[str, Tensor], prefix: str, packed: Mapping[str, Packed]) -> None:
    for name, one in packed.items():
        specs[prefix + name] = {
            "coding": one.coding,
            "shape": list(one.shape),
            "bits": one.bits,
            "codes": one.codes,
            "scale": one.scale,
        }
        tensors[f"{prefix}{name}/values"] = one.values
        if one.coding != "dense":
            tensors[f"{prefix}{name}/index"] = one.index


def _get(spec: Mapping[str, Any], held: Mapping[str, Tensor], name: str) -> Packed:
    index = held[f"{name}/index"] if spec["coding"] != "dense" else torch.empty(0, dtype=torch.uint8)
    return Packed(
        str(spec["coding"]),
        tuple(map(int, spec["shape"])),
        index,
        held[f"{name}/values"],
        int(spec["bits"]),
        int(spec["codes"]),
        float(spec["scale"]),
    )
