"""What a served network did over time: latency, level and accuracy as a table, a summary and a picture."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_lcs.reporting.plots import require_matplotlib, save_figure
from lightning_lcs.subspace.curve_file import write_rows

# Colours that are told apart by readers who see no red or green (Okabe and Ito).
_BLUE, _ORANGE, _SHADES = "#0072B2", "#D55E00", ("#ffffff", "#e8e8e8", "#cfcfcf")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServedBatch:
    """One batch that was served.

    Attributes:
        time_s: since the beginning.
        processes: that burned CPU beside it.
        alpha: level it ran at.
        latency_ms: of the batch.
        full_latency_ms: of the full network on the same batch just after; None where that was not measured.
        images: in the batch.
        right: of them, by the network at its level.
        full_right: by the full network.
    """

    time_s: float
    processes: int
    alpha: float
    latency_ms: float
    full_latency_ms: float | None
    images: int
    right: int
    full_right: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Phase:
    """A stretch of time with so many load processes."""

    begin_s: float
    end_s: float
    processes: int


def running_accuracy(served: Sequence[ServedBatch], images: int, full: bool = False) -> list[float]:
    """Accuracy over the last so many images, at each batch.

    Args:
        served: in order of time.
        images: least number of images that are averaged, once there are as many.
        full: that of the full network on the same images.
    """
    found, right, seen, first = [], 0, 0, 0
    for batch in served:
        right += batch.full_right if full else batch.right
        seen += batch.images
        while seen - served[first].images >= images:
            right -= served[first].full_right if full else served[first].right
            seen -= served[first].images
            first += 1
        found.append(right / seen)
    return found


def by_phase(served: Sequence[ServedBatch], phases: Sequence[Phase], target_ms: float) -> list[dict[str, float]]:
    """One row per phase: shares of batches within the target, mean level, accuracies; NaN where nothing is known."""
    rows = []
    for phase in phases:
        inside = [batch for batch in served if phase.begin_s <= batch.time_s < phase.end_s]
        probes = [batch.full_latency_ms for batch in inside if batch.full_latency_ms is not None]
        images = sum(batch.images for batch in inside)
        rows.append(
            {
                "begin_s": phase.begin_s,
                "end_s": phase.end_s,
                "processes": phase.processes,
                "batches": len(inside),
                "in_target": _share(sum(batch.latency_ms <= target_ms for batch in inside), len(inside)),
                "full_in_target": _share(sum(latency <= target_ms for latency in probes), len(probes)),
                "alpha": _share(sum(batch.alpha for batch in inside), len(inside)),
                "accuracy": _share(sum(batch.right for batch in inside), images),
                "full_accuracy": _share(sum(batch.full_right for batch in inside), images),
            }
        )
    return rows


def write_served(served: Sequence[ServedBatch], target_ms: float, window: int, path: str | os.PathLike[str]) -> Path:
    """Write a CSV file, a row per batch, with the target and both running accuracies over ``window`` images."""
    columns = [field.name for field in dataclasses.fields(ServedBatch)]
    accuracies = zip(running_accuracy(served, window), running_accuracy(served, window, full=True), strict=True)
    table = [[*dataclasses.astuple(batch), target_ms, *both] for batch, both in zip(served, accuracies, strict=True)]
    return write_rows([*columns, "target_ms", "running_accuracy", "full_running_accuracy"], table, path)


def plot_served(
    served: Sequence[ServedBatch],
    phases: Sequence[Phase],
    target_ms: float,
    path: str | os.PathLike[str],
    *,
    window: int,
    title: str = "",
    right: str = "accuracy",
) -> Path:
    """Draw latency, level and running accuracy against time into a PNG file.

    Args:
        served: at least one batch.
        phases: shaded by their number of load processes.
        target_ms: drawn as a line.
        path: of the file.
        window: images over which accuracy is averaged.
        title: above the picture.
        right: what ``right`` counts, as the axis calls it.

    Raises:
        ModuleNotFoundError: matplotlib is missing.
        ValueError: nothing was served.
    """
    if not served:
        raise ValueError("served is empty: there is nothing to draw")
    figure = require_matplotlib()(figsize=(9.0, 7.6), layout="constrained")
    if title:
        figure.suptitle(title)
    latency, level, accuracy = figure.subplots(3, 1, sharex=True, gridspec_kw={"height_ratios": (3, 1.5, 1.8)})
    most = max(phase.processes for phase in phases)
    for phase in phases:
        shade = _SHADES[0 if not phase.processes else (2 if phase.processes == most else 1)]
        for axes in (latency, level, accuracy):
            axes.axvspan(phase.begin_s, phase.end_s, color=shade, zorder=0, linewidth=0)
        text = f"{phase.processes} load processes" if phase.processes else "no load"
        middle = (phase.begin_s + phase.end_s) / 2
        latency.annotate(text, (middle, 1.02), xycoords=("data", "axes fraction"), ha="center", fontsize=9)
    _draw_latency(latency, served, target_ms)
    times = [batch.time_s for batch in served]
    level.step(times, [batch.alpha for batch in served], where="post", color=_BLUE, linewidth=1.8)
    level.set_ylabel("level alpha\n(1 = full)")
    level.set_ylim(-0.06, 1.06)
    level.set_yticks([0.0, 0.5, 1.0])
    for full, color, style, name in ((True, _ORANGE, "--", "full network"), (False, _BLUE, "-", "controlled")):
        values = running_accuracy(served, window, full)
        accuracy.plot(times, values, color=color, linestyle=style, linewidth=1.8, label=name)
    low = min(*running_accuracy(served, window), *running_accuracy(served, window, full=True))
    accuracy.set_ylim(max(0.0, low - 0.02), 1.005)
    accuracy.set_ylabel(f"{right}, last\n{window} images")
    accuracy.set_xlabel("seconds")
    accuracy.set_xlim(0.0, max(phase.end_s for phase in phases))
    accuracy.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, fontsize=9, frameon=False)
    for axes in (latency, level, accuracy):
        axes.grid(alpha=0.35, axis="y")
    return save_figure(figure, path, dpi=130)


def _draw_latency(axes: Any, served: Sequence[ServedBatch], target_ms: float) -> None:
    probes = [(batch.time_s, batch.full_latency_ms) for batch in served if batch.full_latency_ms is not None]
    ordered = sorted([*(batch.latency_ms for batch in served), *(value for _, value in probes)])
    # Stalls of a loaded machine would press everything else flat.
    top = min(max(2.0 * target_ms, 1.15 * ordered[int(0.98 * (len(ordered) - 1))]), 3.0 * target_ms)
    above = sum(value > top for value in ordered)
    axes.plot(
        *zip(*[(time_s, min(value, top)) for time_s, value in probes], strict=True) if probes else ((), ()),
        "x",
        color=_ORANGE,
        markersize=5,
        label="full network at the same moment",
    )
    axes.plot(
        [batch.time_s for batch in served],
        [min(batch.latency_ms, top) for batch in served],
        ".",
        color=_BLUE,
        markersize=4,
        label="controlled",
    )
    axes.axhline(target_ms, color="black", linestyle="--", linewidth=1.4, label=f"target, {target_ms:.1f} ms")
    axes.set_ylim(0.0, 1.02 * top)
    drawn = f"\n({above} above, drawn at the edge)" if above else ""
    axes.set_ylabel(f"latency of a batch in ms{drawn}")
    # Above the axes: within them it would hide points, wherever it stood.
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.08), ncols=3, fontsize=9, frameon=False)


def _share(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")
