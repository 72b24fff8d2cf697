"""RuntimeController: reads the system, asks the policies, and sets the level of a running network."""

from __future__ import annotations

import contextlib
import math
import os
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TextIO

from lightning_lcs.control import recording as recordings
from lightning_lcs.control.decision import Policy, Rules, State, decide, policy_names
from lightning_lcs.control.recording import Decision
from lightning_lcs.control.sensors import SYSTEM_READINGS, Forward, Readings, SystemReader
from lightning_lcs.utils.timing import elapsed, synchronize
from lightning_lcs.utils.warning import warn

DEFAULT_LEVELS = 7
# A controller may run for months, so it keeps a limited number of forwards between two steps, and of decisions.
_MAX_FORWARDS = 4096
_MAX_DECISIONS = 1024


class Adjustable(Protocol):
    """A network whose level can be set, such as a :class:`SubspaceModel`."""

    @property
    def alpha(self) -> float:
        """The present level."""

    def set_alpha(self, alpha: float) -> None:
        """Set the level."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the network at the present level."""


class RuntimeController:
    """Keeps a network at the highest level that its policies allow.

    The policies combine as :func:`decide` describes: the lowest level that any of them asks for counts, snapped down to
    one of ``levels``. A policy that raises an exception never stops inference: one warning reports it, and so does
    every reason in ``log`` while it fails.

    Calling ``step()`` in the thread that runs the network is safe for every network. ``start()`` makes the decisions in
    a thread of its own, which calls ``set_alpha`` while forwards run. Use it only if the network's ``set_alpha`` allows
    that.

    Args:
        net: The network: any object with ``alpha``, ``set_alpha(alpha)`` and a call.
        policies: One or more functions of a :class:`View`; see ``lightning_lcs.control.policies``. The attribute
            ``needs`` of a policy names the readings that it uses; without it, all readings are taken.
        levels: The alphas to choose from, in [0, 1]. The default is seven from 0 to 1, each moved to the nearest level
            that the network has if it has a method ``nearest_level``.
        dwell_s: Minimum time between two switches in seconds; :func:`decide` describes the exception. The default is 2.
        interval_s: Minimum time between two readings in seconds; ``step()`` does nothing before. The default is 0.1.
        clock: A function that returns seconds and never goes back. It times everything, latencies included. The default
            is ``time.monotonic``.
        read: A function that returns readings by name. The default is a :class:`SystemReader` of those that the
            policies need.
        recording: A file for all decisions as JSON lines, which :func:`replay` reads. An existing file is overwritten.
            The default is no file.

    Raises:
        ImportError: A policy needs a reading that psutil provides, and psutil is not installed.
        OSError: ``recording`` can't be written.
        TypeError: The network has no ``set_alpha`` or no ``alpha``.
        ValueError: ``policies`` is empty, or levels or times are out of range.

    Example:
        >>> from types import SimpleNamespace
        >>> from lightning_lcs import RuntimeController
        >>> from lightning_lcs.control.policies import BatterySaver
        >>> net = SimpleNamespace(alpha=1.0, set_alpha=lambda alpha: setattr(net, "alpha", alpha))
        >>> read = lambda: {"battery": 0.2, "plugged_in": False}  # the default reads the system
        >>> controller = RuntimeController(net, [BatterySaver(below=0.3)], levels=[0.0, 0.5, 1.0], read=read)
        >>> decision = controller.step()  # after each forward, for example
        >>> net.alpha, controller.reason
        (0.5, 'BatterySaver: on battery at 20%')
    """

    def __init__(
        self,
        net: Adjustable,
        policies: Sequence[Policy],
        *,
        levels: Sequence[float] | None = None,
        dwell_s: float = 2.0,
        interval_s: float = 0.1,
        clock: Callable[[], float] = time.monotonic,
        read: Callable[[], Mapping[str, Any]] | None = None,
        recording: str | os.PathLike[str] | None = None,
    ) -> None:
        for name in ("alpha", "set_alpha"):
            if not hasattr(net, name):
                raise TypeError(
                    f"net is a {type(net).__name__}, which has no {name}: pass a SubspaceModel, or any object with "
                    "alpha, set_alpha(alpha) and a call"
                )
        if not policies:
            raise ValueError("policies is empty: give at least one policy, or the level would never change")
        if not (interval_s >= 0.0 and math.isfinite(interval_s)):
            raise ValueError(f"interval_s={interval_s!r} should be a number of seconds, 0 or more")
        self.net = net
        self.policies = tuple(policies)
        self.rules = Rules(default_levels(net) if levels is None else tuple(levels), dwell_s)
        self.interval_s = interval_s
        self.clock = clock
        self.read = SystemReader(_needs(self.policies)) if read is None else read
        self.log: deque[Decision] = deque(maxlen=_MAX_DECISIONS)
        self._state = State(self.rules.snap(float(net.alpha)))
        self._forwards: deque[Forward] = deque(maxlen=_MAX_FORWARDS)
        self._last_s: float | None = None
        self._warned: set[str] = set()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._recording_file: TextIO | None = None
        if recording is not None:
            Path(recording).parent.mkdir(parents=True, exist_ok=True)
            self._recording_file = Path(recording).open("w")  # noqa: SIM115 - stop() closes it
            self._write(recordings.header_line(self.policies, self.rules, self._state.alpha))
        if self._state.alpha != net.alpha:
            net.set_alpha(self._state.alpha)

    @property
    def alpha(self) -> float:
        """The level that was chosen last."""
        return self._state.alpha

    @property
    def reason(self) -> str:
        """The reason for the level: the policy that decided, and what it saw."""
        return self._state.reason

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the network and measure its latency; on a GPU, this waits until the work is done."""
        with self.forward():
            output = self.net(*args, **kwargs)
            synchronize()
        return output

    @contextlib.contextmanager
    def forward(self) -> Iterator[None]:
        """Measure the code inside the block as one forward.

        On a GPU, the block itself has to wait until the work is done. A block that raises an exception, or during which
        the level changes, does not count.
        """
        alpha = self._state.alpha
        begin = self.clock()
        yield
        end = self.clock()
        if self._state.alpha == alpha:
            self._forwards.append(Forward(alpha, 1e3 * (end - begin)))

    def step(self) -> Decision | None:
        """Read the system, decide, and set the level; call it as often as you like, in the thread of the inference.

        Returns:
            The decision, or None if the last one is less than ``interval_s`` ago.
        """
        with self._lock:
            now = self.clock()
            if self._last_s is not None and now - self._last_s < self.interval_s:
                return None
            self._last_s = now
            readings = Readings(time_s=now, forwards=self._take_forwards(), **self._read())
            state = decide(self.policies, readings, self._state, self.rules)
            decision = Decision(readings, state.alpha, state.reason)
            if state.alpha != self._state.alpha:
                self.net.set_alpha(state.alpha)
            self._state = state
            self.log.append(decision)
            if self._recording_file is not None:
                self._write(recordings.decision_line(decision))
            self._warn_of_failed_policies()
            return decision

    def _warn_of_failed_policies(self) -> None:
        for name, policy_state in zip(policy_names(self.policies), self._state.policy_states, strict=True):
            if policy_state.error:
                self._warn_once(
                    f"policy {name}",
                    f"the policy {name} raised {policy_state.error}; its last level, {policy_state.held:g}, stays",
                )

    def start(self) -> None:
        """Decide every ``interval_s`` seconds in a thread of its own, until ``stop()``.

        Use it only if the network's ``set_alpha`` may be called while a forward runs.

        Raises:
            RuntimeError: The thread is already running.
        """
        if self._thread is not None:
            raise RuntimeError("the controller's thread is already running: call stop() first")
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, name="lightning-lcs-controller", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread, if there is one, and close the recording. The level stays."""
        if self._thread is not None:
            self._stopping.set()
            self._thread.join()
            self._thread = None
        with self._lock:
            if self._recording_file is not None:
                self._recording_file.close()
                self._recording_file = None

    def __enter__(self) -> RuntimeController:
        """Return the controller itself; ``stop()`` is called at the end of the block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        """Call ``stop()``."""
        self.stop()

    def _run(self) -> None:
        while not self._stopping.wait(max(self.interval_s, 1e-3)):
            try:
                self.step()
            except Exception as error:  # an exception would end the thread unnoticed, and the present level is usable
                self._warn_once("thread", f"the controller could not set a level: {type(error).__name__}: {error}")

    def _take_forwards(self) -> tuple[Forward, ...]:
        return tuple(self._forwards.popleft() for _ in range(len(self._forwards)))

    def _read(self) -> dict[str, Any]:
        try:
            readings = {name: recordings.recorded(value) for name, value in self.read().items()}
            Readings(time_s=0.0, **readings)  # refuses names that are not readings
        except Exception as error:  # inference goes on, and all readings are unknown
            self._warn_once("read", f"the readings could not be taken: {type(error).__name__}: {error}")
            return {}
        return readings

    def _write(self, text: str) -> None:
        if self._recording_file is None:
            return
        try:
            self._recording_file.write(text + "\n")
            self._recording_file.flush()
        except OSError as error:
            self._warn_once("recording", f"the recording ends here because it can't be written any more: {error}")
            with contextlib.suppress(OSError):
                self._recording_file.close()
            self._recording_file = None

    def _warn_once(self, topic: str, text: str) -> None:
        if topic not in self._warned:
            self._warned.add(topic)
            warn(text)


def default_levels(net: Any, count: int = DEFAULT_LEVELS) -> tuple[float, ...]:
    """Evenly spaced levels from 0 to 1, each moved to the nearest level that the network has.

    Args:
        net: The network. If it has no method ``nearest_level``, the levels stay evenly spaced.
        count: Number of levels, 2 or more. The default is 7.
    """
    levels = [index / (count - 1) for index in range(count)]
    nearest = getattr(net, "nearest_level", None)
    return tuple(sorted({float(level if nearest is None else nearest(level)) for level in levels}))


def measure_profile(
    net: Adjustable,
    example: Any,
    levels: Sequence[float] | None = None,
    *,
    repeats: int = 9,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[float, float]:
    """Measure the median latency of each level, for ``LatencyTarget(profile=...)``.

    Measure on the machine, and with the batch size, that will be served. The levels take turns, so that a change of
    load affects all of them. Afterwards, the network is at the same level as before.

    Args:
        net: The network.
        example: Its argument, or a tuple of its arguments.
        levels: The alphas to measure, in [0, 1]. The default is those that a :class:`RuntimeController` chooses from.
        repeats: Number of measurements of each level; each follows one call that is not measured. The default is 9.
        clock: A function that returns seconds. The default is ``time.perf_counter``.

    Returns:
        The median latency in milliseconds, by alpha.

    Example:
        >>> import torch
        >>> from lightning_lcs import SubspaceModel
        >>> from lightning_lcs.control.controller import measure_profile
        >>> x = torch.zeros(1, 3, 8, 8)
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3))
        >>> model = SubspaceModel(net, mode="structured", subspace="point", example_inputs=x).eval()
        >>> profile = measure_profile(model, x, levels=[0.0, 1.0], repeats=3)
        >>> sorted(profile)
        [0.0, 1.0]
    """
    chosen = default_levels(net) if levels is None else tuple(levels)
    args = example if isinstance(example, tuple) else (example,)
    times: dict[float, list[float]] = {level: [] for level in chosen}
    before = net.alpha
    try:
        for _ in range(repeats):
            for level in chosen:
                net.set_alpha(level)
                net(*args)
                times[level].append(1e3 * elapsed(lambda: net(*args), clock))
    finally:
        net.set_alpha(before)
    return {level: statistics.median(measured) for level, measured in times.items()}


def _needs(policies: Sequence[Policy]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for policy in policies for name in getattr(policy, "needs", SYSTEM_READINGS)))
