"""What the system says of itself: readings, where each comes from, and what is unknown."""

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
# Sensors of processors by psutil's names; a drive or a battery that is hot says little about the processor.
_PROCESSOR_SENSORS = ("coretemp", "k10temp", "zenpower", "cpu_thermal", "cpu-thermal", "soc_thermal", "x86_pkg_temp")


class Forward(NamedTuple):
    """One measured call of the network: its level, and how long it took."""

    alpha: float
    latency_ms: float


@dataclass(frozen=True, kw_only=True)
class Readings:
    """What was read at one moment; None is unknown: no such source here, or nobody asked for it.

    Attributes:
        time_s: when, by the controller's clock.
        cpu_pressure: share of the last 10 s in which some runnable task waited for a CPU, in [0, 1] (Linux PSI).
        cpu_load: runnable tasks per CPU that this process may use, averaged over a minute.
        memory_available: share of memory that is left, in [0, 1].
        battery: charge, in [0, 1].
        plugged_in: whether the power supply is connected.
        temperature_c: of the hottest processor sensor; of the hottest sensor where none is known as a processor's.
        forwards: calls of the network since the readings before, the oldest first.
    """

    time_s: float
    cpu_pressure: float | None = None
    cpu_load: float | None = None
    memory_available: float | None = None
    battery: float | None = None
    plugged_in: bool | None = None
    temperature_c: float | None = None
    forwards: tuple[Forward, ...] = ()


SYSTEM = tuple(f.name for f in fields(Readings) if f.name not in ("time_s", "forwards"))
_OF_PSUTIL = ("memory_available", "battery", "plugged_in", "temperature_c")


@dataclass
class SystemReader:
    """Reads what it is asked for, and nothing else.

    Args:
        wanted: names of :class:`Readings`.
        pressure_file: a file of Linux PSI: the whole system's by default; a container's own is its cgroup's
            ``cpu.pressure``.

    Raises:
        ImportError: a reading needs psutil, which is missing.
        ValueError: a name that is none of the readings.
    """

    wanted: Iterable[str] = SYSTEM
    pressure_file: str | os.PathLike[str] = PRESSURE_FILE
    problems: dict[str, str] = field(default_factory=dict, init=False)  # a failed source's last error, by reading
    _psutil: Any = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        self.wanted = tuple(dict.fromkeys(self.wanted))
        for name in self.wanted:
            if name not in SYSTEM:
                raise ValueError(f"there is no reading {name!r}; there are: {', '.join(SYSTEM)}")
        if any(name in _OF_PSUTIL for name in self.wanted):
            self._psutil = require_psutil()

    def __call__(self) -> dict[str, float | bool | None]:
        """The readings by name; a source that is missing or fails is None, and its error is kept in ``problems``."""
        found: dict[str, float | bool | None] = {}
        for name in self.wanted:
            try:
                found[name] = self._sources()[name]()
                self.problems.pop(name, None)
            except Exception as error:  # drivers raise what they like, and inference goes on
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
        ImportError: it is missing.
    """
    with needed_for("readings of memory, battery and temperature"):
        return importlib.import_module("psutil")


def parse_pressure(text: str) -> float:
    """Share of the last 10 s in which some task was stalled, from the text of a PSI file.

    Args:
        text: such as "some avg10=2.07 avg60=1.28 avg300=1.56 total=14255129"; averages in percent.

    Returns:
        In [0, 1].

    Raises:
        ValueError: the text is of another form.
    """
    words = next((line.split() for line in text.splitlines() if line.startswith("some ")), [])
    percent = next((word.removeprefix("avg10=") for word in words if word.startswith("avg10=")), None)
    if percent is None:
        raise ValueError(f"not a PSI file, which has a line such as 'some avg10=0.00 ...': {text[:80]!r}")
    return min(max(float(percent) / 100.0, 0.0), 1.0)


def usable_cpus() -> int:
    """CPUs that this process may run on; a container's quota of CPU time does not show here."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def hottest(sensors: dict[str, Sequence[Any]]) -> float | None:
    """Highest temperature of processors, or of all sensors where none is known as a processor's.

    Args:
        sensors: as from ``psutil.sensors_temperatures()``, in degrees Celsius.

    Returns:
        None where there is no sensor, or none of them says anything plausible.
    """
    known = {name: found for name, found in sensors.items() if name in _PROCESSOR_SENSORS}
    values = [entry.current for found in (known or sensors).values() for entry in found]
    # Sensors that are not connected report 0, 255 or less than nothing.
    return max((float(v) for v in values if v is not None and math.isfinite(v) and 0.0 < v < 200.0), default=None)


def _share_available(memory: Any) -> float | None:
    return memory.available / memory.total if memory.total else None


def _charge(battery: Any) -> float | None:
    if battery is None or battery.percent is None:
        return None
    return min(max(float(battery.percent) / 100.0, 0.0), 1.0)


def _plugged(battery: Any) -> bool | None:
    return None if battery is None or battery.power_plugged is None else bool(battery.power_plugged)
