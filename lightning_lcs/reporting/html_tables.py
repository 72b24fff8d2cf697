"""Tables and lists of the HTML report."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from lightning_lcs.reporting.level_axis import level_axis
from lightning_lcs.reporting.pareto import lower_is_better, pareto_front
from lightning_lcs.reporting.terminal import scaled, sized
from lightning_lcs.subspace.curves.curve import Curve, CurvePoint, metric_names
from lightning_lcs.subspace.curves.level_table import default_names

NONE, MINUS, SIGMA = "\N{EN DASH}", "\N{MINUS SIGN}", "\N{GREEK SMALL LETTER SIGMA}"
_OPEN_UP_TO = 3  # curves or runs whose details are not folded


@dataclasses.dataclass(frozen=True)
class Quantity:
    """How the page's script writes the values of a chart's lower axis.

    Attributes:
        label: The title of the axis.
        short: The title where room is short.
        form: "SI" for numbers with k, M and G, "plain" for others.
        unit: The unit after a value. The default is none.
        level: Whether it is an axis along which levels lie, rather than a cost. The default is that it is a cost.
    """

    label: str
    short: str
    form: str
    unit: str = ""
    level: bool = False

    def as_data(self) -> dict[str, Any]:
        """For the page's script."""
        return dataclasses.asdict(self)


def facts(series: Mapping[str, Curve], metric: str) -> str:
    """The ends of the only curve beside each other."""
    (curve,) = series.values()
    full, small = curve[-1], curve[0]
    tiles = [
        _tile(metric, _metric(small, metric), _metric(full, metric), _change(small, full, metric)),
        _tile("MACs per sample", scaled(small.macs), scaled(full.macs), _ratio(full.macs, small.macs)),
        _tile("Size", sized(small.size_bytes), sized(full.size_bytes), _ratio(full.size_bytes, small.size_bytes)),
    ]
    if small.latency_ms == small.latency_ms and full.latency_ms == full.latency_ms:
        times = (f"{small.latency_ms:.2f} ms", f"{full.latency_ms:.2f} ms")
        tiles.append(_tile("Latency, one sample", *times, _ratio(full.latency_ms, small.latency_ms)))
    head = f"From alpha = {full.alpha:g} to alpha = {small.alpha:g}"
    return f"<p class='quiet'>{head}</p><dl class='facts'>{''.join(tiles)}</dl>"


def _tile(name: str, small: str, full: str, change: str) -> str:
    return (
        f"<div><dt>{escape(name)}</dt><dd><span class='from'>{full}</span><span class='arrow'>→</span>"
        f"<strong>{small}</strong></dd><dd class='quiet'>{change}</dd></div>"
    )


def _change(small: CurvePoint, full: CurvePoint, metric: str) -> str:
    if metric not in small.metrics or metric not in full.metrics:
        return ""
    change = small.metrics[metric] - full.metrics[metric]
    return f"{change:+.4f}".replace("-", MINUS)


def _ratio(full: float, small: float) -> str:
    return f"{full / small:.1f} times less" if small and full > small else "not less"


def overview(series: Mapping[str, Curve], metric: str) -> str:
    """A row per curve: the metric in full, most compressed and on average, and the range of costs."""
    rows = []
    for number, (name, curve) in enumerate(series.items()):
        full, small = curve[-1], curve[0]
        values = [point.metrics[metric] for point in curve if metric in point.metrics]
        mean = f"{sum(values) / len(values):.4f}" if values else NONE
        cells = [
            *(_metric(full, metric), _metric(small, metric), mean),
            *(scaled(full.macs), scaled(small.macs), sized(full.size_bytes), sized(small.size_bytes)),
        ]
        key = f"<i class='key' data-series='{number}'></i>"
        rows.append(f"<tr><th scope='row'>{key}{escape(name)}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    groups = "".join(
        f"<th colspan='{n}' scope='colgroup'>{escape(g)}</th>" for g, n in ((metric, 3), ("MACs", 2), ("Size", 2))
    )
    heads = "".join(
        f"<th scope='col'>{h}</th>" for h in ("full", "smallest", "mean", "full", "smallest", "full", "smallest")
    )
    lacking = any(metric not in metric_names(curve) for curve in series.values())
    note = f"<p class='quiet'>{NONE}: {escape(metric)} was not measured there.</p>" if lacking else ""
    return (
        "<h2>At a glance</h2><div class='scroll'><table class='overview'><thead>"
        f"<tr><th rowspan='2' scope='col'>Run</th>{groups}</tr><tr>{heads}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>{note}"
    )


