"""Readings of the system: what each one means, where it comes from, and how an unknown one is represented."""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

from lightning_lcs.utils.extras import needed_for

PRESSURE_FILE = "/proc/pressure/cpu"
# psutil's names of processor sensors. A hot drive or battery says little about the processor.
_PROCESSOR_SENSORS = ("coretemp", "k10temp", "zenpower", "cpu_thermal", "cpu-thermal", "soc_thermal", "x86_pkg_temp")


class Forward(NamedTuple):
    """One measured call of the network.

    Attributes:
        alpha: The level at which the network ran.
        latency_ms: How long the call took, in milliseconds.

    Example:
        >>> from lightning_lcs.control.sensors import Forward
        >>> Forward(alpha=0.5, latency_ms=12.0)
        Forward(alpha=0.5, latency_ms=12.0)
    """

    alpha: float
    latency_ms: float


@dataclass(frozen=True, kw_only=True)
class Readings:
    """What was read at one moment. None means unknown: the source does not exist here, or no policy asked for it.

    Attributes:
        time_s: The time by the controller's clock, in seconds.
        cpu_pressure: Share of the last 10 s in which some runnable task waited for a CPU, in [0, 1] (Linux PSI).
        cpu_load: Runnable tasks per CPU that this process may use, averaged over one minute.
        memory_available: Share of the memory that is available, in [0, 1].
        battery: Charge of the battery, in [0, 1].
        plugged_in: Whether the power supply is connected.
        temperature_c: Temperature of the hottest processor sensor, in degrees Celsius. Where no sensor is known to
            belong to a processor, it is that of the hottest sensor.
        forwards: Calls of the network since the previous readings, the oldest first. The default is none.

    Example:
        >>> from lightning_lcs.control.sensors import Forward, Readings
        >>> readings = Readings(time_s=12.5, battery=0.8, forwards=(Forward(alpha=1.0, latency_ms=21.0),))
        >>> print(readings.battery, readings.cpu_load)
        0.8 None
    """

    time_s: float
    cpu_pressure: float | None = None
    cpu_load: float | None = None
    memory_available: float | None = None
    battery: float | None = None
    plugged_in: bool | None = None
    temperature_c: float | None = None
    forwards: tuple[Forward, ...] = ()


SYSTEM_READINGS = tuple(f.name for f in fields(Readings) if f.name not in ("time_s", "forwards"))
_PSUTIL_READINGS = ("memory_available", "battery", "plugged_in", "temperature_c")


@dataclass
class SystemReader:
    """Reads the system: a call returns the wanted readings by name.

    A source that is missing or fails gives None, and its error is kept in ``problems``.

    Args:
        wanted: Names of the :class:`Readings` to read. The default is all of them.
        pressure_file: A Linux PSI file. The default is that of the whole system; that of a container is the
            ``cpu.pressure`` of its cgroup.

    Attributes:
        problems: The last error of each reading that failed, by name.

    Raises:
        ImportError: A wanted reading needs psutil, which is not installed.
        ValueError: A wanted name is not a reading.

    Example:
        >>> from pathlib import Path
        >>> from lightning_lcs.control.sensors import SystemReader
        >>> _ = Path("pressure").write_text("some avg10=25.00 avg60=1.28 avg300=1.56 total=14255129")
        >>> read = SystemReader(["cpu_pressure"], pressure_file="pressure")
        >>> read()
        {'cpu_pressure': 0.25}
    """

    wanted: Iterable[str] = SYSTEM_READINGS
    pressure_file: str | os.PathLike[str] = PRESSURE_FILE
    problems: dict[str, str] = field(default_factory=dict, init=False)
    _psutil: Any = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        self.wanted = tuple(dict.fromkeys(self.wanted))
        for name in self.wanted:
            if name not in SYSTEM_READINGS:
                raise ValueError(
                    f"wanted has {name!r}, which is not a reading; choose from {', '.join(SYSTEM_READINGS)}"
                )
        if any(name in _PSUTIL_READINGS for name in self.wanted):
            self._psutil = require_psutil()

    def __call__(self) -> dict[str, float | bool | None]:
        """Read the system: the value of each wanted reading, or None where it is unknown."""
        found: dict[str, float | bool | None] = {}
        for name in self.wanted:
            try:
                found[name] = self._sources()[name]()
                self.problems.pop(name, None)
            except Exception as error:  # drivers may raise anything, and inference has to go on
                found[name] = None
                self.problems[name] = f"{type(error).__name__}: {error}"
        return found

    def _sources(self) -> dict[str, Callable[[], float | bool | None]]:
        return {
            "cpu_pressure": lambda: parse_pressure(Path(self.pressure_file).read_text()),
            "cpu_load": lambda: os.getloadavg()[0] / usable_cpus(),
            "memory_available": lambda: _share_available(self._psutil.virtual_memory()),
            "battery": lambda: _charge(self._psutil.sensors_battery()),
            "plugged_in": lambda: _plugged(self._psutil.sensors_battery()),
            "temperature_c": lambda: hottest(self._psutil.sensors_temperatures()),
        }


def require_psutil() -> Any:
    """The module psutil.

    Raises:
        ImportError: It is not installed.
    """
    with needed_for("readings of memory, battery and temperature"):
        return importlib.import_module("psutil")


def parse_pressure(text: str) -> float:
    """Share of the last 10 s in which some task was stalled, from the text of a PSI file.

    Args:
        text: The text, such as "some avg10=2.07 avg60=1.28 avg300=1.56 total=14255129", with averages in percent.

    Returns:
        The share, in [0, 1].

    Raises:
        ValueError: The text has another form.
    """
    words = next((line.split() for line in text.splitlines() if line.startswith("some ")), [])
    percent = next((word.removeprefix("avg10=") for word in words if word.startswith("avg10=")), None)
    if percent is None:
        raise ValueError(f"not a PSI file, which has a line such as 'some avg10=0.00 ...': {text[:80]!r}")
    return min(max(float(percent) / 100.0, 0.0), 1.0)


def usable_cpus() -> int:
    """Number of CPUs that this process may run on; it does not reflect a container's quota of CPU time."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def hottest(sensors: dict[str, Sequence[Any]]) -> float | None:
    """Highest temperature of the processors, or of all sensors if none is known to belong to a processor.

    Args:
        sensors: Sensors in degrees Celsius, as ``psutil.sensors_temperatures()`` returns them.

    Returns:
        The temperature in degrees Celsius, or None if no sensor gives a plausible one.
    """
    known = {name: found for name, found in sensors.items() if name in _PROCESSOR_SENSORS}
    values = [entry.current for found in (known or sensors).values() for entry in found]
    # Sensors that are not connected report 0, 255 or a negative number.
    return max((float(v) for v in values if v is not None and math.isfinite(v) and 0.0 < v < 200.0), default=None)


def _share_available(memory: Any) -> float | None:
    return memory.available / memory.total if memory.total else None


def _charge(battery: Any) -> float | None:
    if battery is None or battery.percent is None:
        return None
    return min(max(float(battery.percent) / 100.0, 0.0), 1.0)


def _plugged(battery: Any) -> bool | None:
    return None if battery is None or battery.power_plugged is None else bool(battery.power_plugged)
