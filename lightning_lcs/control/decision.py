"""From readings to a level: how policies combine, and when the level may change.

These are pure functions of readings and time, so a recorded run can be replayed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from lightning_lcs.control.sensors import Readings
from lightning_lcs.utils.options import check_types


@dataclass(frozen=True)
class Request:
    """What a policy asks for.

    Attributes:
        alpha: The highest level that the policy allows, in [0, 1]. None abstains.
        reason: The reason, for the log. The default is a sentence with the level.
        urgent: Whether to go down to the level at once, even within the dwell time. The default is no.
        memory: An immutable value that the policy finds in its next :class:`View`.

    Example:
        >>> from lightning_lcs.control.decision import Request
        >>> Request(0.25, "the fan is broken", urgent=True).alpha
        0.25
    """

    alpha: float | None
    reason: str = ""
    urgent: bool = False
    memory: Any = None


@dataclass(frozen=True)
class View:
    """What a policy sees.

    Attributes:
        readings: The readings of this moment.
        alpha: The level at which the network runs, one of ``levels``.
        levels: All levels in ascending order.
        memory: The memory of the policy's last :class:`Request`; None before the first.

    Example:
        >>> from lightning_lcs.control.decision import View
        >>> from lightning_lcs.control.sensors import Readings
        >>> view = View(Readings(time_s=0.0), alpha=0.5, levels=(0.0, 0.5, 1.0))
        >>> view.below, view.above
        (0.0, 1.0)
    """

    readings: Readings
    alpha: float
    levels: tuple[float, ...]
    memory: Any = None

    @property
    def below(self) -> float:
        """The next lower level, or the lowest level if there is none."""
        return self.levels[max(self.levels.index(self.alpha) - 1, 0)]

    @property
    def above(self) -> float:
        """The next higher level, or the highest level if there is none."""
        return self.levels[min(self.levels.index(self.alpha) + 1, len(self.levels) - 1)]


# A policy should depend on its View only; otherwise its decisions can't be replayed. A number means Request(number) and
# None abstains. Both leave the policy's memory as it is.
Policy = Callable[[View], "Request | float | None"]


@dataclass(frozen=True)
class Rules:
    """The rules for all policies together.

    Attributes:
        levels: The levels to choose from, in [0, 1]; they are sorted, and duplicates are dropped.
        dwell_s: Minimum time between two switches in seconds; an urgent switch down does not wait. The default is 2.

    Raises:
        ValueError: There are no levels, one is outside [0, 1], or the time is negative.

    Example:
        >>> from lightning_lcs.control.decision import Rules
        >>> Rules(levels=(1.0, 0.0, 0.5)).snap(0.7)
        0.5
    """

    levels: tuple[float, ...]
    dwell_s: float = 2.0

    def __post_init__(self) -> None:
        check_types(self)
        levels = tuple(sorted({float(level) for level in self.levels}))
        if not levels or not all(0.0 <= level <= 1.0 for level in levels):
            raise ValueError(f"levels={self.levels!r} should be one or more numbers in [0, 1]")
        if not (self.dwell_s >= 0.0 and math.isfinite(self.dwell_s)):
            raise ValueError(f"dwell_s={self.dwell_s!r} should be a number of seconds, 0 or more")
        object.__setattr__(self, "levels", levels)

    def snap(self, alpha: float) -> float:
        """The highest level that is not above ``alpha``, or the lowest level if there is none.

        Args:
            alpha: The level asked for, in [0, 1].
        """
        return max((level for level in self.levels if level <= alpha), default=self.levels[0])


class PolicyState(NamedTuple):
    """What is kept of one policy between two decisions.

    Attributes:
        memory: The memory of its last request.
        held: The level that it holds while it fails.
        error: Its error while it fails.
    """

    memory: Any = None
    held: float | None = None
    error: str = ""


@dataclass(frozen=True)
class State:
    """The state between two decisions.

    Attributes:
        alpha: The level.
        since_s: Time of the last switch in seconds; None before the first.
        reason: The reason of the last decision.
        policy_states: What is kept of each policy, in their order; empty before the first decision.

    Example:
        >>> from lightning_lcs.control.decision import State
        >>> State(alpha=1.0)
        State(alpha=1.0, since_s=None, reason='', policy_states=())
    """

    alpha: float
    since_s: float | None = None
    reason: str = ""
    policy_states: tuple[PolicyState, ...] = ()


def decide(policies: Sequence[Policy], readings: Readings, state: State, rules: Rules) -> State:
    """The next state. This is a pure function, whose time is that of the readings.

    Each policy says which level it allows at most. The lowest of these counts, snapped down to one of the levels. If
    all policies abstain, the level stays.

    A switch waits until the dwell time since the last switch is over. An urgent request takes effect at once, because a
    network that is far too slow is worse than one more switch, and it starts the dwell time anew. So two switches
    upwards are never closer together than the dwell time.

    A policy that raises an exception holds the level at which it began to fail. Others may still ask for less.

    Args:
        policies: The policies: the same ones, in the same order, at every call.
        readings: The readings of this moment.
        state: The state before.
        rules: The levels and the dwell time.

    Example:
        >>> from lightning_lcs.control.decision import Rules, State, decide
        >>> from lightning_lcs.control.policies import BatterySaver
        >>> from lightning_lcs.control.sensors import Readings
        >>> readings = Readings(time_s=0.0, battery=0.2, plugged_in=False)
        >>> after = decide([BatterySaver()], readings, State(alpha=1.0), Rules(levels=(0.0, 0.25, 0.5, 0.75, 1.0)))
        >>> after.alpha, after.reason
        (0.5, 'BatterySaver: on battery at 20%')
    """
    alpha = state.alpha if state.alpha in rules.levels else rules.snap(state.alpha)
    before = state.policy_states or (PolicyState(),) * len(policies)
    requests: list[_NamedRequest] = []
    abstentions: list[str] = []
    policy_states: list[PolicyState] = []
    for name, policy, policy_state in zip(policy_names(policies), policies, before, strict=True):
        view = View(readings, alpha, rules.levels, policy_state.memory)
        request, policy_state_after = _ask(policy, view, policy_state)
        policy_states.append(policy_state_after)
        if request.alpha is None:
            abstentions.append(f"{name}: {request.reason or 'abstains'}")
        else:
            reason = f"{name}: {request.reason or f'asks for {request.alpha:g}'}"
            requests.append(_NamedRequest(rules.snap(request.alpha), request.urgent, reason))
    chosen, reason = _choose(requests, alpha, state.since_s, readings.time_s, rules) or (alpha, "; ".join(abstentions))
    since = readings.time_s if chosen != state.alpha else state.since_s
    return State(chosen, since, reason, tuple(policy_states))


def policy_names(policies: Sequence[Policy]) -> list[str]:
    """Names of policies for reasons and logs.

    A name is that of the function or class; it gets a number if there are several policies of that name.
    """
    plain = [getattr(policy, "__name__", type(policy).__name__) for policy in policies]
    return [
        name if plain.count(name) == 1 else f"{name}#{plain[: index + 1].count(name)}"
        for index, name in enumerate(plain)
    ]


class _NamedRequest(NamedTuple):
    level: float
    urgent: bool
    reason: str


def _choose(
    requests: Sequence[_NamedRequest], alpha: float, since_s: float | None, time_s: float, rules: Rules
) -> tuple[float, str] | None:
    """The level and the reason; None if there are no requests."""
    if not requests:
        return None
    # min returns the first of several requests for the same level, and its reason is reported.
    lowest = min(requests, key=lambda request: request.level)
    dwelling = since_s is not None and time_s - since_s < rules.dwell_s
    if lowest.level == alpha or not dwelling:
        return lowest.level, lowest.reason
    urgent = [request for request in requests if request.urgent and request.level < alpha]
    if urgent:
        lowest = min(urgent, key=lambda request: request.level)
        return lowest.level, f"{lowest.reason} (urgent)"
    return alpha, f"{lowest.reason} (wants {lowest.level:g}, waits for the dwell time)"


def _ask(policy: Policy, view: View, policy_state: PolicyState) -> tuple[Request, PolicyState]:
    """The policy's request, and what is kept of the policy."""
    try:
        answer = policy(view)
        if answer is None:
            return Request(None), PolicyState(policy_state.memory)
        request = answer if isinstance(answer, Request) else Request(float(answer), memory=policy_state.memory)
        if request.alpha is not None and not 0.0 <= request.alpha <= 1.0:
            raise ValueError(f"asked for alpha={request.alpha!r}, which is not in [0, 1]")
    except Exception as error:  # inference goes on, whatever a user's policy does
        held = view.alpha if policy_state.held is None else policy_state.held
        text = f"{type(error).__name__}: {error}"
        return Request(held, f"raised {text}; holds {held:g}"), PolicyState(policy_state.memory, held, text)
    return request, PolicyState(request.memory)
