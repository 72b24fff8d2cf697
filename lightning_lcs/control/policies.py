"""Policies: each maps readings of the system to the highest level that it allows. They are pure functions of a View.

Most policies step: beyond one threshold they ask for the next lower level, beyond the other for the next higher one,
and between the two for the present level. BatterySaver maps a reading to a level, with a margin. So a reading that
swings between the thresholds, or by less than the margin, does not change the level.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from lightning_lcs.control.decision import Request, View
from lightning_lcs.utils.options import check_types

ABSTAINS = "unknown, abstains"


@dataclass(frozen=True, kw_only=True)
class CpuPressure:
    """Steps down while tasks wait for a CPU, and up when they no longer do (Linux PSI, an average over 10 s).

    This process counts, too: if it runs more than one thread per CPU, its own threads wait for each other.

    Attributes:
        high: Share of time in which some task waits for a CPU, in [0, 1]; above it the policy steps down. The default
            is 0.4.
        low: The share below which the policy steps up, less than ``high``. The default is 0.2.

    Raises:
        ValueError: ``low`` is not below ``high``, or one of them is outside [0, 1].

    Example:
        >>> from lightning_lcs.control.decision import View
        >>> from lightning_lcs.control.policies import CpuPressure
        >>> from lightning_lcs.control.sensors import Readings
        >>> CpuPressure()(View(Readings(time_s=0.0, cpu_pressure=0.6), alpha=1.0, levels=(0.0, 0.5, 1.0)))
        Request(alpha=0.5, reason='pressure 60% is above 40%', urgent=False, memory=None)
    """

    high: float = 0.4
    low: float = 0.2
    needs: ClassVar[tuple[str, ...]] = ("cpu_pressure",)

    def __post_init__(self) -> None:
        check_types(self)
        _check_band("high", self.high, "low", self.low, 0.0, 1.0)

    def __call__(self, view: View) -> Request:
        """The next lower level, the present level, or the next higher level."""
        return _step(view, view.readings.cpu_pressure, self.high, self.low, "pressure", ".0%")


@dataclass(frozen=True, kw_only=True)
class CpuLoad:
    """Steps down while there are more runnable tasks than CPUs, and up when there are fewer.

    It reads the load average of one minute, so it reacts about a minute late. Use it on systems without PSI.

    Attributes:
        high: Runnable tasks per usable CPU above which the policy steps down. The default is 1.5.
        low: Runnable tasks per usable CPU below which the policy steps up, 0 or more and less than ``high``. The
            default is 1.0.

    Raises:
        ValueError: ``low`` is not below ``high``, or it is negative.

    Example:
        >>> from lightning_lcs.control.decision import View
        >>> from lightning_lcs.control.policies import CpuLoad
        >>> from lightning_lcs.control.sensors import Readings
        >>> CpuLoad()(View(Readings(time_s=0.0, cpu_load=0.5), alpha=0.5, levels=(0.0, 0.5, 1.0))).alpha
        1.0
    """

    high: float = 1.5
    low: float = 1.0
    needs: ClassVar[tuple[str, ...]] = ("cpu_load",)

    def __post_init__(self) -> None:
        check_types(self)
        _check_band("high", self.high, "low", self.low, 0.0, math.inf)

    def __call__(self, view: View) -> Request:
        """The next lower level, the present level, or the next higher level."""
        return _step(view, view.readings.cpu_load, self.high, self.low, "load per CPU", ".2f")


@dataclass(frozen=True, kw_only=True)
class MemoryAvailable:
    """Steps down while memory is short, and up when there is enough.

    A lower level saves memory for activations only: the weights stay loaded.

    Attributes:
        low: Share of memory available, in [0, 1], below which the policy steps down. The default is 0.1.
        high: The share above which the policy steps up, more than ``low``. The default is 0.2.

    Raises:
        ValueError: ``low`` is not below ``high``, or one of them is outside [0, 1].

    Example:
        >>> from lightning_lcs.control.decision import View
        >>> from lightning_lcs.control.policies import MemoryAvailable
        >>> from lightning_lcs.control.sensors import Readings
        >>> readings = Readings(time_s=0.0, memory_available=0.05)
        >>> MemoryAvailable()(View(readings, alpha=1.0, levels=(0.0, 0.5, 1.0))).alpha
        0.5
    """

    low: float = 0.1
    high: float = 0.2
    needs: ClassVar[tuple[str, ...]] = ("memory_available",)

    def __post_init__(self) -> None:
        check_types(self)
        _check_band("high", self.high, "low", self.low, 0.0, 1.0)

    def __call__(self, view: View) -> Request:
        """The next lower level, the present level, or the next higher level."""
        share = view.readings.memory_available
        # Memory in use, so that more is worse, as for the other policies.
        return _step(
            view, None if share is None else 1.0 - share, 1.0 - self.low, 1.0 - self.high, "memory used", ".0%"
        )


@dataclass(frozen=True, kw_only=True)
class Temperature:
    """Steps down while the processor is hot, and up when it has cooled.

    At a critical temperature it asks for the lowest level at once.

    Attributes:
        high_c: Temperature above which the policy steps down, in degrees Celsius. The default is 80.
        low_c: Temperature below which the policy steps up, less than ``high_c``. The default is 70.
        critical_c: Temperature from which on the lowest level is urgent, ``high_c`` or more. The default is 95.

    Raises:
        ValueError: ``low_c`` is not below ``high_c``, or ``critical_c`` is below ``high_c``.

    Example:
        >>> from lightning_lcs.control.decision import View
        >>> from lightning_lcs.control.policies import Temperature
        >>> from lightning_lcs.control.sensors import Readings
        >>> Temperature()(View(Readings(time_s=0.0, temperature_c=97.0), alpha=1.0, levels=(0.0, 0.5, 1.0)))
        Request(alpha=0.0, reason='97 C is critical', urgent=True, memory=None)
    """

    high_c: float = 80.0
    low_c: float = 70.0
    critical_c: float = 95.0
    needs: ClassVar[tuple[str, ...]] = ("temperature_c",)

    def __post_init__(self) -> None:
        check_types(self)
        _check_band("high_c", self.high_c, "low_c", self.low_c, -273.15, math.inf)
        if not self.critical_c >= self.high_c:
            raise ValueError(f"critical_c={self.critical_c!r} should not be below high_c={self.high_c!r}")

    def __call__(self, view: View) -> Request:
        """The next lower level, the present level, or the next higher level; from ``critical_c`` on the lowest."""
        degrees = view.readings.temperature_c
        if degrees is not None and degrees >= self.critical_c:
            return Request(view.levels[0], f"{degrees:.0f} C is critical", urgent=True)
        return _step(view, degrees, self.high_c, self.low_c, "temperature in C", ".0f")


@dataclass(frozen=True, kw_only=True)
class BatterySaver:
    """Lowers the level with the battery's charge; it allows every level while the power supply is connected.

    On battery, alpha falls linearly from 1 at the charge ``below`` to ``lowest`` at the charge ``empty``. If it is
    unknown whether the power supply is connected, the policy assumes that it is not. If the charge is unknown, the
    policy abstains.

    Attributes:
        below: Charge below which the policy saves power, in [0, 1]. The default is 0.3.
        empty: Charge at and below which the policy asks for ``lowest``, in [0, 1] and less than ``below``. The default
            is 0.1.
        lowest: The level at ``empty``, in [0, 1]. The default is 0.
        margin: How far the charge must rise above the line before the level goes up again, 0 or more. The default is
            0.02.

    Raises:
        ValueError: A value is out of its range.

    Example:
        >>> from lightning_lcs.control.decision import View
        >>> from lightning_lcs.control.policies import BatterySaver
        >>> from lightning_lcs.control.sensors import Readings
        >>> readings = Readings(time_s=0.0, battery=0.05, plugged_in=False)
        >>> BatterySaver(lowest=0.25)(View(readings, alpha=1.0, levels=(0.0, 0.25, 1.0))).alpha
        0.25
    """

    below: float = 0.3
    empty: float = 0.1
    lowest: float = 0.0
    margin: float = 0.02
    needs: ClassVar[tuple[str, ...]] = ("battery", "plugged_in")

    def __post_init__(self) -> None:
        check_types(self)
        _check_band("below", self.below, "empty", self.empty, 0.0, 1.0)
        if not 0.0 <= self.lowest <= 1.0:
            raise ValueError(f"lowest={self.lowest!r} should be a level in [0, 1]")
        if not self.margin >= 0.0:
            raise ValueError(f"margin={self.margin!r} should not be negative")

    def __call__(self, view: View) -> Request:
        """The level on the line, or the present level if that is within the margin of it."""
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


def _step(view: View, value: float | None, high: float, low: float, what: str, spec: str) -> Request:
    if value is None:
        return Request(None, ABSTAINS)
    if value > high:
        return Request(view.below, f"{what} {value:{spec}} is above {high:{spec}}")
    if value < low:
        return Request(view.above, f"{what} {value:{spec}} is below {low:{spec}}")
    return Request(view.alpha, f"{what} {value:{spec}} is between {low:{spec}} and {high:{spec}}")


def _check_band(upper: str, high: float, lower: str, low: float, minimum: float, maximum: float) -> None:
    if not minimum <= low < high <= maximum:
        raise ValueError(
            f"{upper}={high!r} should be above {lower}={low!r}, and both should be in [{minimum:g}, {maximum:g}]: "
            "between the two the level does not change"
        )
