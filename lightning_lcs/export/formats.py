"""The package's own export formats, as ``lightning-lcs export --format`` offers them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from lightning_lcs.export.bits import save_bits
from lightning_lcs.export.images import read_images
from lightning_lcs.export.int8_onnx import export_int8
from lightning_lcs.export.onnx import export_onnx
from lightning_lcs.export.registry import ExportedFile, register_format
from lightning_lcs.export.sparse import save_sparse
from lightning_lcs.export.torch_export import export_torch
from lightning_lcs.model import SubspaceModel

_ALPHAS = (0.0, 0.5, 1.0)


@register_format("onnx", "ONNX: a file per level, and levels.onnx with all levels over shared weights")
def write_onnx(
    model: SubspaceModel, folder: Path, alphas: Sequence[float] | None, several: bool = True
) -> list[ExportedFile]:
    """Write ONNX files.

    Args:
        model: The subspace.
        folder: The output folder.
        alphas: The levels.
        several: Whether to write levels.onnx beside the files of single levels.
    """
    return export_onnx(model, folder, alphas or _ALPHAS, several=several)


@register_format("torch", "torch.export: a .pt2 file per level")
def write_torch(model: SubspaceModel, folder: Path, alphas: Sequence[float] | None) -> list[ExportedFile]:
    """Write ``.pt2`` files."""
    return export_torch(model, folder, alphas or _ALPHAS)


@register_format("int8", "ONNX with integers of 8 bits, for levels of 8 bits in quantized mode; needs --images")
def write_int8(
    model: SubspaceModel,
    folder: Path,
    alphas: Sequence[float] | None,
    images: Path | None = None,
    min_agreement: float = 0.9,
) -> list[ExportedFile]:
    """Write ONNX files with integers.

    Args:
        model: The subspace.
        folder: The output folder.
        alphas: The levels.
        images: A hundred or so real images, preprocessed as in training: a .npy or .pt file of shape (N, C, H, W), or a
            folder of image files, which are resized to --input_shape and normalised with ImageNet's mean and deviation.
        min_agreement: The share of images whose largest output has to be that of the simulated quantization.
    """
    if images is None:
        raise ValueError(
            "--format int8 needs --images: a .npy or .pt file of shape (N, C, H, W), or a folder of images"
        )
    batch = read_images(images, model)
    return [
        export_int8(model, folder / f"alpha_{alpha:g}_int8.onnx", batch, alpha, min_agreement=min_agreement)
        for alpha in alphas or (1.0,)
    ]


@register_format("bits", "a .safetensors file per level in quantized mode, with packed integers; see load_bits()")
def write_bits(model: SubspaceModel, folder: Path, alphas: Sequence[float] | None) -> list[ExportedFile]:
    """Write files of packed integers."""
    return [save_bits(model, folder / f"alpha_{alpha:g}_bits.safetensors", alpha) for alpha in alphas or _ALPHAS]


@register_format("sparse", "one .safetensors file with all levels in unstructured mode; see load_sparse()")
def write_sparse(
    model: SubspaceModel,
    folder: Path,
    alphas: Sequence[float] | None,
    values: Literal["float32", "float16", "int8"] = "float32",
) -> list[ExportedFile]:
    """Write a file of sparse levels.

    Args:
        model: The subspace.
        folder: The output folder.
        alphas: The levels.
        values: The type of the nonzero weights.
    """
    return [save_sparse(model, folder / "levels_sparse.safetensors", alphas or _ALPHAS, values)]
