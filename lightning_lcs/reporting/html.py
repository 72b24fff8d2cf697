"""Runs as one HTML file that works offline: curves, levels, what was compressed, and where it ran."""

from __future__ import annotations

import html
import json
import math
import os
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from lightning_lcs.reporting.html_tables import Quantity, compressed, facts, level_table, overview, settings
from lightning_lcs.reporting.level_axis import level_axis
from lightning_lcs.reporting.pareto import lower_is_better, pareto_front
from lightning_lcs.reporting.runs import Run
from lightning_lcs.subspace.curves.curve import Curve, CurvePoint, metric_names
from lightning_lcs.subspace.curves.curve_file import COSTS
from lightning_lcs.utils.extras import needed_for
from lightning_lcs.utils.files import write_text

# The costs that a chart may have below; the axes of levels come from the modes.
COST_AXES = {
    "macs": Quantity("MACs per sample", "MACs", "SI"),
    "size_bytes": Quantity("Size", "Size", "SI", "B"),
    "latency_ms": Quantity("Latency", "Latency", "plain", "ms"),
}


def write_report(runs: Sequence[Run], path: str | os.PathLike[str], metric: str | None = None) -> Path:
    """Write a page about runs, whole or not at all.

    Args:
        runs: The runs, at least one.
        path: The path of the file.
        metric: The metric to show first. The default is the first metric that all curves have, preferably not a loss.

    Raises:
        ModuleNotFoundError: plotly is not installed.
        ValueError: No curve has the metric, or any metric at all.

    Example:
        >>> from lightning_lcs.reporting import CurvePoint, read_runs, write_csv, write_report
        >>> cost = {"sparsity": 0.0, "bit_width": 32, "params": 10, "macs": 20, "size_bytes": 40, "latency_ms": 1.0}
        >>> small = CurvePoint(alpha=0.0, width=0.25, **cost, metrics={"val_acc": 0.8})
        >>> full = CurvePoint(alpha=1.0, width=1.0, **{**cost, "macs": 90}, metrics={"val_acc": 0.9})
        >>> path = write_csv({"": [small, full]}, "runs/ours/curve.csv")
        >>> write_report(read_runs(["runs"]), "report.html").name
        'report.html'
    """
    return write_text(page(runs, plotly_code(), metric), path)


def plotly_code() -> str:
    """The JavaScript of plotly, which a page holds.

    Raises:
        ModuleNotFoundError: plotly is not installed.
    """
    with needed_for("a report"):
        from plotly.offline import get_plotlyjs
    code: str = get_plotlyjs()
    return code


def page(runs: Sequence[Run], plotly: str, metric: str | None = None) -> str:
    """The page as text.

    Args:
        runs: The runs, at least one.
        plotly: The JavaScript of plotly.
        metric: See :func:`write_report`.
    """
    series = series_of(runs)
    shown = chosen_metric(series, metric)
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs compared"
    if len(runs) > 1 and len(series) != len(runs):
        title = f"{len(series)} curves of {len(runs)} runs compared"
    data = {
        "metric": shown,
        "metrics": {name: {"lower": lower_is_better(name)} for name in metrics_of(series)},
        "axes": {name: axis.as_data() for name, axis in axes_of(series).items()},
        "series": [{"name": name, "points": [_point(p) for p in curve]} for name, curve in series.items()],
        "fronts": fronts_of(series),
        "learning": [entry for run in runs if (entry := learning_of(run))],
    }
    sections = [
        facts(series, shown) if len(series) == 1 else overview(series, shown),
        "".join(level_table(name, curve, _drift(runs, name), shown, len(series)) for name, curve in series.items()),
        "".join(compressed(run.name, run.summary["plan"], len(runs)) for run in runs if run.summary),
        "".join(settings(run.name, run.summary, len(runs)) for run in runs if run.summary),
    ]
    files = resources.files("lightning_lcs.reporting")
    return Template((files / "report.html").read_text(encoding="utf-8")).substitute(
        title=html.escape(title),
        subtitle=html.escape(subtitle(runs, series)),
        css=(files / "report.css").read_text(encoding="utf-8"),
        script=(files / "report.js").read_text(encoding="utf-8"),
        plotly=plotly.replace("</script", "<\\/script"),
        data=json.dumps(_finite(data), ensure_ascii=False).replace("</", "<\\/"),
        facts=sections[0],
        levels=sections[1],
        compressed=sections[2] or _unknown("summary.json"),
        settings=sections[3] or _unknown("summary.json"),
        paths="".join(f"<li>{html.escape(str(run.path))}</li>" for run in runs),
    )


def series_of(runs: Sequence[Run]) -> dict[str, Curve]:
    """All curves of all runs by the name of the run, and by the name of the curve if a run has several curves."""
    found: dict[str, Curve] = {}
    for run in runs:
        for name, curve in run.curves.items():
            alone = name if len(runs) == 1 else f"{run.name}: {name}"
            found[alone if name else run.name] = curve
    return found


