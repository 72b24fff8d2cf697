"""Policies: from what the system says to the highest level that it allows. Each is a pure function of a View.

A policy that steps has two thresholds: past one it asks for the next lower level, past the other for the next higher
one, and between them for the level that there is. One that maps a reading to a level allows an interval of levels, by
the reading with and without a margin, and asks for the nearest to the present one. So a reading that swings within the
band between the thresholds, or by less than the margin, moves nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from lightning_lcs.control.decision import Request, View

ABSTAINS = "unknown, abstains"


@dataclass(frozen=True, kw_only=True)
class CpuPressure:
    """Step down while tasks wait for a CPU, up when they no longer do (Linux PSI, an average over 10 s).

    The waiting of this process counts, too: with more than one thread per CPU it presses itself.

    Attributes:
        high: share of time in which some task waits, above which to step down.
        low: below which to step up.
    """

    high: float = 0.4
    low: float = 0.2
    needs: ClassVar[tuple[str, ...]] = ("cpu_pressure",)

    def __post_init__(self) -> None:
        _check_band("high", self.high, "low", self.low, 0.0, 1.0)

    def __call__(self, view: View) -> Request:
        """The next level down, the present one, or the next level up."""
        return _step(view, view.readings.cpu_pressure, self.high, self.low, "pressure", ".0%")


@dataclass(frozen=True, kw_only=True)
class CpuLoad:
    """Step down while there are more runnable tasks than CPUs, up when there are fewer (load average of a minute).

    For systems without PSI: it answers about a minute late.

    Attributes:
        high: runnable tasks per usable CPU above which to step down.
        low: below which to step up.
    """

    high: float = 1.5
    low: float = 1.0
    needs: ClassVar[tuple[str, ...]] = ("cpu_load",)

    def __post_init__(self) -> None:
        _check_band("high", self.high, "low", self.low, 0.0, math.inf)

    def __call__(self, view: View) -> Request:
        """The next level down, the present one, or the next level up."""
        return _step(view, view.readings.cpu_load, self.high, self.low, "load per CPU", ".2f")


@dataclass(frozen=True, kw_only=True)
class MemoryAvailable:
    """Step down while memory is short, up when there is enough. Only activations shrink: weights stay loaded.

    Attributes:
        low: share of memory available below which to step down.
        high: above which to step up.
    """

    low: float = 0.1
    high: float = 0.2
    needs: ClassVar[tuple[str, ...]] = ("memory_available",)

    def __post_init__(self) -> None:
        _check_band("high", self.high, "low", self.low, 0.0, 1.0)

    def __call__(self, view: View) -> Request:
        """The next level down, the present one, or the next level up."""
        share = view.readings.memory_available
        # In use, so that more is worse as with the others.
        return _step(
            view, None if share is None else 1.0 - share, 1.0 - self.low, 1.0 - self.high, "memory used", ".0%"
        )


@dataclass(frozen=True, kw_only=True)
class Temperature:
    """Step down while it is hot, up when it has cooled; the lowest level at once when it is critical.

    Attributes:
        high_c: above which to step down, in degrees Celsius.
        low_c: below which to step up.
        critical_c: from which on the lowest level is urgent.
    """

    high_c: float = 80.0
    low_c: float = 70.0
    critical_c: float = 95.0
    needs: ClassVar[tuple[str, ...]] = ("temperature_c",)

    def __post_init__(self) -> None:
        _check_band("high_c", self.high_c, "low_c", self.low_c, -273.15, math.inf)
        if not self.critical_c >= self.high_c:
            raise ValueError(f"critical_c={self.critical_c!r} should not be below high_c={self.high_c!r}")

    def __call__(self, view: View) -> Request:
        """The next level down, the present one, or the next level up; from ``critical_c`` on the lowest."""
        degrees = view.readings.temperature_c
        if degrees is not None and degrees >= self.critical_c:
            return Request(view.levels[0], f"{degrees:.0f} C is critical", urgent=True)
        return _step(view, degrees, self.high_c, self.low_c, "temperature in C", ".0f")


@dataclass(frozen=True, kw_only=True)
class BatterySaver:
    """On battery, lower levels the emptier it is; every level when plugged in.

    alpha falls in a straight line from 1 at the charge ``below`` to ``lowest`` at ``empty``. An unknown power supply
    counts as none; an unknown charge abstains.

    Attributes:
        below: charge below which to save, in [0, 1].
        empty: charge at and below which ``lowest`` is asked for.
        lowest: level asked for at ``empty``.
        margin: charge that it takes above the line to go up again.
    """

    below: float = 0.3
    empty: float = 0.1
    lowest: float = 0.0
    margin: float = 0.02
    needs: ClassVar[tuple[str, ...]] = ("battery", "plugged_in")

    def __post_init__(self) -> None:
        _check_band("below", self.below, "empty", self.empty, 0.0, 1.0)
        if not 0.0 <= self.lowest <= 1.0:
            raise ValueError(f"lowest={self.lowest!r} should be a level, in [0, 1]")
        if not self.margin >= 0.0:
            raise ValueError(f"margin={self.margin!r} should not be negative")

    def __call__(self, view: View) -> Request:
        """The level on the line, or the present one within the margin of it."""
        charge = view.readings.battery
        if charge is None:
            return Request(None, ABSTAINS)
        if view.readings.plugged_in:
            return Request(1.0, f"plugged in, battery at {charge:.0%}")
        allowed = max(view.alpha, self._line(charge - self.margin))
        return Request(min(allowed, self._line(charge)), f"on battery at {charge:.0%}")

    def _line(self, charge: float) -> float:
        share = min(max((charge - self.empty) / (self.below - self.empty), 0.0), 1.0)
        return self.lowest + (1.0 - self.lowest) * share


def _step(view: View, value: float | None, high: float, low: float, what: str, form: str) -> Request:
    if value is None:
        return Request(None, ABSTAINS)
    if value > high:
        return Request(view.below, f"{what} {value:{form}} is above {high:{form}}")
    if value < low:
        return Request(view.above, f"{what} {value:{form}} is below {low:{form}}")
    return Request(view.alpha, f"{what} {value:{form}} is between {low:{form}} and {high:{form}}")


def _check_band(upper: str, high: float, lower: str, low: float, least: float, most: float) -> None:
    if not least <= low < high <= most:
        raise ValueError(
            f"{upper}={high!r} should be above {lower}={low!r}, and both in [{least:g}, {most:g}]: between the two "
            "nothing changes"
        )
