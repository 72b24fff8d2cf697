"""What a run is beside its curves, as plain data: the file ``summary.json``, and the configuration in W&B."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_lcs.subspace.describe import VERSION
from lightning_lcs.utils.files import write_text

SUMMARY = "summary.json"


def write_summary(summary: Mapping[str, Any], path: str | os.PathLike[str]) -> Path:
    """Write a summary as JSON, whole or not at all."""
    return write_text(json.dumps(summary, indent=1, ensure_ascii=False) + "\n", path)


def name_method(folder: Path, method: str) -> None:
    """Note in the ``summary.json`` of a run by which training method it was made.

    A network that was trained plainly is measured as a structured point, and is not one.

    Args:
        folder: The folder of the run.
        method: The name of the method; see :meth:`LCSCallback.method`.
    """
    path = folder / SUMMARY
    if path.exists():
        write_summary({**read_summary(path), "method": method}, path)


def read_summary(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the ``summary.json`` of a run: what was trained, with which settings, and where.

    Args:
        path: The path of the file.

    Returns:
        The summary, as plain data: what :meth:`SubspaceModel.describe` returns, with the module's hyperparameters.

    Raises:
        ValueError: The file is not a summary, or is of another version.

    Example:
        >>> from lightning_lcs.reporting.run_summary import read_summary, write_summary
        >>> path = write_summary({"version": 1, "method": "structured-point"}, "summary.json")
        >>> read_summary(path)["method"]
        'structured-point'
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a summary of a run: {error}") from error
    version = found.get("version") if isinstance(found, dict) else None
    if version != VERSION:
        raise ValueError(f"{path} is of version {version}, and this is version {VERSION}: measure the curve anew")
    return dict(found)
