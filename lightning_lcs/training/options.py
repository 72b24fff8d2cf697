"""Options: how a training step visits the levels, by default and as given, and settings given in two places."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from lightning_lcs.functional.sampling import PER_LAYER, SAMPLERS, VISIT_FULL, round_to_levels, step_generator
from lightning_lcs.functional.schedules import SCHEDULES
from lightning_lcs.model import SubspaceModel
from lightning_lcs.subspace.calibration import DEFAULT_LEVELS
from lightning_lcs.subspace.mode import Mode, check_alpha

# Name -> weight of a level's loss, by the number of levels that a step visits.
LOSS_REDUCTIONS: Mapping[str, Callable[[int], float]] = {"mean": lambda count: 1.0 / count, "sum": lambda count: 1.0}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """What a step visits, and how strongly it compresses.

    Attributes:
        mode: whose levels are drawn.
        sampler: a key of :data:`SAMPLERS`, or the levels of every step in ascending order.
        alphas_per_step: levels per step.
        training_levels: evenly spaced levels to which draws are rounded; 0 to leave them as they are.
        warmup: share of all steps during which the compression grows, in [0, 1].
        warmup_schedule: a key of :data:`SCHEDULES`.
        loss_reduction: a key of :data:`LOSS_REDUCTIONS`.
        diversity_weight: of the squared cosine between endpoints.
        scale_penalty: of the L1 norm of all norms' scales.
    """

    mode: Mode
    sampler: str | tuple[float, ...]
    alphas_per_step: int
    warmup: float
    warmup_schedule: str
    training_levels: int = DEFAULT_LEVELS
    loss_reduction: str = "mean"
    diversity_weight: float = 0.0
    scale_penalty: float = 0.0

    def __post_init__(self) -> None:
        if self.training_levels != 0 and self.training_levels < 3:
            raise ValueError(
                f"training_levels={self.training_levels} is neither 0 (any alpha is drawn) nor at least 3; use, for "
                f"example, {DEFAULT_LEVELS}"
            )
        if self.loss_reduction not in LOSS_REDUCTIONS:
            raise ValueError(
                f"loss_reduction={self.loss_reduction!r} is not known; choose one of "
                f"{', '.join(map(repr, LOSS_REDUCTIONS))}"
            )
        for option in ("diversity_weight", "scale_penalty"):
            if not getattr(self, option) >= 0:
                raise ValueError(f"{option}={getattr(self, option)} is negative; 0 turns the term off")

    @property
    def visits_full(self) -> bool:
        """Whether every step visits alpha = 1, so that its running statistics are up to date."""
        visited = self.sampler in VISIT_FULL if isinstance(self.sampler, str) else 1.0 in self.sampler
        return visited and self.mode.is_full(1.0)

    def alphas(self, seed: int, step: int) -> list[float]:
        """The levels of a step, ascending: a function of its arguments alone."""
        drawn: Sequence[float] = self.sampler if isinstance(self.sampler, tuple) else ()
        if isinstance(self.sampler, str):
            drawn = SAMPLERS[self.sampler](step_generator(seed, step), self.alphas_per_step)
            # Bit widths are levels already, and drawn evenly.
            if self.training_levels and not self.mode.has_discrete_levels:
                drawn = [round_to_levels(alpha, self.training_levels, self.sampler) for alpha in drawn]
        return [self.mode.snap(alpha) for alpha in drawn]

    def weight(self, visited: Sequence[float]) -> float:
        """Of the loss of each level of a step in the loss that is trained on."""
        return LOSS_REDUCTIONS[self.loss_reduction](len(visited))

    def drawn(self, visited: Sequence[float]) -> Sequence[float]:
        """Those levels of a step that were drawn, and are not the same at every step."""
        if isinstance(self.sampler, tuple):
            return ()
        return visited[self.sampler == "sandwich" : len(visited) - (self.sampler in VISIT_FULL)]

    def layer_bits(self, seed: int, step: int, alpha: float, layers: Sequence[str]) -> dict[str, float]:
        """Bits that each layer drew for a level of a step, where the sampler draws them apart."""
        if self.sampler != PER_LAYER or not self.mode.draws_per_layer:
            return {}
        draws = torch.rand(len(layers), generator=step_generator(seed, step, f"{alpha:.6f}"), dtype=torch.float64)
        return {layer: self.mode.value(draw) for layer, draw in zip(layers, draws.tolist(), strict=True)}

    def strength(self, progress: float) -> float:
        """Share of a level's compression that applies after ``progress`` of all steps."""
        return SCHEDULES[self.warmup_schedule](progress, self.warmup)


