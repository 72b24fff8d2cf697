"""The decision as a pure function: dwell, combination, snapping, failures, monotony."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_lcs.control.decision import Request, Rules, State, View, decide, policy_names
from lightning_lcs.control.latency_target import LatencyTarget
from lightning_lcs.control.policies import BatterySaver, CpuLoad, CpuPressure, MemoryAvailable, Temperature
from lightning_lcs.control.sensors import Forward, Readings

RULES = Rules((0.0, 0.25, 0.5, 0.75, 1.0), dwell_s=2.0)
STEPPING = (CpuPressure(), CpuLoad(), MemoryAvailable(), Temperature())
POLICIES = (*STEPPING, BatterySaver(), LatencyTarget(latency_ms=20.0, window=16))
shares = st.none() | st.floats(0.0, 1.0)


@st.composite
def readings(draw, time_s=0.0, alpha=1.0):
    latencies = draw(st.lists(st.floats(1.0, 100.0), max_size=20))
    return Readings(
        time_s=time_s,
        cpu_pressure=draw(shares),
        cpu_load=draw(st.none() | st.floats(0.0, 5.0)),
        memory_available=draw(shares),
        battery=draw(shares),
        plugged_in=draw(st.sampled_from([None, False, True])),
        temperature_c=draw(st.none() | st.floats(20.0, 120.0)),
        forwards=tuple(Forward(alpha, latency) for latency in latencies),
    )


def worse(found: Readings, more: float) -> Readings:
    """The same moment with more pressure of every kind."""

    def moved(value, by):
        return None if value is None else value + by

    return Readings(
        time_s=found.time_s,
        cpu_pressure=moved(found.cpu_pressure, more),
        cpu_load=moved(found.cpu_load, more),
        memory_available=moved(found.memory_available, -more),
        battery=moved(found.battery, -more),
        plugged_in=found.plugged_in,
        temperature_c=moved(found.temperature_c, 20.0 * more),
        forwards=tuple(Forward(f.alpha, f.latency_ms * (1.0 + more)) for f in found.forwards),
    )


def run(draw, steps, policies=POLICIES, rules=RULES):
    """States of a history of readings at growing times."""
    state, time_s, history = State(1.0), 0.0, []
    for _ in range(steps):
        time_s += draw(st.floats(0.01, 3.0))
        found = draw(readings(time_s=time_s, alpha=state.alpha))
        history.append((state, found))
        state = decide(policies, found, state, rules)
    return history, state


@given(st.data())
def test_within_the_dwell_time_only_urgent_switches_down(data):
    history, last = run(data.draw, 12)
    states = [*(state for state, _ in history), last]
    switches = [
        (found.time_s, after.alpha - before.alpha, after.reason)
        for (before, found), after in zip(history, states[1:], strict=True)
        if after.alpha != before.alpha
    ]
    for (first, _, _), (second, change, reason) in itertools.pairwise(switches):
        if second - first < RULES.dwell_s:
            assert change < 0.0
            assert reason.endswith("(urgent)")
    assert all(state.alpha in RULES.levels for state in states)


@given(st.data())
def test_without_urgency_no_switch_within_the_dwell_time(data):
    state, time_s, last = State(1.0), 0.0, -math.inf
    for _ in range(20):
        time_s += data.draw(st.floats(0.01, 3.0))
        wish = data.draw(st.floats(0.0, 1.0))
        after = decide([lambda view, wish=wish: wish], Readings(time_s=time_s), state, RULES)
        if after.alpha != state.alpha:
            assert time_s - last >= RULES.dwell_s
            last = time_s
        state = after


@given(st.data(), st.floats(0.0, 2.0))
def test_more_pressure_never_gives_a_higher_level(data, more):
    history, _ = run(data.draw, 6)
    for state, found in history:
        assert decide(POLICIES, worse(found, more), state, RULES).alpha <= decide(POLICIES, found, state, RULES).alpha


def test_the_check_of_monotony_can_fail():
    backwards = [lambda view: view.readings.cpu_pressure]
    calm = Readings(time_s=0.0, cpu_pressure=0.3)
    assert decide(backwards, worse(calm, 0.5), State(0.5), RULES).alpha > (
        decide(backwards, calm, State(0.5), RULES).alpha
    )


@given(st.data())
def test_a_decision_depends_on_nothing_but_its_arguments(data):
    history, last = run(data.draw, 8)
    state = State(1.0)
    for before, found in history:
        assert state == before
        state = decide(POLICIES, found, state, RULES)
    assert state == last


@pytest.mark.parametrize("policy", STEPPING, ids=lambda policy: type(policy).__name__)
@given(values=st.lists(st.floats(0.0, 1.0), min_size=2, max_size=30), start=st.sampled_from(RULES.levels))
def test_a_reading_within_the_band_moves_nothing(policy, values, start):
    name = policy.needs[0]
    low, high = (
        getattr(policy, field) for field in (("low_c", "high_c") if name == "temperature_c" else ("low", "high"))
    )
    # Away from the edges by more than the rounding of 1 - share.
    inside = [low + (high - low) * (0.001 + 0.998 * value) for value in values]
    state = State(start)
    for index, value in enumerate(inside):
        state = decide([policy], Readings(time_s=10.0 * index, **{name: value}), state, RULES)
        assert state.alpha == start


@given(centre=st.floats(0.0, 1.0), swings=st.lists(st.floats(0.0, 1.0), min_size=2, max_size=30))
def test_a_charge_that_swings_within_the_margin_lowers_the_level_and_no_more(centre, swings):
    policy, state, levels = BatterySaver(margin=0.02), State(1.0), []
    for index, swing in enumerate(swings):
        found = Readings(time_s=10.0 * index, battery=centre + 0.019 * swing, plugged_in=False)
        state = decide([policy], found, state, RULES)
        levels.append(state.alpha)
    assert levels == sorted(levels, reverse=True)


def test_the_check_of_flapping_can_fail():
    policy, state, levels = BatterySaver(margin=0.0), State(1.0), []
    for index in range(6):
        found = Readings(time_s=10.0 * index, battery=0.2 + 0.01 * (index % 2 or -1), plugged_in=False)
        state = decide([policy], found, state, RULES)
        levels.append(state.alpha)
    assert levels == [0.25, 0.5, 0.25, 0.5, 0.25, 0.5]


def test_the_lowest_ask_counts_and_is_snapped_down():
    state = decide([lambda v: 0.9, lambda v: 0.7, lambda v: None], Readings(time_s=0.0), State(1.0), RULES)
    assert state.alpha == 0.5
    assert state.reason == "<lambda>#2: asks for 0.7"
    assert Rules((0.5, 1.0)).snap(0.1) == 0.5


def test_what_is_unknown_abstains_and_is_not_zero():
    nothing = Readings(time_s=0.0)
    for policy in POLICIES:
        request = policy(View(nothing, 0.5, RULES.levels))
        assert request.alpha is None
        assert "unknown" in request.reason
    # With all unknown the level stays; 0 would have meant the lowest level, or the highest.
    assert decide(POLICIES, nothing, State(0.5), RULES).alpha == 0.5
    # Those that know decide.
    some = Readings(time_s=0.0, cpu_pressure=0.9)
    assert decide(POLICIES, some, State(0.5), RULES).alpha == 0.25


def test_a_policy_that_raises_holds_its_level_while_others_go_on():
    def broken(view):
        raise KeyError("sensor")

    rules = Rules(RULES.levels, dwell_s=0.0)
    state = decide([broken], Readings(time_s=0.0), State(0.75), rules)
    assert state.alpha == 0.75
    assert "KeyError" in state.reason
    wishes = {0.0: 1.0, 1.0: 0.25, 2.0: 1.0}
    policies = [broken, lambda view: wishes[view.readings.time_s]]
    state, levels = State(0.75), []
    for time_s in wishes:
        state = decide(policies, Readings(time_s=time_s), state, rules)
        levels.append(state.alpha)
    assert levels == [0.75, 0.25, 0.75]


@pytest.mark.parametrize("answer", [1.5, -0.1, math.nan, "much", Request(2.0)])
def test_an_answer_that_is_no_level_is_a_failure(answer):
    state = decide([lambda view: answer], Readings(time_s=0.0), State(0.5), RULES)
    assert state.alpha == 0.5
    assert state.policy_states[0].error


def test_urgent_goes_down_at_once_but_only_as_far_as_urgent():
    policies = [lambda view: Request(0.5, urgent=True), lambda view: 0.0]
    state = decide(policies, Readings(time_s=1.0), State(1.0, since_s=0.0), RULES)
    assert (state.alpha, state.since_s) == (0.5, 1.0)
    assert decide(policies, Readings(time_s=2.9), state, RULES).alpha == 0.5
    assert decide(policies, Readings(time_s=3.0), state, RULES).alpha == 0.0
    up = [lambda view: Request(1.0, urgent=True)]
    assert decide(up, Readings(time_s=2.9), State(0.5, since_s=1.0), RULES).alpha == 0.5


def test_a_memory_comes_back_to_its_policy():
    def counts(view):
        return Request(None, memory=(view.memory or 0) + 1)

    state = State(1.0)
    for _ in range(3):
        state = decide([counts, lambda view: 1.0], Readings(time_s=0.0), state, RULES)
    assert [policy_state.memory for policy_state in state.policy_states] == [3, None]


def test_names_are_told_apart():
    assert policy_names([CpuPressure(), CpuPressure(high=0.9), CpuLoad()]) == [
        "CpuPressure#1",
        "CpuPressure#2",
        "CpuLoad",
    ]


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Rules(()), "levels"),
        (lambda: Rules((0.5, 1.2)), "1.2"),
        (lambda: Rules((1.0,), dwell_s=-1.0), "dwell_s=-1.0"),
        (lambda: CpuPressure(high=0.2, low=0.4), "high=0.2"),
        (lambda: CpuPressure(high=40.0), "high=40.0"),
        (lambda: MemoryAvailable(low=0.3), "low=0.3"),
        (lambda: Temperature(critical_c=60.0), "critical_c=60.0"),
        (lambda: BatterySaver(below=0.05), "below=0.05"),
        (lambda: BatterySaver(lowest=2.0), "lowest=2.0"),
        (lambda: BatterySaver(margin=-1.0), "margin=-1.0"),
        (lambda: LatencyTarget(latency_ms=0.0), "latency_ms=0.0"),
        (lambda: LatencyTarget(latency_ms=math.nan), "latency_ms=nan"),
        (lambda: LatencyTarget(latency_ms=1.0, window=0), "window=0"),
        (lambda: LatencyTarget(latency_ms=1.0, margin=1.0), "margin=1.0"),
        (lambda: LatencyTarget(latency_ms=1.0, profile={}), "profile"),
        (lambda: LatencyTarget(latency_ms=1.0, profile={0.5: -1.0}), "profile"),
    ],
)
def test_a_wrong_option_is_named(make, match):
    with pytest.raises(ValueError, match=match):
        make()


def test_what_each_policy_asks_for():
    def asked(policy, alpha=0.5, **found):
        return policy(View(Readings(time_s=0.0, **found), alpha, RULES.levels)).alpha

    assert [asked(CpuPressure(), cpu_pressure=p) for p in (0.1, 0.3, 0.5)] == [0.75, 0.5, 0.25]
    assert [asked(CpuLoad(), cpu_load=p) for p in (0.1, 1.2, 2.0)] == [0.75, 0.5, 0.25]
    assert [asked(MemoryAvailable(), memory_available=p) for p in (0.5, 0.15, 0.05)] == [0.75, 0.5, 0.25]
    assert [asked(Temperature(), temperature_c=p) for p in (50, 75, 85, 95)] == [0.75, 0.5, 0.25, 0.0]
    assert asked(CpuPressure(), alpha=0.0, cpu_pressure=1.0) == 0.0
    assert asked(CpuPressure(), alpha=1.0, cpu_pressure=0.0) == 1.0
    saver = BatterySaver(below=0.3, empty=0.1, lowest=0.2, margin=0.0)
    assert asked(saver, battery=0.05, plugged_in=True) == 1.0
    assert [asked(saver, battery=c, plugged_in=False) for c in (0.9, 0.3, 0.2, 0.1, 0.0)] == pytest.approx(
        [1.0, 1.0, 0.6, 0.2, 0.2]
    )
    assert asked(saver, battery=0.1) == pytest.approx(0.2)  # an unknown power supply counts as none
