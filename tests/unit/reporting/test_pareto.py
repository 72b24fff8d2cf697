"""The Pareto front and the best level under a budget, against their definitions."""

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_lcs.reporting.pareto import best_under, lower_is_better, measured, pareto_front
from tests.unit.reporting.test_curve import CURVE, point


def at(macs, value, metric="val_acc"):
    return dataclasses.replace(point(0.5, **{metric: value}), macs=macs)


POINTS = st.lists(st.builds(at, st.integers(0, 5), st.integers(0, 5).map(float)), max_size=12)


def beats(one, other, sign=1.0):
    a, b = ((p.macs, -sign * p.metrics["val_acc"]) for p in (one, other))
    return a[0] <= b[0] and a[1] <= b[1] and a != b


@given(POINTS)
def test_the_front_is_what_no_other_point_beats_and_no_two_of_it_are_equal(points):
    front = pareto_front(points, "macs", "val_acc")
    for index, candidate in enumerate(points):
        beaten = any(beats(other, candidate) for other in points)
        twin = any((points[i].macs, points[i].metrics) == (candidate.macs, candidate.metrics) for i in front)
        assert (not beaten) == twin
        assert not (index in front and beaten)
    costs = [points[i].macs for i in front]
    assert costs == sorted(set(costs))


@given(POINTS, st.integers(-1, 6))
def test_the_best_under_a_budget_is_the_last_of_the_front_that_fits(points, budget):
    fitting = [points[i] for i in pareto_front(points, "macs", "val_acc") if points[i].macs <= budget]
    best = best_under(points, "macs", budget, "val_acc")
    assert (best is None) == (not fitting)
    if best is not None:
        assert (best.macs, best.metrics) == (fitting[-1].macs, fitting[-1].metrics)


def test_a_lower_loss_is_the_better_one():
    points = [at(1, 0.9, "val_loss"), at(2, 1.5, "val_loss"), at(3, 0.2, "val_loss")]
    assert pareto_front(points, "macs", "val_loss") == [0, 2]
    assert best_under(points, "macs", 2.5, "val_loss") is points[0]


def test_what_was_not_measured_is_left_out():
    assert pareto_front(CURVE, "latency_ms", "val_acc") == [2]
    assert not measured(CURVE[1], "latency_ms", "val_acc")
    assert not measured(CURVE[1], "macs", "val_loss")
    assert not measured(at(1, math.nan), "macs", "val_acc")


@pytest.mark.parametrize("name", ["val_loss", "loss", "top1_err", "test/rmse", "val_error"])
def test_losses_and_errors_are_better_when_low(name):
    assert lower_is_better(name)


@pytest.mark.parametrize("name", ["val_acc", "mAP", "lossless", "auroc", "dice", "terror"])
def test_other_metrics_when_high(name):
    assert not lower_is_better(name)
