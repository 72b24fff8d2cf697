"""All curves of a run, and when each was measured: the file ``curves.csv``."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from lightning_lcs.subspace.curves.curve import Curve
from lightning_lcs.subspace.curves.curve_file import point_of, read_rows, rows, write_rows

_WHEN = ("stage", "epoch", "step")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A curve, and when it was measured.

    Attributes:
        curve: The curve, by ascending alpha.
        stage: "fit", "validate" or "test".
        epoch: The epoch, which Lightning counts from 0.
        step: The number of optimizer steps taken.

    Example:
        >>> from lightning_lcs.reporting.history import Evaluation
        >>> Evaluation(curve=[], stage="fit", epoch=0, step=100).step
        100
    """

    curve: Curve
    stage: str
    epoch: int
    step: int


def followed(earlier: Sequence[Evaluation], latest: Evaluation) -> list[Evaluation]:
    """Evaluations with the latest one at the end.

    Evaluations of the same stage at the same step or later are left out: a run that is resumed from a checkpoint
    repeats what was measured after that checkpoint.

    Args:
        earlier: The evaluations so far.
        latest: The latest evaluation.

    Example:
        >>> from lightning_lcs.reporting.history import Evaluation, followed
        >>> first, second = (Evaluation(curve=[], stage="fit", epoch=epoch, step=100 * epoch) for epoch in (1, 2))
        >>> [evaluation.step for evaluation in followed([first, second], second)]
        [100, 200]
    """
    return [e for e in earlier if e.stage != latest.stage or e.step < latest.step] + [latest]


def write_history(evaluations: Sequence[Evaluation], path: str | os.PathLike[str]) -> Path:
    """Write evaluations to a CSV file with a row per level, whole or not at all.

    Args:
        evaluations: The evaluations.
        path: The path of the file, such as "curves.csv"; its folder is made if it does not exist.

    Returns:
        The path.

    Raises:
        OSError: The file could not be written; the old one is as it was.

    Example:
        >>> from lightning_lcs.reporting.history import Evaluation, read_history, write_history
        >>> from lightning_lcs.reporting import CurvePoint
        >>> cost = {"sparsity": 0.0, "bit_width": 32, "params": 10, "macs": 20, "size_bytes": 40, "latency_ms": 1.0}
        >>> small = CurvePoint(alpha=0.0, width=0.25, **cost, metrics={"val_acc": 0.8})
        >>> path = write_history([Evaluation(curve=[small], stage="fit", epoch=0, step=7)], "curves.csv")
        >>> read_history(path)[0].step
        7
    """
    named = {str(number): evaluation.curve for number, evaluation in enumerate(evaluations)}
    # Two curves at least give each row a name in its first column, which is left out below.
    header, table = rows({**named, "": []}, weights=True)
    when = [[getattr(e, name) for name in _WHEN] for e in evaluations for _ in e.curve]
    return write_rows([*_WHEN, *header[1:]], [[*w, *row[1:]] for w, row in zip(when, table, strict=True)], path)


def read_history(path: str | os.PathLike[str]) -> list[Evaluation]:
    """Read the evaluations of a file that :func:`write_history` wrote.

    Args:
        path: The path of the file, such as the ``curves.csv`` of a run.

    Returns:
        The evaluations, in the order of the file.

    Raises:
        ValueError: The file holds no evaluations.

    Example:
        >>> from lightning_lcs.reporting.history import Evaluation, read_history, write_history
        >>> from lightning_lcs.reporting import CurvePoint
        >>> cost = {"sparsity": 0.0, "bit_width": 32, "params": 10, "macs": 20, "size_bytes": 40, "latency_ms": 1.0}
        >>> small = CurvePoint(alpha=0.0, width=0.25, **cost, metrics={"val_acc": 0.8})
        >>> epochs = [Evaluation(curve=[small], stage="fit", epoch=epoch, step=100 * epoch) for epoch in (1, 2)]
        >>> [evaluation.step for evaluation in read_history(write_history(epochs, "curves.csv"))]
        [100, 200]
    """
    found = read_rows(path)
    if not set(_WHEN) <= set(found[0]):
        raise ValueError(f"{path} does not say when its curves were measured: columns {', '.join(_WHEN)} are missing")
    groups: dict[tuple[str, int, int], list[dict[str, str]]] = {}
    for row in found:
        stage, epoch, step = (row.pop(name) for name in _WHEN)
        groups.setdefault((stage, int(epoch), int(step)), []).append(row)
    return [
        Evaluation(curve=[point_of(row) for row in group], stage=stage, epoch=epoch, step=step)
        for (stage, epoch, step), group in groups.items()
    ]
