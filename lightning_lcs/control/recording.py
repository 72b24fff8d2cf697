"""Recorded decisions: JSON lines that can be replayed, by the policies that made them or by others."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, NamedTuple

from lightning_lcs.control import policies as _policies
from lightning_lcs.control.decision import Policy, Rules, State, decide, names
from lightning_lcs.control.latency_target import LatencyTarget
from lightning_lcs.control.sensors import Forward, Readings

VERSION = 1
_KNOWN = {
    kind.__name__: kind
    for kind in (
        _policies.BatterySaver,
        _policies.CpuLoad,
        _policies.CpuPressure,
        LatencyTarget,
        _policies.MemoryAvailable,
        _policies.Temperature,
    )
}


@dataclass(frozen=True)
class Decision:
    """One line of a recording: what was read, the level chosen, and why."""

    readings: Readings
    alpha: float
    reason: str


class Recording(NamedTuple):
    """What :func:`read_recording` found: rules, level before the first decision, policies as written, and decisions."""

    rules: Rules
    alpha: float
    policies: tuple[dict[str, Any], ...]
    decisions: tuple[Decision, ...]


def header_line(policies: Sequence[Policy], rules: Rules, alpha: float) -> str:
    """First line of a recording."""
    return json.dumps(
        {
            "lightning_lcs_recording": VERSION,
            "levels": rules.levels,
            "dwell_s": rules.dwell_s,
            "alpha": alpha,
            "policies": [_written(name, policy) for name, policy in zip(names(policies), policies, strict=True)],
        }
    )


def decision_line(decision: Decision) -> str:
    """One further line; what is unknown is left out of its readings, and floats are written exactly."""
    readings = {name: value for name, value in asdict(decision.readings).items() if value not in (None, ())}
    return json.dumps(
        {"time_s": readings.pop("time_s"), "readings": readings, "alpha": decision.alpha, "reason": decision.reason}
    )


def read_recording(path: str | os.PathLike[str]) -> Recording:
    """A recording as a controller wrote it; a last line that was cut off is left out.

    Raises:
        OSError: the file can't be read.
        ValueError: it is not a recording, or one of another version.
    """
    lines = Path(path).read_text().splitlines()
    try:
        first = json.loads(lines[0])
        version = first["lightning_lcs_recording"]
    except (IndexError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{os.fspath(path)} is not a recording: its first line should be the header of one") from error
    if version != VERSION:
        raise ValueError(f"{os.fspath(path)} is a recording of version {version}, and this is version {VERSION}")
    decisions = []
    for number, text in enumerate(lines[1:], 2):
        try:
            decisions.append(_decision(json.loads(text)))
        except (KeyError, TypeError, ValueError) as error:
            if number == len(lines):
                break  # the process ended while it wrote
            raise ValueError(f"{os.fspath(path)}, line {number}: not a decision ({error})") from error
    rules = Rules(tuple(first["levels"]), first["dwell_s"])
    return Recording(rules, first["alpha"], tuple(first["policies"]), tuple(decisions))


def replay(path: str | os.PathLike[str], policies: Sequence[Policy] | None = None) -> list[Decision]:
    """Decide again, from a recording's readings alone.

    With the policies that were recorded, the same levels come out, bit by bit. With others it shows what they would
    have asked for *of the same readings*: that a latency would have been another at another level is not in a recording.

    Args:
        path: of the recording.
        policies: by default those that were recorded, which must be this package's own.

    Raises:
        OSError: the file can't be read.
        ValueError: not a recording; or a recorded policy that is not this package's own, and none given.
    """
    recording = read_recording(path)
    chosen = [_remade(written) for written in recording.policies] if policies is None else list(policies)
    state, found = State(recording.alpha), []
    for recorded in recording.decisions:
        state = decide(chosen, recorded.readings, state, recording.rules)
        found.append(Decision(recorded.readings, state.alpha, state.reason))
    return found


def _written(name: str, policy: Policy) -> dict[str, Any]:
    if type(policy) not in _KNOWN.values() or not is_dataclass(policy):
        return {"name": name, "options": None}
    options = {f.name: getattr(policy, f.name) for f in fields(policy) if f.init}
    if options.get("profile") is not None:
        options["profile"] = list(options["profile"].items())  # JSON's keys are strings, these are numbers
    return {"name": type(policy).__name__, "options": options}


def _remade(written: dict[str, Any]) -> Policy:
    if written["options"] is None:
        raise ValueError(f"the policy {written['name']} was recorded by its name only: give replay(..., policies=)")
    options = dict(written["options"])
    if options.get("profile") is not None:
        options["profile"] = dict(options["profile"])
    policy: Policy = _KNOWN[written["name"]](**options)
    return policy


def _decision(data: dict[str, Any]) -> Decision:
    readings = dict(data["readings"])
    forwards = tuple(Forward(*forward) for forward in readings.pop("forwards", ()))
    return Decision(Readings(time_s=data["time_s"], forwards=forwards, **readings), data["alpha"], data["reason"])
