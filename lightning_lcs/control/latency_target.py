"""A policy that keeps latency under a target, and learns how latency follows the level."""

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

# Latencies next to a switch, on either side, that are compared.
_BESIDE = 8
# Forwards whose median tells that it is far too slow.
_BURST = 5
# The most that one switch may teach: the load may have changed in the same moment.
_LARGEST_LESSON = math.log(2.0)
_GAIN = 0.7
# A coarse clock says 0, of which there is no logarithm.
_SHORTEST_MS = 1e-6
# Share of the line in alpha that does not shrink, where nothing is known of the network yet.
_FIXED_COST = 0.2


class LatencyMemory(NamedTuple):
    """What :class:`LatencyTarget` remembers.

    Attributes:
        alpha: the level of ``recent``.
        arrived_s: since when it is set.
        recent: latencies at this level since then, in ms, at most a window of them; the first forward, which also
            prepares the level, is not among them.
        skipped: whether that first one has been seen.
        rose: whether the last switch went up.
        failures: rises in a row that were soon taken back.
        before: level and latency just before the switch, until the two have been compared.
        corrections: one per level: what was learned, as the logarithm of a factor on the profile's latency.
    """

    alpha: float
    arrived_s: float
    recent: tuple[float, ...] = ()
    skipped: bool = False
    rose: bool = False
    failures: int = 0
    before: Forward | None = None
    corrections: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class LatencyTarget:
    """Request for the highest level whose latency stays within a target under the load that there is.

    A quantile of the last forwards is compared with the target. Above it, the policy goes down to the highest level
    that it expects ``margin`` below the target; it goes up to the highest such level, by as many levels as fit at
    once. What it expects of a level is the present latency scaled by a ratio: of the two levels' latencies in
    ``profile``, times what every switch since has taught, by the latencies just before and just after it. (One switch
    teaches the larger part of what it showed, and less than a factor of two: the load may have changed with it.) So a
    level that has just failed is not tried again, and the full one comes back when load has gone.

    A rise that is taken back within ``patience_s`` makes the next one wait, longer each time, up to ``patience_s``:
    noise at the edge of the target does not make the level flap. Where no higher level is expected to fit, the next one
    is tried anyway after three times ``patience_s``, and after twice as long each time that this fails: what was
    learned wrongly does not stay for ever.

    Attributes:
        latency_ms: the target.
        window: forwards that are looked at.
        quantile: share of them that should be within the target.
        margin: how far below the target a level has to be expected before it is gone to, as a share of it.
        profile: latency in ms by alpha on an idle machine, as from :func:`measure_profile`; only ratios count, between
            its levels they are interpolated. Without one, a straight line in alpha from 0.2 to 1 is where learning
            begins.
        patience_s: see above.
        urgent: times the target from which on, by the median of the last five forwards, going down waits neither for
            the window nor for the dwell time.

    Raises:
        ValueError: a value out of its range.
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
        given = self.profile if self.profile is not None else {0.0: _FIXED_COST, 1.0: 1.0}
        points = sorted((float(alpha), float(latency)) for alpha, latency in given.items())
        if not points or not all(0.0 < latency < math.inf for _, latency in points):
            raise ValueError(f"profile={self.profile!r} should map levels to positive latencies")
        object.__setattr__(self, "_points", tuple(points))

    def __call__(self, view: View) -> Request:
        """The level to go to, with what was learned as the ask's memory."""
        learned = self._learn(view)
        recent, enough = learned.recent, min(self.window, _BESIDE)
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
            if not urgent and len(recent) < self.window // 2:  # one outlier would be enough for a quantile of so few
                return Request(view.alpha, f"{said}, too slow by {len(recent)} forwards", memory=learned)
            lower = [level for level in fitting if level < view.alpha]
            return Request(max(lower, default=view.levels[0]), f"{said}, too slow", urgent, learned)
        higher = [level for level in fitting if level > view.alpha]
        stayed = view.readings.time_s - learned.arrived_s
        if higher and stayed >= self._hesitation(learned.failures):
            return Request(max(higher), f"{said}, has room", memory=learned)
        if latency <= aim and view.above > view.alpha and stayed >= self._trial(learned.failures):
            return Request(view.above, f"{said}, tries the next level", memory=learned)
        return Request(view.alpha, f"{said}, in its target", memory=learned)

    def _hesitation(self, failures: int) -> float:
        return self.patience_s * min(2.0 ** (failures - 3), 1.0) if failures else 0.0

    def _trial(self, failures: int) -> float:
        return 3.0 * self.patience_s * 2.0 ** min(failures, 5)

    def _learn(self, view: View) -> LatencyMemory:
        now = view.readings.time_s
        if isinstance(view.memory, LatencyMemory):
            learned = view.memory
        else:
            learned = LatencyMemory(view.alpha, now, corrections=(0.0,) * len(view.levels))
        if learned.alpha != view.alpha:
            learned = self._moved(view, learned)
        elif learned.rose and now - learned.arrived_s >= self.patience_s:
            learned = learned._replace(failures=0)
        here = [max(f.latency_ms, _SHORTEST_MS) for f in view.readings.forwards if f.alpha == view.alpha]
        if here:
            fresh = here if learned.skipped else here[1:]
            learned = learned._replace(recent=(*learned.recent, *fresh)[-self.window :], skipped=True)
        before = learned.before
        if before is None or before.alpha == view.alpha or len(learned.recent) < min(self.window, _BESIDE):
            return learned
        return self._compared(view, learned, before)

    def _moved(self, view: View, learned: LatencyMemory) -> LatencyMemory:
        """The level has changed: start anew, with the latency just before for comparison."""
        before = learned.before
        if len(learned.recent) >= min(self.window, _BESIDE):
            before = Forward(learned.alpha, statistics.median(learned.recent[-_BESIDE:]))
        elif learned.recent:
            before = None  # too short a stay to compare with
        now, rises = view.readings.time_s, view.alpha > learned.alpha
        failures = learned.failures
        if not rises:
            soon = learned.rose and now - learned.arrived_s < self.patience_s
            failures = failures + 1 if soon else 0
        return LatencyMemory(
            view.alpha, now, rose=rises, failures=failures, before=before, corrections=learned.corrections
        )

    def _compared(self, view: View, learned: LatencyMemory, before: Forward) -> LatencyMemory:
        """One switch is over: move the corrections towards the ratio that it showed."""
        start, end = view.levels.index(before.alpha), view.levels.index(view.alpha)
        logs = self._logs(view, learned)
        seen = math.log(statistics.median(learned.recent[:_BESIDE]) / before.latency_ms)
        lesson = _GAIN * min(max(seen - (logs[end] - logs[start]), -_LARGEST_LESSON), _LARGEST_LESSON)
        # Levels between the two share in it by their distance, those beyond the end as much as the end.
        span = view.levels[end] - view.levels[start]
        shares = [min(max((level - view.levels[start]) / span, 0.0), 1.0) for level in view.levels]
        corrections = tuple(c + lesson * share for c, share in zip(learned.corrections, shares, strict=True))
        return learned._replace(before=None, corrections=corrections)

    def _logs(self, view: View, learned: LatencyMemory) -> list[float]:
        return [math.log(self._profile(a)) + c for a, c in zip(view.levels, learned.corrections, strict=True)]

    def _expected(self, view: View, learned: LatencyMemory, latency: float) -> list[float]:
        """What to expect of each level, where ``latency`` is that of the present one.

        A higher level is never expected to be faster. Upwards the median grows with the ratio, and what is above it
        with the root of the ratio: interruptions last as long for a large network as for a small one, and come more
        often.
        """
        logs = self._logs(view, learned)
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
        points = self._points
        if alpha <= points[0][0]:
            return points[0][1]
        for (left, low), (right, high) in itertools.pairwise(points):
            if alpha <= right:
                share = (alpha - left) / (right - left)
                return (1.0 - share) * low + share * high
        return points[-1][1]


def _quantile(values: Sequence[float], share: float) -> float:
    """By linear interpolation between the two nearest ranks."""
    ordered = sorted(values)
    position = share * (len(ordered) - 1)
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (position - low) * (ordered[high] - ordered[low])
