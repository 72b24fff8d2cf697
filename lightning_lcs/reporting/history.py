"""Every curve of a run, and when each was measured: the file ``curves.csv``."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from lightning_lcs.subspace.curve import Curve
from lightning_lcs.subspace.curve_file import point_of, read_rows, rows, write_rows

_WHEN = ("stage", "epoch", "step")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A curve, and when it was measured.

    Attributes:
        curve: by ascending alpha.
        stage: "fit", "validate" or "test".
        epoch: as Lightning's loggers count it, from 0.
        step: optimizer steps taken.
    """

    curve: Curve
    stage: str
    epoch: int
    step: int


def followed(earlier: Sequence[Evaluation], latest: Evaluation) -> list[Evaluation]:
    """Evaluations with the latest at the end; those that it repeats, at its step or later in its stage, are left out.

    A run that goes on from a checkpoint repeats what was measured after that checkpoint.
    """
    return [e for e in earlier if e.stage != latest.stage or e.step < latest.step] + [latest]


def write_history(evaluations: Sequence[Evaluation], path: str | os.PathLike[str]) -> Path:
    """Write evaluations to a CSV file, a row per level, whole or not at all."""
    named = {str(number): evaluation.curve for number, evaluation in enumerate(evaluations)}
    # Two curves at least give each row a name in its first column, which is left out below.
    header, table = rows({**named, "": []})
    when = [[getattr(e, name) for name in _WHEN] for e in evaluations for _ in e.curve]
    return write_rows([*_WHEN, *header[1:]], [[*w, *row[1:]] for w, row in zip(when, table, strict=True)], path)


def read_history(path: str | os.PathLike[str]) -> list[Evaluation]:
    """Evaluations as :func:`write_history` wrote them.

    Raises:
        ValueError: the file holds none.
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
