"""Choosing the level of a running network: readings, policies, decisions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_lcs.utils.lazy import lazy_names

if TYPE_CHECKING:
    from lightning_lcs.control.controller import RuntimeController as RuntimeController
    from lightning_lcs.control.controller import measure_profile as measure_profile
    from lightning_lcs.control.decision import Request as Request
    from lightning_lcs.control.decision import View as View
    from lightning_lcs.control.decision import decide as decide
    from lightning_lcs.control.latency_target import LatencyTarget as LatencyTarget
    from lightning_lcs.control.policies import BatterySaver as BatterySaver
    from lightning_lcs.control.policies import CpuLoad as CpuLoad
    from lightning_lcs.control.policies import CpuPressure as CpuPressure
    from lightning_lcs.control.policies import MemoryAvailable as MemoryAvailable
    from lightning_lcs.control.policies import Temperature as Temperature
    from lightning_lcs.control.recording import Recording as Recording
    from lightning_lcs.control.recording import read_recording as read_recording
    from lightning_lcs.control.recording import replay as replay
    from lightning_lcs.control.sensors import Readings as Readings
    from lightning_lcs.control.sensors import SystemReader as SystemReader

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "BatterySaver": "lightning_lcs.control.policies",
        "CpuLoad": "lightning_lcs.control.policies",
        "CpuPressure": "lightning_lcs.control.policies",
        "LatencyTarget": "lightning_lcs.control.latency_target",
        "MemoryAvailable": "lightning_lcs.control.policies",
        "Readings": "lightning_lcs.control.sensors",
        "Recording": "lightning_lcs.control.recording",
        "Request": "lightning_lcs.control.decision",
        "RuntimeController": "lightning_lcs.control.controller",
        "SystemReader": "lightning_lcs.control.sensors",
        "Temperature": "lightning_lcs.control.policies",
        "View": "lightning_lcs.control.decision",
        "decide": "lightning_lcs.control.decision",
        "measure_profile": "lightning_lcs.control.controller",
        "read_recording": "lightning_lcs.control.recording",
        "replay": "lightning_lcs.control.recording",
    },
)
