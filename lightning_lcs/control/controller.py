"""RuntimeController: reads the system, decides by policies, sets the level of a running network."""

from __future__ import annotations

import contextlib
import math
import os
import statistics
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TextIO

from lightning_lcs.control import recording as _trace
from lightning_lcs.control.decision import Policy, Rules, State, decide, names
from lightning_lcs.control.recording import Decision
from lightning_lcs.control.sensors import SYSTEM, Forward, Readings, SystemReader
from lightning_lcs.utils.timing import elapsed, synchronize

DEFAULT_LEVELS = 7
# Forwards kept between two steps, and decisions kept in the log: a controller may run for months.
_MOST_FORWARDS = 4096
_MOST_DECISIONS = 1024


class Adjustable(Protocol):
    """What a controller needs of a network; :class:`SubspaceModel` is one."""

    @property
    def alpha(self) -> float:
        """The level set."""

    def set_alpha(self, alpha: float) -> None:
        """Set the level."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run at the level set."""


class RuntimeController:
    """Keeps a network at the highest level that its policies allow.

    ```python
    controller = RuntimeController(net, [LatencyTarget(latency_ms=20), BatterySaver(below=0.3)])
    for images in stream:
        logits = controller(images)  # or: with controller.forward(): logits = net(images)
        controller.step()
    ```

    :func:`decide` says how policies combine: the lowest level asked for counts, snapped down to one of ``levels``.
    A policy that raises never stops inference: it is reported by one warning, and in every reason in ``log``.

    ``step()`` in the thread of the inference is safe for every network. ``start()`` decides in a thread of its own,
    which then calls ``set_alpha`` beside running forwards: only for networks whose ``set_alpha`` allows that.

    Args:
        net: the network: ``alpha``, ``set_alpha(alpha)`` and a call.
        policies: functions of a :class:`View`; see ``lightning_lcs.control.policies``. A policy's ``needs`` names the
            readings that it looks at; all are read for one that has none.
        levels: alphas to choose from; by default seven from 0 to 1, at those levels that the network really has where
            it says so (``nearest_level``).
        dwell_s: least seconds between switches; see :func:`decide` for the exception.
        interval_s: least seconds between two readings: ``step()`` does nothing before.
        clock: seconds from any start, never backwards; used for everything, latencies too.
        read: gives readings by name, instead of a :class:`SystemReader` of those that the policies need.
        trace: file for every decision, as JSON lines, which :func:`replay` takes; an old one is overwritten.

    Raises:
        ImportError: a policy needs a reading that psutil gives, and it is missing.
        OSError: ``trace`` can't be written.
        TypeError: a network without ``set_alpha`` or ``alpha``.
        ValueError: no policies, or levels or times out of range.
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
        trace: str | os.PathLike[str] | None = None,
    ) -> None:
        for name in ("alpha", "set_alpha"):
            if not hasattr(net, name):
                raise TypeError(f"net is a {type(net).__name__} without {name}: give a SubspaceModel or the like")
        if not policies:
            raise ValueError("policies is empty: without one the level would never change")
        if not (interval_s >= 0.0 and math.isfinite(interval_s)):
            raise ValueError(f"interval_s={interval_s!r} should be a number of seconds, 0 or more")
        self.net = net
        self.policies = tuple(policies)
        self.rules = Rules(default_levels(net) if levels is None else tuple(levels), dwell_s)
        self.interval_s = interval_s
        self.clock = clock
        self.read = SystemReader(_needs(self.policies)) if read is None else read
        self.log: deque[Decision] = deque(maxlen=_MOST_DECISIONS)
        self._state = State(self.rules.snap(float(net.alpha)))
        self._forwards: deque[Forward] = deque(maxlen=_MOST_FORWARDS)
        self._last_s: float | None = None
        self._warned: set[str] = set()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._trace: TextIO | None = None
        if trace is not None:
            Path(trace).parent.mkdir(parents=True, exist_ok=True)
            self._trace = Path(trace).open("w")  # noqa: SIM115 - stop() closes it
            self._write(_trace.header(self.policies, self.rules, self._state.alpha))
        if self._state.alpha != net.alpha:
            net.set_alpha(self._state.alpha)

    @property
    def alpha(self) -> float:
        """The level chosen."""
        return self._state.alpha

    @property
    def reason(self) -> str:
        """Why the level is what it is: the policy that decided, and what it saw."""
        return self._state.reason

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the network and measure it, up to the end of its work on a GPU."""
        with self.forward():
            output = self.net(*args, **kwargs)
            synchronize()
        return output

    @contextlib.contextmanager
    def forward(self) -> Iterator[None]:
        """Measure what runs inside the block as one forward; on a GPU the block has to wait for its work itself.

        A block that raises, or during which the level changes, is not counted.
        """
        alpha = self._state.alpha
        begin = self.clock()
        yield
        end = self.clock()
        if self._state.alpha == alpha:
            self._forwards.append(Forward(alpha, 1e3 * (end - begin)))

    def step(self) -> Decision | None:
        """Read, decide, and set the level; call it as often as you like, in the thread of the inference.

        Returns:
            The decision; None before ``interval_s`` since the last one.
        """
        with self._lock:
            now = self.clock()
            if self._last_s is not None and now - self._last_s < self.interval_s:
                return None
            self._last_s = now
            readings = Readings(time_s=now, forwards=self._taken(), **self._read())
            state = decide(self.policies, readings, self._state, self.rules)
            decision = Decision(readings, state.alpha, state.reason)
            if state.alpha != self._state.alpha:
                self.net.set_alpha(state.alpha)
            self._state = state
            self.log.append(decision)
            if self._trace is not None:
                self._write(_trace.line(decision))
            for name, standing in zip(names(self.policies), state.standings, strict=True):
                if standing.error:
                    self._warn(
                        f"policy {name}",
                        f"the policy {name} raised {standing.error}; its last level, {standing.held:g}, stays",
                    )
            return decision

    def start(self) -> None:
        """Decide every ``interval_s`` in a thread of its own, until ``stop()``.

        Only for networks whose ``set_alpha`` may be called beside a running forward.

        Raises:
            RuntimeError: it runs already.
        """
        if self._thread is not None:
            raise RuntimeError("the controller's thread runs already: stop() it first")
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, name="lightning-lcs-controller", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread, if there is one, and close the trace; the level stays."""
        if self._thread is not None:
            self._stopping.set()
            self._thread.join()
            self._thread = None
        with self._lock:
            if self._trace is not None:
                self._trace.close()
                self._trace = None

    def __enter__(self) -> RuntimeController:
        """The controller itself; ``stop()`` is called at the end of the block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        """``stop()``."""
        self.stop()

    def _run(self) -> None:
        while not self._stopping.wait(max(self.interval_s, 1e-3)):
            try:
                self.step()
            except Exception as error:  # nobody sees a thread's error, and the level it found is a good one
                self._warn("thread", f"the controller could not set a level: {type(error).__name__}: {error}")

    def _taken(self) -> tuple[Forward, ...]:
        return tuple(self._forwards.popleft() for _ in range(len(self._forwards)))

    def _read(self) -> dict[str, Any]:
        try:
            found = {name: _plain(value) for name, value in self.read().items()}
            Readings(time_s=0.0, **found)
        except Exception as error:  # all is unknown then, and inference goes on
            self._warn("read", f"nothing could be read: {type(error).__name__}: {error}")
            return {}
        return found

    def _write(self, text: str) -> None:
        if self._trace is None:
            return
        try:
            self._trace.write(text + "\n")
            self._trace.flush()
        except OSError as error:
            self._warn("trace", f"the trace ends here, it can't be written any more: {error}")
            with contextlib.suppress(OSError):
                self._trace.close()
            self._trace = None

    def _warn(self, once: str, text: str) -> None:
        if once not in self._warned:
            self._warned.add(once)
            warnings.warn(text, stacklevel=4)


def default_levels(net: Any, count: int = DEFAULT_LEVELS) -> tuple[float, ...]:
    """Evenly spaced levels; where the network has ``nearest_level``, those of its levels that are nearest to them."""
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
    """Median latency in ms of each level, all of them interleaved; the level before comes back.

    For ``LatencyTarget(profile=)``: on the machine, and with the batch, that will be served.

    Args:
        net: the network.
        example: its argument, or a tuple of arguments.
        levels: by default those that a controller would take.
        repeats: measurements of each level, after one call that prepares it.
        clock: in seconds.
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
    return {level: statistics.median(found) for level, found in times.items()}


def _needs(policies: Sequence[Policy]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for policy in policies for name in getattr(policy, "needs", SYSTEM)))


def _plain(value: Any) -> Any:
    """A reading as a trace holds it; what is no finite number is unknown."""
    if value is None or isinstance(value, bool):
        return value
    return float(value) if math.isfinite(value) else None