def level_table(name: str, curve: Curve, drift: Mapping[float, float], metric: str, curves: int) -> str:
    """A row per level: its name in a file that is saved with the curve as its levels, costs, metrics, drift.

    Levels that another one of the same curve beats in the metric (its own, where it lacks that one) and in MACs are
    dimmed. Where MACs are the same at all levels (quantized mode), bytes are what counts.
    """
    axis = level_axis([curve])
    own = metric_names(curve)
    metric = metric if metric in own else next((name for name in own if not lower_is_better(name)), metric)
    cost = "macs" if len({point.macs for point in curve}) > 1 else "size_bytes"
    front = set(pareto_front(curve, cost, metric))
    metrics = sorted(metric_names(curve), key=lambda name: name != metric)
    units = {"macs": _unit([p.macs for p in curve]), "params": _unit([p.params for p in curve])}
    size_unit, size_scale = ("MB", 1e6) if curve[-1].size_bytes >= 1e5 else ("kB", 1e3)
    timed = any(point.latency_ms == point.latency_ms for point in curve)
    heads = [
        ("alpha", ""),
        ("Name", ""),
        (axis.label, axis.unit),
        *((m, "") for m in metrics),
        ("MACs", units["macs"][0]),
    ]
    heads += [("Size", size_unit)] + [("Latency", "ms")] * timed + [("Params", units["params"][0])]
    heads += [("Norm drift", SIGMA)] * bool(drift)
    head = "".join(
        f"<th scope='col'>{escape(text)}{f' <span>{unit}</span>' if unit else ''}</th>" for text, unit in heads
    )
    best = {m: (min if lower_is_better(m) else max)([p.metrics[m] for p in curve if m in p.metrics]) for m in metrics}
    rows = []
    names = default_names([point.alpha for point in curve])
    for index, (point, level) in enumerate(zip(curve, names, strict=True)):
        cells = [
            level,
            _formatted(point.value(axis.name), axis.format),
            *(f"<b>{_metric(point, m)}</b>" if point.metrics.get(m) == best[m] else _metric(point, m) for m in metrics),
            f"{point.macs / units['macs'][1]:.2f}",
            f"{point.size_bytes / size_scale:.2f}",
            *([_formatted(point.latency_ms, ".2f")] if timed else []),
            f"{point.params / units['params'][1]:.2f}",
            *([f"{drift[point.alpha]:.2f}" if point.alpha in drift else NONE] if drift else []),
        ]
        beaten = "" if index in front else " class='beaten'"
        body = "".join(f"<td>{cell}</td>" for cell in cells)
        rows.append(f"<tr{beaten}><th scope='row'>{point.alpha:.3f}</th>{body}</tr>")
    note = (
        ""
        if len(front) == len(curve)
        else (
            f"<p class='quiet'>Dimmed: another level has at least as good a {escape(metric)} for no more "
            f"{'MACs' if cost == 'macs' else 'bytes'}.</p>"
        )
    )
    table = (
        f"<div class='scroll'><table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>{note}"
    )
    return table if curves == 1 else _folded(name, table, curves)


