"""Training steps with manual optimization: the step itself runs its losses at every level."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Generator, Iterator
from typing import Any

from lightning.pytorch import LightningModule

from lightning_lcs.training.step.sweep import Sweep
from lightning_lcs.training.target import guarded
from lightning_lcs.training.user_code.patches import Patches
from lightning_lcs.utils.warning import warn

# Steps may train something else than the network for a while, such as the critic of a GAN.
PATIENCE = 25

NEVER = (
    "{module} uses manual optimization, and {steps} training steps have gone by without levels(), so that so far the "
    "network is trained at full size alone: go through the levels in training_step, with `for level in levels(self): "
    "... self.manual_backward(level.weight * loss)` (from lightning_lcs import levels)"
)


@dataclasses.dataclass(frozen=True)
class TrainedLevel:
    """A level at which a training step runs its loss.

    Attributes:
        alpha: The level, in [0, 1].
        weight: The weight of its loss in the sum that is trained, above 0.
    """

    alpha: float
    weight: float


class ManualSteps:
    """Runs the ``training_step`` of a module with manual optimization; see :func:`lightning_lcs.levels`.

    Outside of the loop over the levels the networks of a step run at alpha = 1.

    Args:
        sweep: What steps visit.
    """

    def __init__(self, sweep: Sweep) -> None:
        self._sweep = sweep
        self._runs = False
        self._used = False
        self._steps = 0
        self._open: list[Generator[TrainedLevel, None, None]] = []  # in the present step

    def step(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run one step; a warning says where no step of many has gone through the levels."""
        sweep = self._sweep
        self._runs = True
        try:
            with sweep.model.runner.training_level(1.0, strength=sweep.draws.strength(sweep.options), direct=True):
                try:
                    return original(*args, **kwargs)
                finally:
                    # A loop in a variable that is left by an error would end, and set back the level, only when the
                    # traceback is gone: after the step.
                    while self._open:
                        self._open.pop().close()
        finally:
            self._runs = False
            self._steps += 1
            if not self._used and self._steps == PATIENCE:
                warn(NEVER.format(module=type(sweep.module).__name__, steps=self._steps))

    def levels(self) -> Iterator[TrainedLevel]:
        """The levels of the present step, ascending; the networks run at each inside of the loop over them."""
        if not self._runs:  # statistics are collected, or a validation runs: at the level that is set
            return iter([TrainedLevel(self._sweep.model.alpha, 1.0)])
        self._used = True
        self._open.append(self._levels())
        return self._open[-1]

    def _levels(self) -> Generator[TrainedLevel, None, None]:
        sweep = self._sweep
        draws, options = sweep.draws, sweep.options
        visited = draws.visited(options)
        weights = options.weights([1.0 / len(visited)] * len(visited))
        drawn, strength = draws.of_layers(options, sweep.model.parts), draws.strength(options)
        for alpha, weight in zip(visited, weights, strict=True):
            with (
                guarded(sweep.model, alpha, "training_step"),
                sweep.model.runner.training_level(alpha, strength=strength, direct=True, drawn=drawn(alpha)) as level,
                sweep.again(level),
            ):
                yield TrainedLevel(alpha, weight)


class Inert:
    """An optimizer or a scheduler whose steps do nothing, for a step that only runs the network.

    Args:
        real: The optimizer or scheduler; its other attributes are those of this object.
    """

    def __init__(self, real: Any) -> None:
        self._real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def step(self, closure: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Run the closure, if there is one, and nothing else."""
        return closure() if callable(closure) else None

    def zero_grad(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing."""

    @contextlib.contextmanager
    def toggle_model(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Do nothing."""
        yield


@contextlib.contextmanager
def without_optimization(module: LightningModule) -> Iterator[None]:
    """Inside the block, the step of a module with manual optimization trains nothing."""
    patches = Patches()
    if not module.automatic_optimization:
        for name in ("optimizers", "lr_schedulers"):
            patches.set(module, name, _inert(getattr(module, name)))
        for name in ("manual_backward", "toggle_optimizer", "untoggle_optimizer", "clip_gradients"):
            patches.set(module, name, _nothing)
    try:
        yield
    finally:
        patches.undo()


def _inert(given: Callable[..., Any]) -> Callable[..., Any]:
    def get(*args: Any, **kwargs: Any) -> Any:
        found = given(*args, **kwargs)
        if found is None:
            return None
        return [Inert(each) for each in found] if isinstance(found, list) else Inert(found)

    return get


def _nothing(*args: Any, **kwargs: Any) -> None:
    pass