def sweep_options(
    mode: Mode,
    subspace: str,
    sampler: str | Sequence[float] | None,
    alphas_per_step: int | None,
    warmup: float | None,
    warmup_schedule: str | None,
) -> SweepOptions:
    """The options given, and for those that are ``None`` what arXiv 2110.04252 does in this mode.

    Raises:
        ValueError: an unknown name, a number out of range, or a warm-up of a mode without sparsity.
    """
    defaults = mode.sampling(subspace)
    sampler = defaults.sampler if sampler is None else sampler
    if isinstance(sampler, str):
        if sampler not in SAMPLERS:
            raise ValueError(
                f"sampler={sampler!r} is not known; choose one of {', '.join(map(repr, SAMPLERS))}, or give the levels "
                "that every step visits"
            )
        count = (4 if sampler in VISIT_FULL else 1) if alphas_per_step is None else alphas_per_step
        SAMPLERS[sampler](step_generator(0, 0), count)
        if sampler == PER_LAYER and not (mode.draws_per_layer and subspace == "point"):
            raise ValueError(
                f"sampler={sampler!r} draws the bits of each layer: it needs mode='quantized' and subspace='point', "
                "where a layer has the same weights at every level"
            )
    else:
        if not sampler:
            raise ValueError("sampler=[] visits no level; give at least one, such as [1.0] for plain training")
        sampler = tuple(sorted({check_alpha(alpha) for alpha in sampler}))
        count = len(sampler)
        if alphas_per_step not in (None, count):
            raise ValueError(f"alphas_per_step={alphas_per_step}, and sampler gives {count} levels: leave it out")
    share = defaults.warmup if warmup is None else warmup
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"warmup={warmup!r} is not in [0, 1]: it is a share of all training steps; 0 turns it off")
    if not mode.warms_up and share > 0.0:
        raise ValueError(f"warmup={warmup!r}: structured mode trains all widths from the first step; leave it out")
    schedule = defaults.warmup_schedule if warmup_schedule is None else warmup_schedule
    if schedule not in SCHEDULES:
        raise ValueError(f"warmup_schedule={schedule!r} is not known; choose one of {', '.join(map(repr, SCHEDULES))}")
    return SweepOptions(mode=mode, sampler=sampler, alphas_per_step=count, warmup=share, warmup_schedule=schedule)


def agreed(own: Any, given: Any, options: Mapping[str, str]) -> Any:
    """The trainer's callback where it has one, else our own.

    Args:
        own: made from the options of ``LCSCallback``.
        given: the trainer's, or ``None``.
        options: attribute of both -> name of the option of ``LCSCallback``.

    Raises:
        ValueError: an option that was set, here not at its default, says something else than the trainer's callback.
    """
    if given is None:
        return own
    default = type(given)()
    for attribute, option in options.items():
        mine, theirs = getattr(own, attribute), getattr(given, attribute)
        if mine not in (theirs, getattr(default, attribute)):
            kind = type(given).__name__
            raise ValueError(f"LCSCallback has {option}={mine!r} and {kind} {attribute}={theirs!r}: give one of them")
    return given


def check_model(model: SubspaceModel, callback: Callback, defaults: Mapping[str, Any]) -> None:
    """A module's own subspace model agrees with the options that ``LCSCallback`` was given.

    What was left at its default was not asked for, and the model's own choice holds; not so for mode and subspace.

    Args:
        model: the module's.
        callback: has the options as attributes.
        defaults: those of the callback.

    Raises:
        ValueError: they differ.
    """
    for name in ("mode", "subspace", "line_parameters", "endpoint_start", "norm"):
        mine, theirs = getattr(callback, name), getattr(model, name)
        unasked = name not in ("mode", "subspace") and mine == defaults[name]
        if mine != theirs and not unasked:
            raise ValueError(
                f"LCSCallback has {name}={mine!r} and the module's SubspaceModel {name}={theirs!r}: give both one"
            )


def only_callback(trainer: Trainer, kind: type[Any]) -> Any:
    """The trainer's callback of a kind, if it has one."""
    found = [callback for callback in trainer.callbacks if isinstance(callback, kind)]  # type: ignore[attr-defined]
    if len(found) > 1:
        raise ValueError(f"the trainer has {len(found)} callbacks of kind {kind.__name__}: give it one")
    return found[0] if found else None