def compressed(name: str, plan: Mapping[str, Any], runs: int) -> str:
    """What shrinks, what stays whole and why."""
    kept, numbers = plan["kept_numbers"], plan["numbers"]
    sentence = f"{len(plan['compressed'])} tensors are compressed. At alpha = 0, "
    if kept == numbers:
        sentence += f"their {numbers:,} entries have fewer bits."
    else:
        sentence += f"{kept:,} of {numbers:,} numbers are left ({kept / max(numbers, 1):.1%})."
    parts = [f"<p>{sentence}</p>"]
    if plan["whole"]:
        reasons: dict[str, list[str]] = {}
        for what, why in plan["whole"]:
            reasons.setdefault(why, []).append(what)
        items = "".join(
            f"<li>{escape(why)}<br><code>{escape(', '.join(names[:6]))}</code>"
            f"{f' and {len(names) - 6} more' if len(names) > 6 else ''}</li>"
            for why, names in reasons.items()
        )
        parts.append(f"<h3>Kept whole</h3><ul class='reasons'>{items}</ul>")
    else:
        parts.append("<p>Nothing that could shrink is kept whole; image channels and outputs always are.</p>")
    if plan["replaced"]:
        parts.append(f"<h3>Norms replaced</h3><ul>{''.join(f'<li>{escape(r)}</li>' for r in plan['replaced'])}</ul>")
    if plan["compressed"]:
        rows = "".join(
            f"<tr><th scope='row'><code>{escape(tensor)}</code></th><td>{escape(full)}</td><td>{escape(left)}</td></tr>"
            for tensor, full, left in plan["compressed"]
        )
        parts.append(
            f"<details><summary>All {len(plan['compressed'])} compressed tensors</summary><div class='scroll'><table "
            "class='tensors'><thead><tr><th scope='col'>Tensor</th><th scope='col'>Shape</th><th scope='col'>At "
            f"alpha = 0</th></tr></thead><tbody>{rows}</tbody></table></div></details>"
        )
    content = "".join(parts)
    return content if runs == 1 else _folded(name, content, runs)


def settings(name: str, summary: Mapping[str, Any], runs: int) -> str:
    """Settings, endpoints, hyperparameters, environment."""
    chosen = dict(summary["settings"])
    mode = dict(chosen.pop("mode"))
    method = {"method": summary["method"]} if "method" in summary else {}
    subspace = {**method, "mode": mode.pop("name"), **mode, **{k: v for k, v in chosen.items() if v is not None}}
    measured = {f"endpoint {key}": f"{value:.6g}" for key, value in summary["endpoints"].items()}
    stored = summary["statistics"]
    if stored["levels"]:
        measured["stored norm statistics"] = f"{stored['levels']} levels, {sized(stored['size_bytes'])}"
    lists = [
        ("Subspace", {**subspace, **measured}),
        ("Hyperparameters", {k: v for k, v in summary.get("hyperparameters", {}).items() if k not in subspace}),
        ("Environment", summary["environment"]),
    ]
    content = "<div class='columns'>" + "".join(_list(head, pairs) for head, pairs in lists if pairs) + "</div>"
    return content if runs == 1 else _folded(name, content, runs)


def _list(head: str, pairs: Mapping[str, Any]) -> str:
    items = "".join(f"<dt>{escape(k.replace('_', ' '))}</dt><dd>{escape(_plain(v))}</dd>" for k, v in pairs.items())
    return f"<section><h3>{head}</h3><dl class='pairs'>{items}</dl></section>"


def _plain(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return {"None": "none", "True": "yes", "False": "no", "": "none", "{}": "none"}.get(str(value), str(value))


def _folded(name: str, content: str, count: int) -> str:
    return f"<details{' open' if count <= _OPEN_UP_TO else ''}><summary>{escape(name)}</summary>{content}</details>"


def _unit(values: Sequence[float]) -> tuple[str, float]:
    """A unit in which the largest value is at least 1, and its size."""
    largest = max(values, default=0)
    return next(((unit, size) for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)) if largest >= size), ("", 1.0))


def _formatted(value: float, form: str) -> str:
    return f"{value:{form}}" if value == value else NONE


def _metric(point: CurvePoint, metric: str) -> str:
    value = point.metrics.get(metric)
    return NONE if value is None else f"{value:.4f}"
