"""A network, a clock and a load that exist in numbers only: what a controller does to latency, without any waiting."""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from lightning_lcs.control.controller import RuntimeController

LEVELS = tuple(index / 6 for index in range(7))


@dataclass
class Clock:
    """Moves when it is told to."""

    now: float = 100.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Network:
    """Takes ``base(alpha) * load(time)`` milliseconds, with noise, and the first forward of a level twice as long."""

    clock: Clock
    base: Callable[[float], float] = lambda alpha: 4.0 + 10.0 * alpha
    load: Callable[[float], float] = lambda time_s: 1.0
    noise: float = 0.05
    generator: random.Random = field(default_factory=lambda: random.Random(0))
    alpha: float = 1.0
    fresh: bool = True
    switches: list[tuple[float, float]] = field(default_factory=list)

    def set_alpha(self, alpha: float) -> None:
        self.alpha, self.fresh = alpha, True
        self.switches.append((self.clock.now, alpha))

    def latency_ms(self) -> float:
        factor = math.exp(self.noise * self.generator.gauss(0.0, 1.0)) * (2.0 if self.fresh else 1.0)
        return self.base(self.alpha) * self.load(self.clock.now) * factor

    def __call__(self, *args: object) -> str:
        self.clock.now += 1e-3 * self.latency_ms()
        self.fresh = False
        return f"ran at {self.alpha:g}"


class Served(NamedTuple):
    time_s: float
    alpha: float
    latency_ms: float


def serve(controller: RuntimeController, network: Network, seconds: float, pause_s: float = 0.01) -> list[Served]:
    """Forwards one after the other with a pause between, each followed by ``step()``."""
    clock, found = network.clock, []
    end = clock.now + seconds
    while clock.now < end:
        begin, alpha = clock.now, network.alpha
        controller()
        found.append(Served(begin, alpha, 1e3 * (clock.now - begin)))
        clock.now += pause_s
        controller.step()
    return found
