"""Latency, level and accuracy of a served network over time, as a table, a summary and a picture."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_lcs.reporting.plots import require_matplotlib, save_figure
from lightning_lcs.subspace.curves.curve_file import write_rows

# Colours that colour-blind readers can distinguish (Okabe and Ito).
_BLUE, _ORANGE, _SHADES = "#0072B2", "#D55E00", ("#ffffff", "#e8e8e8", "#cfcfcf")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServedBatch:
    """A batch that was served.

    Attributes:
        time_s: The time since the start, in seconds.
        processes: The number of load processes that ran meanwhile.
        alpha: The level at which it ran.
        latency_ms: The latency of the batch, in milliseconds.
        full_latency_ms: The latency of the full network on the same batch just afterwards; ``None`` if it was not
            measured.
        images: The number of images in the batch.
        right: The number of images that the network classified correctly at its level.
        full_right: The number of images that the full network classified correctly.
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
    """A period of time with a fixed number of load processes."""

    begin_s: float
    end_s: float
    processes: int


def running_accuracy(served: Sequence[ServedBatch], images: int, full: bool = False) -> list[float]:
    """The accuracy over the last images, at each batch.

    Args:
        served: The batches in order of time.
        images: The minimum number of images that are averaged, once there are that many.
        full: Whether to return the accuracy of the full network on the same images. The default is ``False``.
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
    """One row per phase: shares of batches within the target, mean level and accuracies; NaN for unknown values."""
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
    """Write a CSV file with a row per batch, which has the target and both accuracies over ``window`` images."""
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
        served: The batches, at least one.
        phases: The phases, which are shaded by their number of load processes.
        target_ms: The latency target in milliseconds, which is drawn as a line.
        path: The path of the file.
        window: The number of images over which accuracy is averaged.
        title: The title of the picture.
        right: The label of the axis for ``right``, such as "accuracy".

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        ValueError: No batch was served.
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
    # Stalls of a loaded machine would make everything else look flat.
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
    # The legend is above the axes, because within them it would hide points.
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.08), ncols=3, fontsize=9, frameon=False)


def _share(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")
