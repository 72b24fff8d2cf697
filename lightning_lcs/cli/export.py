"""``lightning-lcs export``: levels of a ``model.lcs`` as ONNX or ``torch.export`` files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from lightning_lcs.cli.parsing import call
from lightning_lcs.export.base import Exported
from lightning_lcs.model import SubspaceModel


def export(args: Sequence[str]) -> None:
    """Run the command.

    Args:
        args: the command's name, and what follows it.
    """
    call(_export, args)


def _export(
    file: str,
    output: str = "exported",
    format: Literal["onnx", "torch"] = "onnx",
    alphas: list[float] = [0.0, 0.5, 1.0],  # noqa: B006
) -> None:
    """Write levels of a model.lcs as files that other runtimes open, each checked against the level in torch.

    Args:
        file: written by SubspaceModel.save.
        output: folder of the files; those of the same name are replaced.
        format: onnx (a file per level, and levels.onnx with all of them over shared weights) or torch (a .pt2 each).
        alphas: levels in [0, 1]; each stands for the nearest one with batch-norm statistics.
    """
    model = SubspaceModel.load(file).eval()
    if format == "onnx":
        from lightning_lcs.export.onnx import export_onnx

        written = export_onnx(model, output, alphas)
    else:
        from lightning_lcs.export.torch_export import export_torch

        written = export_torch(model, output, alphas)
    print("\n".join(_lines(written)))


def _lines(written: Sequence[Exported]) -> list[str]:
    width = max(len(str(one.path)) for one in written)
    lines = [
        f"{one.path!s:<{width}}  {one.size_bytes / 1e6:9.3f} MB  alpha {', '.join(f'{a:g}' for a in one.alphas)}"
        f"  (off by {one.difference:.1e} at most)"
        for one in written
    ]
    several = written[-1]
    if len(several.alphas) > 1:
        single = [one.size_bytes for one in written[:-1]]
        lines.append(
            f"{several.path.name} has {several.size_bytes / max(single):.3f} of the size of the largest level alone, "
            f"and {several.size_bytes / sum(single):.3f} of that of all files of single levels"
        )
    return lines
