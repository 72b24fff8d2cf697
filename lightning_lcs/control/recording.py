"""Recordings: the decisions of a controller as JSON lines, which can be replayed with the same or other policies."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, NamedTuple

from lightning_lcs.control import policies as _policies
from lightning_lcs.control.decision import Policy, Rules, State, decide, policy_names
from lightning_lcs.control.latency_target import LatencyTarget
from lightning_lcs.control.sensors import Forward, Readings

VERSION = 1
# The package's own policies, which a recording holds with their options.
_POLICIES = {
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
    """One decision of a controller.

    Attributes:
        readings: What was read.
        alpha: The level that was chosen, in [0, 1].
        reason: Why: the policy that decided, and what it saw.

    Example:
        >>> from lightning_lcs.control.recording import Decision
        >>> from lightning_lcs.control.sensors import Readings
        >>> Decision(Readings(time_s=3.0, battery=0.2), alpha=0.5, reason="BatterySaver: on battery at 20%").alpha
        0.5
    """

    readings: Readings
    alpha: float
    reason: str


class Recording(NamedTuple):
    """A recorded run of a controller, as :func:`read_recording` returns it.

    Attributes:
        rules: The levels and the dwell time.
        alpha: The level before the first decision.
        policies: The policies, each with its ``name`` and ``options``. The options are None for a policy that is not
            this package's own.
        decisions: The decisions, the oldest first.

    Example:
        >>> from lightning_lcs.control.decision import Rules
        >>> from lightning_lcs.control.recording import Recording
        >>> Recording(Rules(levels=(0.0, 1.0)), alpha=1.0, policies=(), decisions=()).rules.dwell_s
        2.0
    """

    rules: Rules
    alpha: float
    policies: tuple[dict[str, Any], ...]
    decisions: tuple[Decision, ...]


def recorded(value: Any) -> Any:
    """A reading as a recording holds it: a number that is not finite becomes None, which means unknown."""
    if value is None or isinstance(value, bool):
        return value
    return float(value) if math.isfinite(value) else None


def header_line(policies: Sequence[Policy], rules: Rules, alpha: float) -> str:
    """The first line of a recording: levels, dwell time, first level and policies."""
    return json.dumps(
        {
            "lightning_lcs_recording": VERSION,
            "levels": rules.levels,
            "dwell_s": rules.dwell_s,
            "alpha": alpha,
            "policies": [
                _policy_to_data(name, policy) for name, policy in zip(policy_names(policies), policies, strict=True)
            ],
        }
    )


def decision_line(decision: Decision) -> str:
    """A further line of a recording. Unknown readings are left out, and floats are written exactly."""
    readings = {name: value for name, value in asdict(decision.readings).items() if value not in (None, ())}
    return json.dumps(
        {"time_s": readings.pop("time_s"), "readings": readings, "alpha": decision.alpha, "reason": decision.reason}
    )


def read_recording(path: str | os.PathLike[str]) -> Recording:
    """Read a recording that a :class:`RuntimeController` wrote.

    A last line that is incomplete, because the process ended while it wrote, is left out.

    Args:
        path: The file, with one JSON object per line.

    Raises:
        OSError: The file can't be read.
        ValueError: The file is not a recording, or it is a recording of another version.

    Example:
        >>> from types import SimpleNamespace
        >>> from lightning_lcs import RuntimeController
        >>> from lightning_lcs.control.policies import BatterySaver
        >>> from lightning_lcs.control.recording import read_recording
        >>> net = SimpleNamespace(alpha=1.0, set_alpha=lambda alpha: None)
        >>> read = lambda: {"battery": 0.2, "plugged_in": False}
        >>> with RuntimeController(net, [BatterySaver()], read=read, recording="run.jsonl") as controller:
        ...     decision = controller.step()
        >>> read_recording("run.jsonl").decisions == (decision,)
        True
    """
    lines = Path(path).read_text().splitlines()
    try:
        first = json.loads(lines[0])
        version = first["lightning_lcs_recording"]
    except (IndexError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{os.fspath(path)} is not a recording: its first line is not the header that a controller writes"
        ) from error
    if version != VERSION:
        raise ValueError(
            f"{os.fspath(path)} is a recording of version {version}, and this package reads version {VERSION} only"
        )
    decisions = []
    for number, text in enumerate(lines[1:], 2):
        try:
            decisions.append(_decision_from_data(json.loads(text)))
        except (KeyError, TypeError, ValueError) as error:
            if number == len(lines):
                break  # the process ended while it wrote
            raise ValueError(f"{os.fspath(path)}, line {number}: not a decision ({error})") from error
    rules = Rules(tuple(first["levels"]), first["dwell_s"])
    return Recording(rules, first["alpha"], tuple(first["policies"]), tuple(decisions))


def replay(path: str | os.PathLike[str], policies: Sequence[Policy] | None = None) -> list[Decision]:
    """Decide again from the readings of a recording alone.

    With the recorded policies, the levels are the same, bit by bit. Other policies show what they would have asked for
    *given the same readings*: a recording does not tell what the latency would have been at another level.

    Args:
        path: The recording.
        policies: The policies that decide. The default is the recorded ones, which must be this package's own.

    Returns:
        One decision for each recorded one.

    Raises:
        OSError: The file can't be read.
        ValueError: The file is not a recording, or ``policies`` is not given and a recorded policy is not this
            package's own.

    Example:
        >>> from types import SimpleNamespace
        >>> from lightning_lcs import RuntimeController
        >>> from lightning_lcs.control.policies import BatterySaver
        >>> from lightning_lcs.control.recording import replay
        >>> net = SimpleNamespace(alpha=1.0, set_alpha=lambda alpha: None)
        >>> read = lambda: {"battery": 0.05, "plugged_in": False}
        >>> with RuntimeController(net, [BatterySaver()], read=read, recording="run.jsonl") as controller:
        ...     decision = controller.step()
        >>> replay("run.jsonl") == [decision]
        True
        >>> [decision.alpha for decision in replay("run.jsonl", [BatterySaver(lowest=0.5)])]
        [0.5]
    """
    recording = read_recording(path)
    chosen = [_policy_from_data(data) for data in recording.policies] if policies is None else list(policies)
    state, decisions = State(recording.alpha), []
    for recorded in recording.decisions:
        state = decide(chosen, recorded.readings, state, recording.rules)
        decisions.append(Decision(recorded.readings, state.alpha, state.reason))
    return decisions


def _policy_to_data(name: str, policy: Policy) -> dict[str, Any]:
    if type(policy) not in _POLICIES.values() or not is_dataclass(policy):
        return {"name": name, "options": None}
    options = {f.name: getattr(policy, f.name) for f in fields(policy) if f.init}
    if options.get("profile") is not None:
        options["profile"] = list(options["profile"].items())  # its keys are numbers, and those of JSON are strings
    return {"name": type(policy).__name__, "options": options}


def _policy_from_data(data: dict[str, Any]) -> Policy:
    if data["options"] is None:
        raise ValueError(
            f"the policy {data['name']} was recorded by its name only: pass the policies to replay(..., policies=...)"
        )
    options = dict(data["options"])
    if options.get("profile") is not None:
        options["profile"] = dict(options["profile"])
    policy: Policy = _POLICIES[data["name"]](**options)
    return policy


def _decision_from_data(data: dict[str, Any]) -> Decision:
    readings = dict(data["readings"])
    forwards = tuple(Forward(*forward) for forward in readings.pop("forwards", ()))
    return Decision(Readings(time_s=data["time_s"], forwards=forwards, **readings), data["alpha"], data["reason"])
