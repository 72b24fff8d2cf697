"""The level table: levels by name, with what each costs and what was measured there, and a level for a budget."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lightning_lcs.subspace.curve import CurvePoint, Efficiency
from lightning_lcs.subspace.modes.registry import Mode, Quantized, check_alpha

# Every table of two to seven levels has a "small"; the level of alpha = 1 is "full" in each.
_WORDS = {
    0: (),
    1: ("small",),
    2: ("small", "medium"),
    3: ("small", "medium", "large"),
    4: ("tiny", "small", "medium", "large"),
    5: ("tiny", "small", "medium", "large", "xlarge"),
    6: ("nano", "tiny", "small", "medium", "large", "xlarge"),
}
DEFAULT_ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)
MOST_LEVELS = 1000
MOST_TEXT = 200  # characters of a name


@dataclasses.dataclass(frozen=True, kw_only=True)
class Level(CurvePoint):
    """A level that goes by a name: its cost and what was measured there; see :class:`CurvePoint`.

    Attributes:
        name: unique in its table.
    """

    name: str

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not 0 < len(self.name) <= MOST_TEXT or not self.name.isprintable():
            raise ValueError(f"{self.name!r} can't be the name of a level: use 1 to {MOST_TEXT} printable characters")


def default_names(alphas: Sequence[float]) -> list[str]:
    """Names of levels given by ascending alpha.

    alpha = 1 is "full". Below it one level is "small", two are "small" and "medium", three "small", "medium" and
    "large"; a fourth is "tiny", a fifth "xlarge", a sixth "nano". Seven or more are "level_1", "level_2" and so on,
    from the most compressed.
    """
    below = [alpha for alpha in alphas if alpha != 1.0]
    words = _WORDS.get(len(below), tuple(f"level_{number}" for number in range(1, len(below) + 1)))
    return [*words, *(["full"] if len(below) < len(alphas) else [])]


def make_table(
    given: Mapping[str, float | CurvePoint] | Sequence[float | CurvePoint] | None,
    mode: Mode,
    efficiency: Callable[[float], Efficiency],
) -> tuple[Level, ...]:
    """A level table by ascending alpha.

    Args:
        given: levels by name, or levels that get names by default: alphas, or the points of a measured curve, which
            bring their metrics and latencies; ``None`` for the alphas 0, 0.25, 0.5, 0.75 and 1, or for every bit width.
        mode: of compression.
        efficiency: cost of an alpha, at the level that runs there.

    Raises:
        ValueError: an alpha outside [0, 1], no level, two levels of one name, or a point whose cost is not this
            model's.
    """
    if given is None:
        bits = range(mode.min_bits, mode.max_bits + 1) if isinstance(mode, Quantized) else ()
        given = [mode.alpha(b) for b in bits] if isinstance(mode, Quantized) else list(DEFAULT_ALPHAS)
    named = list(given.items()) if isinstance(given, Mapping) else [(_own_name(value), value) for value in given]
    if not named:
        raise ValueError("levels is empty: give at least one level, or None for the default ones")
    found: dict[float, tuple[str | None, CurvePoint]] = {}
    for name, value in named:
        point = _point(value, efficiency)
        # Several alphas may stand for one level; the first of them counts, and a name is never dropped.
        if point.alpha in found and name is not None:
            raise ValueError(
                f"levels: {name!r} is alpha={point.alpha:g}, which another of the levels is already; leave one out"
            )
        found.setdefault(point.alpha, (name, point))
    ordered = [found[alpha] for alpha in sorted(found)]
    defaults = default_names([point.alpha for _, point in ordered])
    levels = [
        Level(**{**vars(point), "name": default if name is None else name})
        for (name, point), default in zip(ordered, defaults, strict=True)
    ]
    return check_table(levels)


def _own_name(value: Any) -> str | None:
    return value.name if isinstance(value, Level) else None


def _point(value: float | CurvePoint, efficiency: Callable[[float], Efficiency]) -> CurvePoint:
    if not isinstance(value, CurvePoint):
        return CurvePoint(**vars(efficiency(check_alpha(value))), latency_ms=math.nan, metrics={})
    cost = efficiency(value.alpha)
    different = [
        f.name for f in dataclasses.fields(Efficiency) if not _equal(getattr(cost, f.name), getattr(value, f.name))
    ]
    if different:
        field = different[0]
        raise ValueError(
            f"levels: the point at alpha={value.alpha:g} has {field}={getattr(value, field)!r}, and this model has "
            f"{getattr(cost, field)!r} there: the curve was measured on another model or before its levels changed"
        )
    return value


def _equal(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12)


def check_table(levels: Sequence[Level]) -> tuple[Level, ...]:
    """The levels as a table.

    Raises:
        ValueError: two levels of one name, or too many.
    """
    names = [level.name for level in levels]
    twice = next((name for name in names if names.count(name) > 1), None) if len(names) <= MOST_LEVELS else None
    if twice is not None:
        raise ValueError(f"levels: {twice!r} is the name of two levels; names are unique in a table")
    if len(names) > MOST_LEVELS:
        raise ValueError(f"levels: {len(names)} are more than {MOST_LEVELS}")
    return tuple(levels)


def named_level(levels: Sequence[Level], name: str) -> Level:
    """The level of this name.

    Raises:
        ValueError: there is none.
    """
    found = next((level for level in levels if level.name == name), None)
    if found is None:
        there_are = "there are: " if levels else ""
        raise ValueError(f"name={name!r} is no level; {there_are}{_names(levels)}")
    return found


def level_for_budget(
    levels: Sequence[Level],
    *,
    macs: float | None = None,
    latency_ms: float | None = None,
    size_bytes: float | None = None,
    accuracy: float | None = None,
    metric: str | None = None,
) -> Level:
    """The level that fits a budget; see :meth:`SubspaceModel.fit_budget`."""
    limits = {"macs": macs, "latency_ms": latency_ms, "size_bytes": size_bytes}
    limits = {cost: limit for cost, limit in limits.items() if limit is not None}
    for name, number in {**limits, "accuracy": accuracy}.items():
        if number is not None and not math.isfinite(number):
            raise ValueError(f"{name}={number!r} is not a finite number")
    if not limits and accuracy is None:
        raise ValueError("fit_budget() needs a limit: macs=, latency_ms=, size_bytes= or accuracy=")
    if not levels:
        raise ValueError(f"no level to choose from: {_names(levels)}")
    fitting = list(levels)
    for cost, limit in limits.items():
        known = [level for level in fitting if not math.isnan(getattr(level, cost))]
        if not known:
            raise ValueError(f"no level fits: {cost} of the levels was not measured")
        fitting = [level for level in known if getattr(level, cost) <= limit]
        if not fitting:
            nearest = min(known, key=lambda level: getattr(level, cost))
            raise ValueError(_misses(f"{cost} <= {limit:g}", nearest, f"{cost}={getattr(nearest, cost):g}"))
    if accuracy is None:
        return max(fitting, key=lambda level: level.alpha)
    metric = _metric(levels, metric)
    measured = [level for level in fitting if metric in level.metrics and not math.isnan(level.metrics[metric])]
    reaching = [level for level in measured if level.metrics[metric] >= accuracy]
    if not reaching:
        if not measured:
            raise ValueError(f"no level fits: {metric} was not measured at those within the other limits")
        nearest = max(measured, key=lambda level: level.metrics[metric])
        raise ValueError(_misses(f"{metric} >= {accuracy:g}", nearest, f"{metric}={nearest.metrics[metric]:g}"))
    choose = max if limits else min
    return choose(reaching, key=lambda level: level.alpha)


def _metric(levels: Sequence[Level], metric: str | None) -> str:
    names = list(dict.fromkeys(name for level in levels for name in level.metrics))
    if metric is not None:
        if metric not in names:
            raise ValueError(f"metric={metric!r} was not measured; there are: {', '.join(names) or 'none'}")
        return metric
    found = [name for name in names if "acc" in name.lower()]
    if len(found) != 1:
        raise ValueError(
            f"accuracy= needs metric= here: of the measured metrics ({', '.join(names) or 'none'}) "
            f"{len(found)} have 'acc' in their name"
        )
    return found[0]


def _misses(limit: str, nearest: Level, value: str) -> str:
    return f"no level has {limit} (within the other limits): the nearest is {nearest.name!r} with {value}"


def _names(levels: Sequence[Level]) -> str:
    if not levels:
        return "this model has no level table; it comes with a file that save(path, levels=...) wrote"
    return ", ".join(repr(level.name) for level in levels)


def table_to_data(levels: Sequence[Level]) -> list[dict[str, Any]]:
    """Plain data for a file; a number that was not measured is ``None``."""
    rows = []
    for level in levels:
        row = {field.name: getattr(level, field.name) for field in dataclasses.fields(Level)}
        row["latency_ms"] = level.latency_ms if math.isfinite(level.latency_ms) else None
        row["metrics"] = {k: float(v) if math.isfinite(v) else None for k, v in level.metrics.items()}
        rows.append(row)
    return rows


def table_from_data(rows: Any) -> tuple[Level, ...]:
    """A table out of what :func:`table_to_data` gave.

    Raises:
        ValueError: it holds something else.
    """
    if not isinstance(rows, list) or len(rows) > MOST_LEVELS:
        raise ValueError(f"the level table in the file is no list of at most {MOST_LEVELS} levels")
    return check_table([_level(row) for row in rows])


def _level(row: Any) -> Level:
    fields = {field.name for field in dataclasses.fields(Level)}
    if not isinstance(row, dict) or row.keys() != fields:
        raise ValueError(f"the level table in the file is malformed: a level has {', '.join(sorted(fields))}")
    metrics = row["metrics"]
    if not isinstance(metrics, dict) or not all(isinstance(name, str) for name in metrics):
        raise ValueError("the level table in the file is malformed: metrics are no mapping of names")
    numbers = {k: _number(k, v) for k, v in row.items() if k not in ("name", "metrics")}
    whole = {k: numbers[k] for k in ("bit_width", "params", "macs", "size_bytes")}
    if not all(isinstance(value, int) and 0 <= value < 2**62 for value in whole.values()):
        raise ValueError(f"the level table in the file is malformed: {whole} are not all counts")
    check_alpha(numbers["alpha"])
    for share in ("width", "sparsity"):
        if not 0.0 <= numbers[share] <= 1.0:
            raise ValueError(f"the level table in the file is malformed: {share}={numbers[share]!r} is not in [0, 1]")
    if numbers["latency_ms"] < 0.0:
        raise ValueError(f"the level table in the file is malformed: latency_ms={numbers['latency_ms']!r} is negative")
    costs: dict[str, Any] = {**numbers, **whole}
    return Level(**costs, name=row["name"], metrics={name: _number(name, value) for name, value in metrics.items()})


def _number(name: str, value: Any) -> float:
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"the level table in the file is malformed: {name}={value!r} is no number")
    return value