def metrics_of(series: Mapping[str, Curve]) -> list[str]:
    """The names of all metrics, in the order of the first curve that has them."""
    return list(dict.fromkeys(name for curve in series.values() for name in metric_names(curve)))


def chosen_metric(series: Mapping[str, Curve], asked: str | None) -> str:
    """The metric to show first; see :func:`write_report`."""
    known = metrics_of(series)
    if asked is not None and asked not in known:
        raise ValueError(f"metric={asked!r} is on none of the curves; they have {', '.join(known) or 'none'}")
    if not known:
        raise ValueError("the curves hold costs and no metric: log a metric in validation_step")
    shared = [name for name in known if all(name in metric_names(curve) for curve in series.values())]
    candidates = shared or known
    return asked or next((name for name in candidates if not lower_is_better(name)), candidates[0])


def axes_of(series: Mapping[str, Curve]) -> dict[str, Quantity]:
    """What the charts may have below, by name: costs that were measured, and the axes along which levels lie."""
    points = [point for curve in series.values() for point in curve]
    costs = {
        name: quantity for name, quantity in COST_AXES.items() if any(math.isfinite(getattr(p, name)) for p in points)
    }
    levels = [level_axis([curve]) for curve in series.values()]
    return costs | {a.name: Quantity(a.label, a.label, "plain", a.unit, level=True) for a in levels}


def fronts_of(series: Mapping[str, Curve]) -> dict[str, dict[str, list[list[int]]]]:
    """By metric and cost, the Pareto front over all curves: the number of each point's curve, and its own number."""
    where = [(number, index) for number, curve in enumerate(series.values()) for index in range(len(curve))]
    points = [point for curve in series.values() for point in curve]
    costs = [name for name, axis in axes_of(series).items() if not axis.level]
    return {
        metric: {cost: [list(where[i]) for i in pareto_front(points, cost, metric)] for cost in costs}
        for metric in metrics_of(series)
    }


def learning_of(run: Run) -> dict[str, Any]:
    """The content of a run's chart over training: metrics by level, and losses. It is empty if nothing is known."""
    fitted = [evaluation for evaluation in run.evaluations if evaluation.stage == "fit"]
    charts: dict[str, list[dict[str, Any]]] = {}
    if len(fitted) > 1:
        for metric in metrics_of({str(e.step): e.curve for e in fitted}):
            charts[metric] = [
                {"name": f"alpha {alpha:.2f}", "alpha": alpha, "values": values}
                for alpha, values in _by_level([(e.step, e.curve) for e in fitted], metric).items()
            ]
    losses = [{"name": name, "alpha": None, "values": values} for name, values in run.losses.items() if len(values) > 1]
    if losses:
        charts["training losses"] = losses
    return {"run": run.name, "charts": charts} if charts else {}


def _by_level(evaluations: Sequence[tuple[int, Curve]], metric: str) -> dict[float, list[tuple[int, float]]]:
    levels = sorted({point.alpha for _, curve in evaluations for point in curve})
    return {
        alpha: [
            (step, p.metrics[metric])
            for step, curve in evaluations
            for p in curve
            if p.alpha == alpha and metric in p.metrics
        ]
        for alpha in levels
    }


def subtitle(runs: Sequence[Run], series: Mapping[str, Curve]) -> str:
    """One line about what was measured."""
    parts = []
    settings = [run.summary["settings"] for run in runs if run.summary]
    methods = [run.summary.get("method") or _subspace(run.summary["settings"]) for run in runs if run.summary]
    for words in ([s["network"] for s in settings], methods):
        if words:
            parts.append(", ".join(dict.fromkeys(words)))
    counts = sorted({len(curve) for curve in series.values()})
    parts.append(f"{' or '.join(map(str, counts))} levels")
    last = [run.evaluations[-1] for run in runs if run.evaluations]
    if len(last) == 1:
        when = f", epoch {last[0].epoch}, step {last[0].step:,}" if last[0].stage == "fit" else ""
        parts.append(f"measured in {last[0].stage}{when}")
    return " · ".join(parts)


def _subspace(settings: Mapping[str, Any]) -> str:
    return f"{settings['mode']['name']} {settings['subspace']}"


def _drift(runs: Sequence[Run], name: str) -> dict[float, float]:
    """The drift of the run whose only curve has this name."""
    found = next((run for run in runs if run.name == name and run.summary), None)
    return {} if found is None else dict(found.summary["drift"])


def _point(point: CurvePoint) -> dict[str, Any]:
    return {**point.settings, **{name: getattr(point, name) for name in COSTS}, "metrics": dict(point.metrics)}


def _finite(data: Any) -> Any:
    """Data that JSON can hold: NaN and infinity become ``None``."""
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, Mapping):
        return {key: _finite(value) for key, value in data.items()}
    return [_finite(value) for value in data] if isinstance(data, (list, tuple)) else data


def _unknown(file: str) -> str:
    return f'<p class="quiet">Not known: there is no {file} beside the curves.</p>'
