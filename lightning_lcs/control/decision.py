"""From readings to a level: how policies combine, when a switch may happen. Pure functions of readings and time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from lightning_lcs.control.sensors import Readings


@dataclass(frozen=True)
class Request:
    """What a policy asks for.

    Attributes:
        alpha: the highest level that it allows, in [0, 1]; None abstains.
        reason: for the log.
        urgent: go down to it now, even within the dwell time.
        memory: what the policy wants to find in its next :class:`View`; immutable.
    """

    alpha: float | None
    reason: str = ""
    urgent: bool = False
    memory: Any = None


@dataclass(frozen=True)
class View:
    """What a policy sees.

    Attributes:
        readings: of this moment.
        alpha: the level at which the network runs.
        levels: all of them, the lowest first; ``alpha`` is one of them.
        memory: of the policy's last :class:`Request`; None before the first.
    """

    readings: Readings
    alpha: float
    levels: tuple[float, ...]
    memory: Any = None

    @property
    def below(self) -> float:
        """The next lower level; the lowest one where there is none."""
        return self.levels[max(self.levels.index(self.alpha) - 1, 0)]

    @property
    def above(self) -> float:
        """The next higher level; the highest one where there is none."""
        return self.levels[min(self.levels.index(self.alpha) + 1, len(self.levels) - 1)]


# A function of what it sees, and of nothing else, if its decisions shall be replayable. A number is short for
# ``Request(number)``, None abstains; either leaves the memory as it is.
Policy = Callable[[View], "Request | float | None"]


@dataclass(frozen=True)
class Rules:
    """What holds for all policies.

    Attributes:
        levels: that may be chosen, in [0, 1]; kept sorted, each once.
        dwell_s: least seconds from any switch to the next one, but for an urgent one down.

    Raises:
        ValueError: no levels, one outside [0, 1], or a negative time.
    """

    levels: tuple[float, ...]
    dwell_s: float = 2.0

    def __post_init__(self) -> None:
        levels = tuple(sorted({float(level) for level in self.levels}))
        if not levels or not all(0.0 <= level <= 1.0 for level in levels):
            raise ValueError(f"levels={self.levels!r} should be one or more numbers in [0, 1]")
        if not (self.dwell_s >= 0.0 and math.isfinite(self.dwell_s)):
            raise ValueError(f"dwell_s={self.dwell_s!r} should be a number of seconds, 0 or more")
        object.__setattr__(self, "levels", levels)

    def snap(self, alpha: float) -> float:
        """The highest level that is not above ``alpha``; the lowest one where there is none."""
        return max((level for level in self.levels if level <= alpha), default=self.levels[0])


class PolicyState(NamedTuple):
    """What is kept of one policy: its memory and, while it fails, the level that it holds and its error."""

    memory: Any = None
    held: float | None = None
    error: str = ""


@dataclass(frozen=True)
class State:
    """Where the decisions stand.

    Attributes:
        alpha: the level, one of the rules'.
        since_s: time of the last switch; None before the first.
        reason: of the last decision.
        policy_states: one per policy, in their order; empty before the first decision.
    """

    alpha: float
    since_s: float | None = None
    reason: str = ""
    policy_states: tuple[PolicyState, ...] = ()


def decide(policies: Sequence[Policy], readings: Readings, state: State, rules: Rules) -> State:
    """The next state: a pure function, whose time is that of the readings.

    Each policy says which level it allows at most. The lowest counts, snapped down to one of the levels. Up only when
    the dwell time since the last switch, up or down, is over; down likewise, unless a policy's ask is urgent: an urgent
    ask takes effect at once, since a network that is far too slow is worse than one switch more, and starts the dwell
    time anew. So two switches upwards are never closer than the dwell time. A policy that raises holds the level that
    it found when it began to fail: others may go lower, and come back to it. Where all abstain, the level stays.

    Args:
        policies: always the same ones, in the same order.
        readings: of this moment.
        state: the state before.
        rules: levels and dwell time.
    """
    alpha = state.alpha if state.alpha in rules.levels else rules.snap(state.alpha)
    policy_states = state.policy_states or (PolicyState(),) * len(policies)
    requests: list[tuple[float, bool, str]] = []
    kept: list[PolicyState] = []
    said: list[str] = []
    for name, policy, policy_state in zip(names(policies), policies, policy_states, strict=True):
        request, after = _request(policy, View(readings, alpha, rules.levels, policy_state.memory), policy_state)
        kept.append(after)
        if request.alpha is None:
            said.append(f"{name}: {request.reason or 'abstains'}")
        else:
            reason = f"{name}: {request.reason or f'asks for {request.alpha:g}'}"
            requests.append((rules.snap(request.alpha), request.urgent, reason))
    chosen, reason = _choose(requests, said, alpha, state.since_s, readings.time_s, rules)
    since = readings.time_s if chosen != state.alpha else state.since_s
    return State(chosen, since, reason, tuple(kept))


def names(policies: Sequence[Policy]) -> list[str]:
    """Names of policies for reasons and logs: of the function or class, numbered where there are several of one."""
    plain = [getattr(policy, "__name__", type(policy).__name__) for policy in policies]
    return [
        name if plain.count(name) == 1 else f"{name}#{plain[: index + 1].count(name)}"
        for index, name in enumerate(plain)
    ]


def _choose(
    requests: Sequence[tuple[float, bool, str]],
    said: Sequence[str],
    alpha: float,
    since_s: float | None,
    time_s: float,
    rules: Rules,
) -> tuple[float, str]:
    if not requests:
        return alpha, "; ".join(said)
    # The first of several that ask for the same speaks for all.
    wanted, _, reason = min(requests, key=lambda request: request[0])
    dwelling = since_s is not None and time_s - since_s < rules.dwell_s
    if wanted == alpha or not dwelling:
        return wanted, reason
    urgent = [request for request in requests if request[1] and request[0] < alpha]
    if urgent:
        wanted, _, reason = min(urgent, key=lambda request: request[0])
        return wanted, f"{reason} (urgent)"
    return alpha, f"{reason} (wants {wanted:g}, waits for the dwell time)"


def _request(policy: Policy, view: View, policy_state: PolicyState) -> tuple[Request, PolicyState]:
    try:
        answer = policy(view)
        if answer is None:
            return Request(None), PolicyState(policy_state.memory)
        request = answer if isinstance(answer, Request) else Request(float(answer), memory=policy_state.memory)
        if request.alpha is not None and not 0.0 <= request.alpha <= 1.0:
            raise ValueError(f"asked for alpha={request.alpha!r}, which is not in [0, 1]")
    except Exception as error:  # whatever a user's policy does, inference goes on
        held = view.alpha if policy_state.held is None else policy_state.held
        text = f"{type(error).__name__}: {error}"
        return Request(held, f"raised {text}; holds {held:g}"), PolicyState(policy_state.memory, held, text)
    return request, PolicyState(request.memory)
