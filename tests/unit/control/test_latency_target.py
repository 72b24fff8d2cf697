"""LatencyTarget on a simulated system: it finds the right level, stays there, and comes back."""

import random

import pytest

from lightning_lcs.control.controller import RuntimeController
from lightning_lcs.control.decision import View
from lightning_lcs.control.latency_target import LatencyTarget
from lightning_lcs.control.sensors import Forward, Readings
from tests.unit.control.simulated import LEVELS, Clock, Network, serve

TARGET_MS = 18.0
START = 100.0  # of the simulated clock
SHAPES = {
    "linear": lambda alpha: 4.0 + 10.0 * alpha,
    "quadratic": lambda alpha: 2.0 + 12.0 * alpha**2,
    "a step": lambda alpha: 5.0 if alpha < 0.1 else 13.0 + alpha,
}
# Seconds from the start, and the load in between: none, some, none, much, none.
PHASES = ((0.0, 20.0, 1.0), (20.0, 50.0, 1.6), (50.0, 80.0, 1.0), (80.0, 110.0, 2.6), (110.0, 140.0, 1.0))
SETTLED_S = 6.0


def load(time_s):
    return next(factor for begin, _, factor in reversed(PHASES) if time_s - START >= begin)


def simulate(policy, base, noise=0.05, seed=1, seconds=140.0, load=load):
    clock = Clock(START)
    network = Network(clock, base, load, noise, random.Random(seed))
    controller = RuntimeController(network, [policy], levels=LEVELS, clock=clock, read=dict)
    return serve(controller, network, seconds), network.switches


def within(found, begin, end):
    return [item for item in found if begin <= item[0] - START < end]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("known", [True, False], ids=["profile known", "profile unknown"])
def test_it_settles_in_every_phase_and_comes_back(shape, known):
    base = SHAPES[shape]
    policy = LatencyTarget(latency_ms=TARGET_MS, profile={a: base(a) for a in LEVELS} if known else None)
    served, switches = simulate(policy, base)
    for begin, end, factor in PHASES:
        settled = within(served, begin + SETTLED_S, end)
        in_target = sum(item.latency_ms <= TARGET_MS for item in settled) / len(settled)
        assert in_target >= policy.quantile
        assert len(within(switches, begin + SETTLED_S, end)) <= 2
        # Neither needlessly low nor too high: the best level, or one more where it just fits too.
        best = max(a for a in LEVELS if base(a) * factor * 1.07 <= (1 - policy.margin) * TARGET_MS)
        mean = sum(item.alpha for item in settled) / len(settled)
        assert best - 0.05 <= mean <= best + 1.05 / 6
        if factor == 1.0:
            assert {item.alpha for item in settled} == {1.0}


def test_the_check_sees_a_policy_that_flaps():
    """Without a margin and what it learned, the same policy tries again and again."""

    def forgetful(view):
        naive = View(view.readings, view.alpha, view.levels)  # no memory: each decision sees the last forwards only
        recent = [f.latency_ms for f in naive.readings.forwards]
        if not recent:
            return None
        return view.below if max(recent) > TARGET_MS else view.above

    _, switches = simulate(forgetful, SHAPES["linear"])
    assert len(within(switches, 20.0 + SETTLED_S, 50.0)) > 6


def test_a_profile_that_is_wrong_is_unlearned():
    """It says that the full network takes ten times as long as it does: the way up is found nevertheless."""
    wrong = {0.0: 4.0, 1.0: 140.0}
    high = lambda time_s: 4.0 if time_s - START < 10.0 else 1.0  # noqa: E731
    policy = LatencyTarget(latency_ms=TARGET_MS, profile=wrong)
    served, switches = simulate(policy, SHAPES["linear"], seconds=240.0, load=high)
    assert {item.alpha for item in within(served, 12.0, 16.0)} != {1.0}  # the load has gone, and it stays low at first
    assert {item.alpha for item in within(served, 210.0, 240.0)} == {1.0}
    assert len(switches) < 12


def test_a_target_that_no_level_meets_ends_at_the_lowest():
    served, switches = simulate(LatencyTarget(latency_ms=2.0), SHAPES["linear"], seconds=60.0)
    assert {item.alpha for item in within(served, SETTLED_S, 60.0)} == {0.0}
    assert len(switches) <= 2


def test_heavy_noise_at_the_edge_of_the_target_does_not_flap():
    counts = []
    for seed in range(3):
        policy = LatencyTarget(latency_ms=TARGET_MS, profile={a: 4.0 + 10.0 * a for a in LEVELS})
        served, switches = simulate(policy, SHAPES["linear"], 0.15, seed, 120.0, lambda time_s: 1.1)
        assert sum(item.latency_ms <= TARGET_MS for item in served) / len(served) >= 0.9
        counts.append(len(switches))
    assert max(counts) <= 24  # of 60 that the dwell time would allow


def test_too_slow_by_far_does_not_wait_for_the_dwell_time():
    rises = lambda time_s: 1.0 if time_s - START < 11.0 else 3.0  # noqa: E731
    served, _ = simulate(LatencyTarget(latency_ms=TARGET_MS), SHAPES["linear"], seconds=20.0, load=rises)
    slow = [item for item in within(served, 11.0, 20.0) if item.latency_ms > 1.5 * TARGET_MS]
    assert slow[-1].time_s - START < 13.0


def test_it_waits_for_enough_forwards_and_holds_meanwhile():
    policy, clock = LatencyTarget(latency_ms=TARGET_MS), Clock(START)
    network = Network(clock)
    controller = RuntimeController(network, [policy], levels=LEVELS, clock=clock, read=dict, interval_s=0.0)
    assert policy(View(Readings(time_s=0.0), 1.0, LEVELS)).alpha is None
    for _ in range(4):
        controller()
    assert controller.step().reason == "LatencyTarget: 3 of 8 forwards at this level"
    assert controller.alpha == 1.0


def test_a_clock_too_coarse_for_the_network_is_no_failure():
    served, _ = simulate(LatencyTarget(latency_ms=TARGET_MS), lambda alpha: 30.0 * (alpha == 1.0), seconds=30.0)
    assert served[-1].alpha < 1.0


def test_one_outlier_among_few_forwards_does_not_lower_the_level():
    policy = LatencyTarget(latency_ms=TARGET_MS)
    few = [14.0] * 8 + [60.0]

    def asked(latencies):
        forwards = tuple(Forward(1.0, latency) for latency in latencies)
        return policy(View(Readings(time_s=0.0, forwards=forwards), 1.0, LEVELS))

    assert asked(few).alpha == 1.0
    assert asked([19.0] * 17).alpha < 1.0
    assert not asked([19.0] * 17).urgent
    assert asked([14.0] * 9 + [60.0] * 3).urgent
