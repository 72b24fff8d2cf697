"""``lightning-lcs export``: levels of a ``model.lcs`` in the format of another runtime."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lightning_lcs.cli.parsing import call_all, import_user_module, imported
from lightning_lcs.export import formats as _formats  # noqa: F401
from lightning_lcs.export.registry import FORMATS, ExportedFile
from lightning_lcs.model import SubspaceModel


def export(args: Sequence[str]) -> None:
    """Run the command: the options depend on the format, and a plug-in may bring the format.

    Args:
        args: The command's name, and what follows it.
    """
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--plugin")
    early.add_argument("--format", default="onnx")
    given, _ = early.parse_known_args(args[1:])
    if given.plugin is not None:
        import_user_module(given.plugin)
    if given.format not in FORMATS:
        raise ValueError(
            f"--format {given.format} is not known; there are: {', '.join(FORMATS)}. --plugin MODULE imports a module "
            "that registers a format with lightning_lcs.export.register_format"
        )
    more = f"Formats: {', '.join(FORMATS)}. {given.format}: {FORMATS[given.format].summary}."
    call_all([run, FORMATS[given.format].write], args, more)


def run(
    file: Path,
    output: Path = Path("exported"),
    format: str = "onnx",
    alphas: list[float] | None = None,
    module: str | None = None,
    input_shape: list[int] | None = None,
    plugin: str | None = None,
    **options: Any,
) -> None:
    """Write levels of a model.lcs as files that other runtimes open.

    Args:
        file: The model.lcs.
        output: The folder of the files.
        format: The format, whose options --help shows.
        alphas: The levels in [0, 1]. The default is 0, 0.5 and 1, and 1 for int8.
        module: The network of an unstructured or quantized file: package.module:name.
        input_shape: The shape of one input of such a network, such as 3 224 224.
        plugin: A module to import first, which registers a format of your own.
        options: The options of the format.
    """
    del plugin  # imported before the options were known
    network = None if module is None else imported(module)
    model = SubspaceModel.load(file, network).eval()
    if input_shape is not None:
        model.set_example_inputs(torch.zeros(2, *input_shape))
    written = FORMATS[format].write(model, output, alphas, **options)
    print("\n".join(_lines(written)))


def _lines(written: Sequence[ExportedFile]) -> list[str]:
    width = max(len(str(one.path)) for one in written)
    lines = [
        f"{one.path!s:<{width}}  {one.size_bytes / 1e6:9.3f} MB  alpha {', '.join(f'{a:g}' for a in one.alphas)}"
        f"{_measured(one)}"
        for one in written
    ]
    several = written[-1]
    if len(written) > 1 and len(several.alphas) > 1:
        single = [one.size_bytes for one in written[:-1]]
        lines.append(
            f"{several.path.name} has {several.size_bytes / max(single):.3f} of the size of the largest level alone, "
            f"and {several.size_bytes / sum(single):.3f} of that of all files of single levels"
        )
    return lines


def _measured(one: ExportedFile) -> str:
    found = []
    if one.agreement is not None:
        found.append(f"{one.agreement:.1%} of the images as in the simulation")
    elif one.difference is not None:
        found.append(f"off by {one.difference:.1e} at most")
    if one.time_ratio is not None:
        found.append(f"{one.time_ratio:.2f} of the time of the float network")
    if one.dense_bytes is not None:
        found.append(f"{one.size_bytes / one.dense_bytes:.3f} of the dense size")
    return f"  ({', '.join(found)})" if found else ""
