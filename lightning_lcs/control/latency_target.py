"""LatencyTarget: a policy that keeps the latency within a target, and learns how latency depends on the level."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

from lightning_lcs.control.decision import Request, View
from lightning_lcs.control.policies import ABSTAINS
from lightning_lcs.control.sensors import Forward
from lightning_lcs.utils.options import check_types

# Number of latencies before and after a switch that are compared.
_COMPARED = 8
# Number of forwards whose median decides that the network is far too slow.
_BURST = 5
# A switch changes the expectation by this share of what it showed, and by a factor of two at most: the load may have
# changed at the same moment.
_GAIN = 0.7
_MAX_CORRECTION = math.log(2.0)
# A coarse clock may measure 0, which has no logarithm.
_MIN_LATENCY_MS = 1e-6
# Latency at alpha = 0 as a share of that at alpha = 1, as long as nothing is known about the network.
_FIXED_COST = 0.2


class LatencyMemory(NamedTuple):
    """What :class:`LatencyTarget` remembers.

    Attributes:
        alpha: The present level.
        since_s: Time of the switch to it, in seconds.
        recent: Latencies at this level since then, in milliseconds, at most a window of them. The first forward is not
            among them, since it also prepares the level.
        first_seen: Whether that first forward has been seen.
        went_up: Whether the last switch went up.
        failures: Number of switches up in a row that were soon taken back.
        before: Level and latency just before the switch, until the latencies before and after it have been compared.
        corrections: What was learned about each level, as the logarithm of a factor on the latency of the profile.
    """

    alpha: float
    since_s: float
    recent: tuple[float, ...] = ()
    first_seen: bool = False
    went_up: bool = False
    failures: int = 0
    before: Forward | None = None
    corrections: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class LatencyTarget:
    """Asks for the highest level whose latency stays within a target under the present load.

    The policy compares a quantile of the last latencies with the target. If it is above the target, the policy goes
    down to the highest level that it expects to be ``margin`` below the target. It goes up to the highest such level,
    too, by several levels at once if they fit.

    The latency that it expects of a level is the present one, times the ratio of the two levels' latencies in
    ``profile``, times what earlier switches have taught. A switch teaches by the latencies just before and just after
    it: 0.7 of what it showed, and at most a factor of two, since the load may have changed at the same moment. So a
    level that has just failed is not tried again, and the full level comes back when the load is gone.

    A switch up that is taken back within ``patience_s`` makes the next one wait, longer each time, up to
    ``patience_s``. So noise at the edge of the target does not make the level flap. If no higher level is expected to
    fit, the next one is tried anyway after three times ``patience_s``, and after twice that time whenever this fails.
    So a wrong expectation does not last forever.

    Attributes:
        latency_ms: The target in milliseconds, above 0.
        window: Number of latencies that the policy looks at, 1 or more. The default is 32.
        quantile: Share of the latencies that should be within the target, in [0, 1]. The default is 0.9.
        margin: How far below the target the expected latency of a level must be before the policy goes to it, as a
            share of the target, in [0, 1). The default is 0.1.
        profile: Latency in milliseconds by alpha on an idle machine, as :func:`measure_profile` returns it. Only ratios
            count; between its levels the latency is interpolated. The default is a straight line from 0.2 at alpha = 0
            to 1 at alpha = 1, from which the policy starts to learn.
        patience_s: How long a switch up must last to count as a success, in seconds, 0 or more. The default is 10.
        urgent: If the median of the last five latencies exceeds this many times the target, going down waits neither
            for the window nor for the dwell time. It is 1 or more, and the default is 1.5.

    Raises:
        ValueError: A value is out of its range.

    Example:
        >>> from lightning_lcs.control.decision import View
        >>> from lightning_lcs.control.latency_target import LatencyTarget
        >>> from lightning_lcs.control.sensors import Forward, Readings
        >>> policy = LatencyTarget(latency_ms=20, profile={0.0: 8.0, 0.5: 15.0, 1.0: 25.0})
        >>> readings = Readings(time_s=1.0, forwards=(Forward(alpha=1.0, latency_ms=25.0),) * 40)
        >>> request = policy(View(readings, alpha=1.0, levels=(0.0, 0.5, 1.0)))
        >>> request.alpha, request.reason
        (0.5, '25 ms of 20, too slow')
    """

    latency_ms: float
    window: int = 32
    quantile: float = 0.9
    margin: float = 0.1
    profile: Mapping[float, float] | None = None
    patience_s: float = 10.0
    urgent: float = 1.5
    needs: ClassVar[tuple[str, ...]] = ()
    _points: tuple[tuple[float, float], ...] = field(default=(), init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_types(self)
        for name, value, ok, allowed in (
            ("latency_ms", self.latency_ms, 0.0 < self.latency_ms < math.inf, "a positive number of milliseconds"),
            ("window", self.window, self.window >= 1, "1 or more"),
            ("quantile", self.quantile, 0.0 <= self.quantile <= 1.0, "in [0, 1]"),
            ("margin", self.margin, 0.0 <= self.margin < 1.0, "in [0, 1)"),
            ("patience_s", self.patience_s, 0.0 <= self.patience_s < math.inf, "0 or more seconds"),
            ("urgent", self.urgent, self.urgent >= 1.0, "1 or more"),
        ):
            if not ok:
                raise ValueError(f"{name}={value!r} should be {allowed}")
        profile = self.profile if self.profile is not None else {0.0: _FIXED_COST, 1.0: 1.0}
        points = sorted((float(alpha), float(latency)) for alpha, latency in profile.items())
        if not points or not all(0.0 < latency < math.inf for _, latency in points):
            raise ValueError(f"profile={self.profile!r} should map levels to positive latencies")
        object.__setattr__(self, "_points", tuple(points))

    def __call__(self, view: View) -> Request:
        """The level to go to, with what was learned as the memory of the request."""
        learned = self._learn(view)
        recent, enough = learned.recent, min(self.window, _COMPARED)
        burst = statistics.median(recent[-_BURST:]) if len(recent) >= _BURST else 0.0
        urgent = burst > self.urgent * self.latency_ms
        if len(recent) < enough and not urgent:
            if not recent and learned.before is None:
                return Request(None, ABSTAINS, memory=learned)
            return Request(view.alpha, f"{len(recent)} of {enough} forwards at this level", memory=learned)
        latency = max(_quantile(recent, self.quantile), burst if urgent else 0.0)
        aim = (1.0 - self.margin) * self.latency_ms
        expected = self._expected(view, learned, latency)
        fitting = [level for level, value in zip(view.levels, expected, strict=True) if value <= aim]
        said = f"{latency:.3g} ms of {self.latency_ms:.3g}"
        if latency > self.latency_ms:
            if not urgent and len(recent) < self.window // 2:  # a single outlier may decide the quantile of so few
                return Request(view.alpha, f"{said}, too slow by {len(recent)} forwards", memory=learned)
            lower = [level for level in fitting if level < view.alpha]
            return Request(max(lower, default=view.levels[0]), f"{said}, too slow", urgent, learned)
        higher = [level for level in fitting if level > view.alpha]
        stayed_s = view.readings.time_s - learned.since_s
        if higher and stayed_s >= self._wait_before_rise_s(learned.failures):
            return Request(max(higher), f"{said}, has room", memory=learned)
        if latency <= aim and view.above > view.alpha and stayed_s >= self._wait_before_trial_s(learned.failures):
            return Request(view.above, f"{said}, tries the next level", memory=learned)
        return Request(view.alpha, f"{said}, within the target", memory=learned)

    def _wait_before_rise_s(self, failures: int) -> float:
        return self.patience_s * min(2.0 ** (failures - 3), 1.0) if failures else 0.0

    def _wait_before_trial_s(self, failures: int) -> float:
        return 3.0 * self.patience_s * 2.0 ** min(failures, 5)

    def _learn(self, view: View) -> LatencyMemory:
        """The memory of the last request, updated by what the view shows."""
        now = view.readings.time_s
        if isinstance(view.memory, LatencyMemory):
            learned = view.memory
        else:
            learned = LatencyMemory(view.alpha, now, corrections=(0.0,) * len(view.levels))
        if learned.alpha != view.alpha:
            learned = self._after_switch(view, learned)
        elif learned.went_up and now - learned.since_s >= self.patience_s:
            learned = learned._replace(failures=0)
        latencies = [max(f.latency_ms, _MIN_LATENCY_MS) for f in view.readings.forwards if f.alpha == view.alpha]
        if latencies:
            new = latencies if learned.first_seen else latencies[1:]
            learned = learned._replace(recent=(*learned.recent, *new)[-self.window :], first_seen=True)
        before = learned.before
        if before is None or before.alpha == view.alpha or len(learned.recent) < min(self.window, _COMPARED):
            return learned
        return self._corrected(view, learned, before)

    def _after_switch(self, view: View, learned: LatencyMemory) -> LatencyMemory:
        """The memory for a new level, with the latency just before the switch for comparison."""
        before = learned.before
        if len(learned.recent) >= min(self.window, _COMPARED):
            before = Forward(learned.alpha, statistics.median(learned.recent[-_COMPARED:]))
        elif learned.recent:
            before = None  # the network did not run long enough at that level
        now, rises = view.readings.time_s, view.alpha > learned.alpha
        failures = learned.failures
        if not rises:
            taken_back = learned.went_up and now - learned.since_s < self.patience_s
            failures = failures + 1 if taken_back else 0
        return LatencyMemory(
            view.alpha, now, went_up=rises, failures=failures, before=before, corrections=learned.corrections
        )

    def _corrected(self, view: View, learned: LatencyMemory, before: Forward) -> LatencyMemory:
        """The memory after a switch, with corrections moved towards the ratio of latencies that the switch showed."""
        start, end = view.levels.index(before.alpha), view.levels.index(view.alpha)
        logs = self._log_latencies(view, learned)
        observed = math.log(statistics.median(learned.recent[:_COMPARED]) / before.latency_ms)
        error = observed - (logs[end] - logs[start])
        correction = _GAIN * min(max(error, -_MAX_CORRECTION), _MAX_CORRECTION)
        # Levels between the two get a part of it by their distance, and levels beyond the new one all of it.
        span = view.levels[end] - view.levels[start]
        shares = [min(max((level - view.levels[start]) / span, 0.0), 1.0) for level in view.levels]
        corrections = tuple(c + correction * share for c, share in zip(learned.corrections, shares, strict=True))
        return learned._replace(before=None, corrections=corrections)

    def _log_latencies(self, view: View, learned: LatencyMemory) -> list[float]:
        """Logarithm of the profile's latency at each level, corrected by what was learned."""
        return [math.log(self._profile(a)) + c for a, c in zip(view.levels, learned.corrections, strict=True)]

    def _expected(self, view: View, learned: LatencyMemory, latency: float) -> list[float]:
        """The expected latency of each level, where ``latency`` is that of the present one.

        A higher level is never expected to be faster. For higher levels, the median grows with the ratio of latencies,
        and the difference from the median to ``latency`` with the square root of the ratio: interruptions last equally
        long for a large network and a small one, but a large network meets more of them.
        """
        logs = self._log_latencies(view, learned)
        here = view.levels.index(view.alpha)
        median = statistics.median(learned.recent)
        found = [latency] * len(logs)
        for index in range(here + 1, len(logs)):
            ratio = max(math.exp(logs[index] - logs[here]), 1.0)
            above = math.sqrt(ratio) if latency > median else ratio
            found[index] = max(found[index - 1], ratio * median + above * (latency - median))
        for index in range(here - 1, -1, -1):
            found[index] = min(found[index + 1], latency * math.exp(logs[index] - logs[here]))
        return found

    def _profile(self, alpha: float) -> float:
        """The latency of the profile at a level, interpolated."""
        points = self._points
        if alpha <= points[0][0]:
            return points[0][1]
        for (left, low), (right, high) in itertools.pairwise(points):
            if alpha <= right:
                share = (alpha - left) / (right - left)
                return (1.0 - share) * low + share * high
        return points[-1][1]


def _quantile(values: Sequence[float], share: float) -> float:
    """Quantile by linear interpolation between the two nearest ranks."""
    ordered = sorted(values)
    position = share * (len(ordered) - 1)
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (position - low) * (ordered[high] - ordered[low])
