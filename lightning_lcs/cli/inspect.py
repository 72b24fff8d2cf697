"""``lightning-lcs inspect``: verifies the checksums of a file, and prints its contents."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from lightning_lcs.io.inspect import inspect_file


def inspect(file: Path) -> None:
    """Verify the checksums of a model.lcs, and say what is in it.

    Args:
        file: The file.
    """
    found = inspect_file(file)
    tensors = ", ".join(f"{count} {kind} ({size / 1e6:.2f} MB)" for kind, (count, size) in found.tensors.items())
    inputs = [f"{', '.join(shape)} ({dtype})" for shape, dtype in found.inputs]
    statistics = f"statistics of {len(found.statistics)} levels" if found.statistics else "no statistics of levels"
    lines = {
        "file": f"{found.path}, {found.size_bytes / 1e6:.2f} MB, format {found.version}",
        "checksums": f"right: those of the header and of {found.sections} tensors",
        "subspace": f"{found.mode!r}, {found.subspace}",
        "tensors": tensors,
        "batch norm": statistics,
        "network": f"{found.ops} ops" if found.ops else "none: load it with module=, the network that was trained",
        "input": "; ".join(inputs) or "that of the module",
        "levels": ", ".join(level.name for level in found.levels) or "no table",
        "classes": _shortened(found.class_names),
    }
    console = Console(highlight=False, soft_wrap=True)
    for title, text in lines.items():
        console.print(f"{title:<11}{text}", markup=False)


def _shortened(names: Sequence[str]) -> str:
    if not names:
        return "no names"
    shown = ", ".join(name if name.isprintable() else repr(name) for name in names[:10])
    return f"{len(names)}: {shown}" + (", ..." if len(names) > 10 else "")
