"""The level table: levels by name with their costs and measurements, and the choice of a level for a budget."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from lightning_lcs.subspace.axis import check_alpha
from lightning_lcs.subspace.curves.curve import CurvePoint, Efficiency
from lightning_lcs.subspace.curves.curve_file import read_csv
from lightning_lcs.subspace.fingerprint import differ
from lightning_lcs.subspace.mode import Mode

# Rows of a file do not say at which weights they were measured: a file holds one set of weights, which are theirs.
_NOT_IN_FILES = ("weights",)
# Every table of two to seven levels has a level "small"; the level of alpha = 1 is always "full".
_WORDS = {
    0: (),
    1: ("small",),
    2: ("small", "medium"),
    3: ("small", "medium", "large"),
    4: ("tiny", "small", "medium", "large"),
    5: ("tiny", "small", "medium", "large", "xlarge"),
    6: ("nano", "tiny", "small", "medium", "large", "xlarge"),
}
MOST_LEVELS = 1000
MOST_TEXT = 200  # characters of a name


@dataclasses.dataclass(frozen=True, kw_only=True)
class NamedLevel(CurvePoint):
    """A row of a level table: a level with its name, its cost and what was measured there; see :class:`CurvePoint`.

    Attributes:
        name: The name of the level, unique in its table: 1 to 200 printable characters.
        alpha: The level that runs, in [0, 1].
        width: The share of channels that are kept, in (0, 1].
        sparsity: The share of zeros in the compressed weights, in [0, 1).
        bit_width: The bits of the compressed weights; 32 where they are not quantized.
        params: The number of parameters that are not zero by compression.
        macs: The multiply-accumulates of one sample.
        size_bytes: The size of the parameters and buffers, in bytes.
        settings: The values on the axes of compression modes of your own, by the name of the axis. The default is
            empty.
        latency_ms: The median time of a forward with one sample, in milliseconds; NaN if it was not measured.
        metrics: The metrics at this level, by name; empty if none was measured.
        weights: The fingerprint of the weights that it was measured at. The default is empty: it is not known.

    Raises:
        ValueError: The name is not such a text.

    Example:
        >>> from lightning_lcs.subspace.curves.level_table import NamedLevel
        >>> cost = {"width": 0.25, "sparsity": 0.0, "bit_width": 32, "params": 10, "macs": 20, "size_bytes": 40}
        >>> NamedLevel(name="small", alpha=0.0, **cost, latency_ms=1.5, metrics={"val_acc": 0.9}).name
        'small'
    """

    name: str

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not 0 < len(self.name) <= MOST_TEXT or not self.name.isprintable():
            raise ValueError(f"{self.name!r} can't be the name of a level: use 1 to {MOST_TEXT} printable characters")


def default_names(alphas: Sequence[float]) -> list[str]:
    """The default names of levels.

    alpha = 1 is "full". Below it, one level is "small"; two levels are "small" and "medium"; three are "small",
    "medium" and "large". A fourth level is "tiny", a fifth "xlarge", a sixth "nano". Seven or more levels are
    "level_1", "level_2" and so on, from the most compressed level.

    Args:
        alphas: The levels, ascending.

    Example:
        >>> from lightning_lcs.subspace.curves.level_table import default_names
        >>> default_names([0.0, 0.5, 1.0])
        ['small', 'medium', 'full']
    """
    below = [alpha for alpha in alphas if alpha != 1.0]
    words = _WORDS.get(len(below), tuple(f"level_{number}" for number in range(1, len(below) + 1)))
    return [*words, *(["full"] if len(below) < len(alphas) else [])]


GivenLevels: TypeAlias = Mapping[str, float | CurvePoint] | Sequence[float | CurvePoint] | str | os.PathLike[str] | None
"""What a level table is made from; see :func:`make_table`."""


def make_table(
    given: GivenLevels,
    mode: Mode,
    efficiency: Callable[[float], Efficiency],
) -> tuple[NamedLevel, ...]:
    """A level table by ascending alpha.

    Args:
        given: The levels: alphas; the points of a measured curve, which bring their metrics and latencies; the path of
            a curve file, such as "runs/version_0/curve.csv"; or alphas or points by name. Levels without a name get
            :func:`default_names`. The default, ``None``, stands for the alphas 0, 0.25, 0.5, 0.75 and 1, and for every
            bit width in quantized mode.
        mode: The compression mode.
        efficiency: Gives the cost of an alpha, at the level that runs there.

    Raises:
        FileNotFoundError: There is no such curve file.
        ValueError: An alpha is outside [0, 1], there is no level, two levels have one name, the file does not hold
            exactly one curve, or a point's cost is not that of this model.
    """
    if isinstance(given, (str, os.PathLike)):
        if not os.path.exists(given):
            raise FileNotFoundError(f"levels={os.fspath(given)!r} does not exist: give the path of a curve.csv")
        given = read_csv(given)
    if given is None:
        given = mode.default_alphas()
    named = list(given.items()) if isinstance(given, Mapping) else [(_own_name(value), value) for value in given]
    if not named:
        raise ValueError("levels is empty: give at least one level, or None for the default ones")
    found: dict[float, tuple[str | None, CurvePoint]] = {}
    for name, value in named:
        point = _point(value, efficiency)
        # Several alphas may stand for one level. The first of them is used, and a name is never dropped.
        if point.alpha in found and name is not None:
            raise ValueError(
                f"levels: {name!r} is alpha={point.alpha:g}, which is already another level of the table; leave one out"
            )
        found.setdefault(point.alpha, (name, point))
    ordered = [found[alpha] for alpha in sorted(found)]
    defaults = default_names([point.alpha for _, point in ordered])
    levels = [
        NamedLevel(**{**vars(point), "name": default if name is None else name})
        for (name, point), default in zip(ordered, defaults, strict=True)
    ]
    return check_table(levels)


def _own_name(value: Any) -> str | None:
    return value.name if isinstance(value, NamedLevel) else None


def _point(value: float | CurvePoint, efficiency: Callable[[float], Efficiency]) -> CurvePoint:
    if not isinstance(value, CurvePoint):
        return CurvePoint(**vars(efficiency(check_alpha(value))), latency_ms=math.nan, metrics={})
    cost = efficiency(value.alpha)
    names = [field.name for field in dataclasses.fields(Efficiency) if field.name != "settings"]
    for name in dict.fromkeys([*names, *cost.settings, *value.settings]):
        if not _equal(cost.value(name), value.value(name)):
            raise ValueError(
                f"levels: the point at alpha={value.alpha:g} has {name}={value.value(name)!r}, and this model has "
                f"{cost.value(name)!r} there: the curve was measured on another model, or before its levels changed"
            )
    return value


def _equal(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12)


def check_table(levels: Sequence[NamedLevel]) -> tuple[NamedLevel, ...]:
    """The levels as a table.

    Raises:
        ValueError: Two levels have the same name, or there are too many levels.
    """
    names = [level.name for level in levels]
    twice = next((name for name in names if names.count(name) > 1), None) if len(names) <= MOST_LEVELS else None
    if twice is not None:
        raise ValueError(f"levels: two levels have the name {twice!r}; give each level a name of its own")
    if len(names) > MOST_LEVELS:
        raise ValueError(f"levels: a table has at most {MOST_LEVELS} levels, and these are {len(names)}")
    return tuple(levels)


def check_measured_at(levels: Sequence[CurvePoint], weights: str) -> None:
    """Check that metrics are those of a model.

    Args:
        levels: The levels with their metrics.
        weights: The fingerprint of the model's weights.

    Raises:
        ValueError: Metrics were measured at other weights.
    """
    other = next((level for level in levels if level.metrics and differ(level.weights, weights)), None)
    if other is not None:
        raise ValueError(
            f"levels: the metrics at alpha={other.alpha:g} were measured at other weights than those of this model, "
            "such as the last ones of a training whose best ones are saved; measure the curve of these weights, with "
            "the LCSCallback lcs in the trainer:\n"
            "    trainer.validate(module, ckpt_path=...)  # the checkpoint to save\n"
            "    lcs.subspace_model.save(path, levels=lcs.curve)"
        )


def named_level(levels: Sequence[NamedLevel], name: str) -> NamedLevel:
    """The level of this name.

    Raises:
        ValueError: There is no such level.
    """
    found = next((level for level in levels if level.name == name), None)
    if found is None:
        raise ValueError(f"there is no level {name!r}: {_known(levels)}")
    return found


def level_for_budget(
    levels: Sequence[NamedLevel],
    *,
    macs: float | None = None,
    latency_ms: float | None = None,
    size_bytes: float | None = None,
    accuracy: float | None = None,
    metric: str | None = None,
) -> NamedLevel:
    """The level that fits a budget; see :meth:`SubspaceModel.fit_budget`."""
    limits = {"macs": macs, "latency_ms": latency_ms, "size_bytes": size_bytes}
    limits = {cost: limit for cost, limit in limits.items() if limit is not None}
    for name, number in {**limits, "accuracy": accuracy}.items():
        if number is not None and not math.isfinite(number):
            raise ValueError(f"{name}={number!r} is not a finite number")
    if not limits and accuracy is None:
        raise ValueError("fit_budget() needs a limit: macs=, latency_ms=, size_bytes= or accuracy=")
    if not levels:
        raise ValueError(f"there is no level to choose from: {_known(levels)}")
    fitting = list(levels)
    for cost, limit in limits.items():
        known = [level for level in fitting if not math.isnan(getattr(level, cost))]
        if not known:
            raise ValueError(f"no level fits, because {cost} was not measured at any of them")
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
            raise ValueError(f"no level fits, because {metric} was not measured at any level within the other limits")
        nearest = max(measured, key=lambda level: level.metrics[metric])
        raise ValueError(_misses(f"{metric} >= {accuracy:g}", nearest, f"{metric}={nearest.metrics[metric]:g}"))
    choose = max if limits else min
    return choose(reaching, key=lambda level: level.alpha)


def _metric(levels: Sequence[NamedLevel], metric: str | None) -> str:
    names = list(dict.fromkeys(name for level in levels for name in level.metrics))
    if metric is not None:
        if metric not in names:
            raise ValueError(f"metric={metric!r} was not measured; there are: {', '.join(names) or 'none'}")
        return metric
    found = [name for name in names if "acc" in name.lower()]
    if len(found) != 1:
        raise ValueError(
            f"accuracy= needs metric= here, because {len(found)} of the measured metrics "
            f"({', '.join(names) or 'none'}) have 'acc' in their name"
        )
    return found[0]


def _misses(limit: str, nearest: NamedLevel, value: str) -> str:
    return f"no level has {limit} within the other limits; the nearest level is {nearest.name!r} with {value}"


def _known(levels: Sequence[NamedLevel]) -> str:
    if not levels:
        return "this model has no level table; SubspaceModel.load() brings the table that save(path, levels=...) wrote"
    return f"the levels are {', '.join(repr(level.name) for level in levels)}"


def table_to_data(levels: Sequence[NamedLevel]) -> list[dict[str, Any]]:
    """Plain data for a file; a number that was not measured is ``None``."""
    rows = []
    for level in levels:
        row = {name: getattr(level, name) for name in _stored_fields()}
        # Rows of the built-in modes have no axis of their own.
        row["settings"] = {name: float(value) for name, value in level.settings.items()}
        row = {name: value for name, value in row.items() if name != "settings" or value}
        row["latency_ms"] = level.latency_ms if math.isfinite(level.latency_ms) else None
        row["metrics"] = {k: float(v) if math.isfinite(v) else None for k, v in level.metrics.items()}
        rows.append(row)
    return rows


def table_from_data(rows: Any) -> tuple[NamedLevel, ...]:
    """A table from the result of :func:`table_to_data`.

    Raises:
        ValueError: The data are not a level table.
    """
    if not isinstance(rows, list) or len(rows) > MOST_LEVELS:
        raise ValueError(f"the level table in the file is not a list of at most {MOST_LEVELS} levels")
    return check_table([_level(row) for row in rows])


def _level(row: Any) -> NamedLevel:
    fields = set(_stored_fields())
    if not isinstance(row, dict) or {*row, "settings"} != fields:
        raise ValueError(
            f"the level table in the file is malformed: a level has {', '.join(sorted(fields - {'settings'}))}"
        )
    metrics, settings = row["metrics"], row.get("settings", {})
    if not isinstance(settings, dict) or not all(_is_axis(name, value) for name, value in settings.items()):
        raise ValueError("the level table in the file is malformed: settings do not map names of axes to numbers")
    if not isinstance(metrics, dict) or not all(isinstance(name, str) for name in metrics):
        raise ValueError("the level table in the file is malformed: metrics do not map names to numbers")
    numbers = {k: _number(k, v) for k, v in row.items() if k not in ("name", "metrics", "settings")}
    whole = {k: numbers[k] for k in ("bit_width", "params", "macs", "size_bytes")}
    if not all(isinstance(value, int) and 0 <= value < 2**62 for value in whole.values()):
        raise ValueError(f"the level table in the file is malformed: {whole} must be counts of at least 0")
    check_alpha(numbers["alpha"])
    for share in ("width", "sparsity"):
        if not 0.0 <= numbers[share] <= 1.0:
            raise ValueError(f"the level table in the file is malformed: {share}={numbers[share]!r} is not in [0, 1]")
    if numbers["latency_ms"] < 0.0:
        raise ValueError(f"the level table in the file is malformed: latency_ms={numbers['latency_ms']!r} is negative")
    costs: dict[str, Any] = {**numbers, **whole}
    measured = {name: _number(name, value) for name, value in metrics.items()}
    return NamedLevel(**costs, name=row["name"], metrics=measured, settings=settings)


def _stored_fields() -> list[str]:
    return [field.name for field in dataclasses.fields(NamedLevel) if field.name not in _NOT_IN_FILES]


def _is_axis(name: Any, value: Any) -> bool:
    known = {field.name for field in dataclasses.fields(NamedLevel)}
    is_name = isinstance(name, str) and re.fullmatch(r"[a-z0-9_]{1,200}", name) is not None and name not in known
    return is_name and isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _number(name: str, value: Any) -> float:
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"the level table in the file is malformed: {name}={value!r} is not a number")
    return value
