"""The files of trained runs, read for a report."""

from __future__ import annotations

import csv
import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_lcs.reporting.history import Evaluation, read_history
from lightning_lcs.reporting.run_summary import read_summary
from lightning_lcs.subspace.curves.curve import Curve
from lightning_lcs.subspace.curves.curve_file import CURVE, TEST_CURVE, is_curve_file, read_curves

_CURVES = (CURVE, TEST_CURVE)
Series = Mapping[str, Sequence[tuple[int, float]]]
"""By name, values by optimizer step."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """What the files of a run say.

    Attributes:
        name: The name that distinguishes it from the other runs of a report.
        path: The path of its folder or file.
        curves: The last curve, with an empty name; or several curves by name, if the file holds several, or if there is
            one for test data as well.
        evaluations: All its curves. The default is none: only the last curve is known.
        losses: The losses of training steps. The default is none.
        summary: What was trained; see :func:`lightning_lcs.reporting.run_summary.read_summary`. The default is empty:
            it is not known.

    Example:
        >>> from lightning_lcs.reporting.runs import Run
        >>> Run(name="baseline", path="runs/baseline", curves={}).name
        'baseline'
    """

    name: str
    path: Path
    curves: Mapping[str, Curve]
    evaluations: Sequence[Evaluation] = ()
    losses: Series = dataclasses.field(default_factory=dict)
    summary: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def read_runs(paths: Sequence[str | os.PathLike[str]]) -> list[Run]:
    """Read runs; each is named by the part of its path that distinguishes it.

    Args:
        paths: Folders with a ``curve.csv`` or a ``test_curve.csv``, or such files. Another folder stands for all runs
            below it, and for the curve files in it.

    Raises:
        FileNotFoundError: A path does not exist.
        ValueError: There is no curve, or a file does not hold what its name says.

    Example:
        >>> from lightning_lcs.reporting import CurvePoint, read_runs, write_csv
        >>> cost = {"sparsity": 0.0, "bit_width": 32, "params": 10, "macs": 20, "size_bytes": 40, "latency_ms": 1.0}
        >>> small = CurvePoint(alpha=0.0, width=0.25, **cost, metrics={"val_acc": 0.8})
        >>> full = CurvePoint(alpha=1.0, width=1.0, **{**cost, "macs": 90}, metrics={"val_acc": 0.9})
        >>> path = write_csv({"": [small, full]}, "runs/ours/curve.csv")
        >>> [run.name for run in read_runs(["runs"])]
        ['ours']
    """
    found = list(dict.fromkeys(run for path in paths for run in _found(Path(path))))
    if not found:
        raise ValueError("no run was given: give folders with a curve.csv, or curve files")
    names = names_of(found)
    return [_read(path, name) for path, name in zip(found, names, strict=True)]


def names_of(paths: Sequence[Path]) -> list[str]:
    """The shortest names that distinguish paths: as many of their last parts as are needed."""
    parts = [(*path.parts[:-1], path.stem if path.suffix == ".csv" else path.name) for path in map(_absolute, paths)]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-count:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def _absolute(path: Path) -> Path:
    path = path.resolve()
    return path.parent if path.name in _CURVES else path


def _found(path: Path) -> list[Path]:
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: give folders with a curve.csv, or curve files")
    if path.is_file() or any((path / name).exists() for name in _CURVES):
        return [path]
    folders = {file.parent for name in _CURVES for file in path.rglob(name)}
    # A comparison leaves METHOD-SEED.csv, beside a folder of the same name if this version trained it.
    files = {file for file in path.glob("*.csv") if file.with_suffix("") not in folders and is_curve_file(file)}
    if not folders and not files:
        raise ValueError(
            f"{path} holds no curve.csv: LCSCallback and TradeoffMonitor write one to the trainer's log folder when "
            "they measure a curve"
        )
    return sorted(folders | files)


def _read(path: Path, name: str) -> Run:
    curves: dict[str, Curve] = {}
    for file in [path] if path.is_file() else [path / each for each in _CURVES if (path / each).exists()]:
        # The curve of the test data has a name only if there is another curve.
        curves |= {("test" if curves else found): curve for found, curve in read_curves(file).items()}
    folder = path if path.is_dir() else path.parent if path.name in _CURVES else None
    if folder is None:
        return Run(name=name, path=path, curves=curves)
    history, losses, summary = folder / "curves.csv", folder / "metrics.csv", folder / "summary.json"
    return Run(
        name=name,
        path=folder,
        curves=curves,
        evaluations=read_history(history) if history.exists() else (),
        losses=read_losses(losses) if losses.exists() else {},
        summary=read_summary(summary) if summary.exists() else {},
    )


def read_losses(path: str | os.PathLike[str]) -> dict[str, list[tuple[int, float]]]:
    """Read the training losses in the ``metrics.csv`` of Lightning's ``CSVLogger``: of alpha = 1, and of other levels.

    Args:
        path: The path of the file.

    Returns:
        By name, the pairs of an optimizer step and the loss there.

    Example:
        >>> from pathlib import Path
        >>> from lightning_lcs.reporting.runs import read_losses
        >>> size = Path("metrics.csv").write_text("step,train_loss\\n7,0.5\\n")
        >>> read_losses("metrics.csv")
        {'train_loss': [(7, 0.5)]}
    """
    losses: dict[str, list[tuple[int, float]]] = {}
    with Path(path).open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            for name, value in row.items():
                if value and row.get("step") and "loss" in name and "train" in name:
                    losses.setdefault(name, []).append((int(float(row["step"])), float(value)))
    return losses
