"""The level table: names, budgets, and what a file may say about it."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_lcs.subspace.curves.curve import CurvePoint, Efficiency
from lightning_lcs.subspace.curves.level_table import (
    NamedLevel,
    default_names,
    level_for_budget,
    make_table,
    named_level,
    table_from_data,
    table_to_data,
)
from lightning_lcs.subspace.modes import Quantized, Structured


def cost(alpha: float) -> Efficiency:
    return Efficiency(
        alpha=alpha,
        width=0.25 + 0.75 * alpha,
        sparsity=0.0,
        bit_width=32,
        params=int(100 + 900 * alpha),
        macs=int(1000 + 9000 * alpha),
        size_bytes=int(400 + 3600 * alpha),
    )


def point(alpha: float, latency: float = math.nan, **metrics: float) -> CurvePoint:
    return CurvePoint(**vars(cost(alpha)), latency_ms=latency, metrics=metrics)


CURVE = [point(a, 1.0 + a, val_acc=0.6 + 0.3 * a, val_loss=1.0 - a) for a in (0.0, 0.25, 0.5, 0.75, 1.0)]
TABLE = make_table(CURVE, Structured(), cost)


@pytest.mark.parametrize(
    ("alphas", "names"),
    [
        ([1.0], ["full"]),
        ([0.5], ["small"]),
        ([0.0, 1.0], ["small", "full"]),
        ([0.0, 0.25, 0.5, 0.75, 1.0], ["tiny", "small", "medium", "large", "full"]),
        ([i / 6 for i in range(7)], ["nano", "tiny", "small", "medium", "large", "xlarge", "full"]),
        ([i / 8 for i in range(9)], [*(f"level_{i}" for i in range(1, 9)), "full"]),
    ],
)
def test_default_names(alphas, names):
    assert default_names(alphas) == names


def test_the_default_table_has_costs_and_no_measurements():
    table = make_table(None, Structured(), cost)
    assert [(level.name, level.alpha) for level in table] == list(
        zip(["tiny", "small", "medium", "large", "full"], [0.0, 0.25, 0.5, 0.75, 1.0], strict=True)
    )
    assert all(math.isnan(level.latency_ms) and level.metrics == {} for level in table)
    bits = Quantized(min_bits=3, max_bits=5)
    assert [level.alpha for level in make_table(None, bits, cost)] == [1 / 3, 2 / 3, 1.0]


def test_names_of_ones_own_and_their_order():
    table = make_table({"roof": 1.0, "cellar": 0.1}, Structured(), cost)
    assert [(level.name, level.alpha) for level in table] == [("cellar", 0.1), ("roof", 1.0)]
    assert named_level(table, "roof").macs == 10000
    with pytest.raises(ValueError, match="there is no level 'attic': the levels are 'cellar', 'roof'"):
        named_level(table, "attic")


@pytest.mark.parametrize(
    ("given_levels", "message"),
    [
        ([], "empty"),
        ([1.5], "not in"),
        ({"": 1.0}, "name of a level"),
        ({"a\n": 1.0}, "name of a level"),
        ({"small": 0.0, "other": 0.0}, "already"),
        ([CurvePoint(**{**vars(cost(0.5)), "macs": 1}, latency_ms=1.0, metrics={})], "macs=1"),
    ],
)
def test_a_table_that_can_not_be_is_refused(given_levels, message):
    with pytest.raises(ValueError, match=message):
        make_table(given_levels, Structured(), cost)


@pytest.mark.parametrize(
    ("budget", "name"),
    [
        ({"macs": 10000}, "full"),
        ({"macs": 9999}, "large"),
        ({"size_bytes": 400}, "tiny"),
        ({"latency_ms": 1.6}, "medium"),
        ({"latency_ms": 1.6, "macs": 4000}, "small"),
        ({"accuracy": 0.6}, "tiny"),
        ({"accuracy": 0.7}, "medium"),
        ({"accuracy": 0.7, "macs": 8000}, "large"),
        ({"accuracy": 0.4, "metric": "val_loss"}, "tiny"),
    ],
)
def test_a_budget_finds_its_level(budget, name):
    assert level_for_budget(TABLE, **budget).name == name


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({}, "needs a limit"),
        ({"macs": 10}, r"macs <= 10 .*'tiny' with macs=1000"),
        ({"accuracy": 0.95}, r"val_acc >= 0.95 .*'full' with val_acc=0.9"),
        ({"accuracy": 0.8, "macs": 2000}, r"val_acc >= 0.8 .*'tiny'"),
        ({"latency_ms": math.nan}, "latency_ms=nan"),
        ({"accuracy": 0.8, "metric": "test_acc"}, "metric='test_acc' was not measured; there are: val_acc, val_loss"),
    ],
)
def test_a_budget_that_no_level_fits_names_the_nearest(budget, message):
    with pytest.raises(ValueError, match=message):
        level_for_budget(TABLE, **budget)


def test_what_was_not_measured_fits_no_budget():
    table = make_table(None, Structured(), cost)
    with pytest.raises(ValueError, match="latency_ms was not measured at any"):
        level_for_budget(table, latency_ms=1e9)
    with pytest.raises(ValueError, match="accuracy= needs metric="):
        level_for_budget(table, accuracy=0.0)
    with pytest.raises(ValueError, match="no level table"):
        level_for_budget([], macs=1e9)


@given(st.floats(900, 20000), st.floats(300, 8000))
def test_the_level_chosen_is_the_largest_within_all_limits(macs, size):
    fitting = [level for level in TABLE if level.macs <= macs and level.size_bytes <= size]
    if fitting:
        assert level_for_budget(TABLE, macs=macs, size_bytes=size) == fitting[-1]
    else:
        with pytest.raises(ValueError, match="the nearest level is 'tiny'"):
            level_for_budget(TABLE, macs=macs, size_bytes=size)


def test_a_table_survives_json():
    table = make_table([*CURVE[:2], point(1.0, math.nan, val_acc=math.nan)], Structured(), cost)
    again = table_from_data(json.loads(json.dumps(table_to_data(table), allow_nan=False)))
    assert again[:2] == table[:2]
    assert math.isnan(again[2].latency_ms)
    assert math.isnan(again[2].metrics["val_acc"])


def test_a_level_is_frozen():
    with pytest.raises(AttributeError):
        TABLE[0].name = "other"  # type: ignore[misc]
    assert isinstance(TABLE[0], NamedLevel)
