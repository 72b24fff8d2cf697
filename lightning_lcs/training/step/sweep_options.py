"""How a training step visits the levels: its options, with the defaults of the mode."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import cast

import torch

from lightning_lcs.functional.sampling import (
    PER_LAYER,
    SAMPLERS,
    VISIT_FULL,
    VISIT_LOWEST,
    WEIGHTED,
    levels_for,
    round_to_levels,
    step_generator,
    weighted,
)
from lightning_lcs.functional.schedules import SCHEDULES
from lightning_lcs.subspace.mode import Mode
from lightning_lcs.subspace.weights.line import Line
from lightning_lcs.training.options import LOSS_REDUCTIONS, Distillation, Loss, Sampling


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """The levels that a step visits, and how strongly it compresses.

    Attributes:
        mode: The mode whose levels are drawn.
        sampler: A key of :data:`SAMPLERS`, or the levels of every step in ascending order.
        alphas_per_step: The number of levels per step.
        levels: The number of evenly spaced levels to which draws are rounded; 0 leaves them as they are, and ``None``
            chooses by the length of the training.
        warmup: The share of all steps during which the compression grows, in [0, 1].
        warmup_schedule: A key of :data:`SCHEDULES`.
        shares: The share of the samples of each level, in ascending order; ``None`` where each runs on all of them.
        reduction: A key of :data:`LOSS_REDUCTIONS`.
        diversity_weight: The weight of the squared cosine between the endpoints.
        scale_penalty: The weight of the L1 norm of the scales of all norms.
        distillation: How compressed levels learn from a teacher; ``None`` if they do not.
    """

    mode: Mode
    sampler: str | tuple[float, ...]
    alphas_per_step: int
    warmup: float
    warmup_schedule: str
    levels: int | None = None
    shares: tuple[float, ...] | None = None
    reduction: str = "full_half"
    diversity_weight: float = 0.0
    scale_penalty: float = 0.0
    distillation: Distillation | None = None

    @property
    def visits_full(self) -> bool:
        """Whether every step visits alpha = 1, so that its running statistics are up to date."""
        visited = self.sampler in VISIT_FULL if isinstance(self.sampler, str) else 1.0 in self.sampler
        return visited and self.mode.is_full(1.0)

    def alphas(self, seed: int, step: int, steps: float = math.inf) -> list[float]:
        """The levels of a step, ascending: a function of its arguments alone.

        Args:
            seed: The user's seed.
            step: Number of the step.
            steps: Number of all steps; it may be infinite.
        """
        drawn: Sequence[float] = self.sampler if isinstance(self.sampler, tuple) else ()
        if isinstance(self.sampler, str):
            drawn = SAMPLERS[self.sampler](step_generator(seed, step), self.alphas_per_step)
            if self.sampler in WEIGHTED:
                drawn = weighted(drawn, self.mode.weighted)
            # Bit widths are levels already, and evenly spaced levels are too coarse where the mode weights the draws.
            is_fine = self.mode.has_discrete_levels or (self.sampler in WEIGHTED and not self.mode.runs_as_graph)
            levels = levels_for(steps * len(self.drawn(drawn))) if self.levels is None else self.levels
            if levels and not is_fine:
                drawn = [round_to_levels(alpha, levels, self.sampler) for alpha in drawn]
        return [self.mode.snap(alpha) for alpha in drawn]

    def weights(self, shares: Sequence[float]) -> list[float]:
        """The weights of the losses of the levels of a step, ascending, in the loss that is minimized.

        Args:
            shares: The shares of the samples on which the levels run.
        """
        return LOSS_REDUCTIONS[self.reduction](shares)

    def drawn(self, visited: Sequence[float]) -> Sequence[float]:
        """The levels of a step that were drawn, without those that are the same at every step."""
        if isinstance(self.sampler, tuple):
            return ()
        return visited[self.sampler in VISIT_LOWEST : len(visited) - (self.sampler in VISIT_FULL)]

    def layer_values(self, seed: int, step: int, alpha: float, layers: Sequence[str]) -> dict[str, float]:
        """The values of the mode's axis that single layers drew for a level, where the sampler draws per layer."""
        if self.sampler != PER_LAYER or not self.mode.draws_per_layer:
            return {}
        draws = torch.rand(len(layers), generator=step_generator(seed, step, f"{alpha:.6f}"), dtype=torch.float64)
        return {layer: self.mode.value(draw) for layer, draw in zip(layers, draws.tolist(), strict=True)}

    def strength(self, progress: float) -> float:
        """The share of a level's compression that applies after the share ``progress`` of all steps."""
        return SCHEDULES[self.warmup_schedule](progress, self.warmup)


def sweep_options(mode: Mode, subspace: str, sampling: Sampling, loss: Loss, line: Line) -> SweepOptions:
    """The options given, and for those that are ``None`` the defaults of the mode.

    Raises:
        ValueError: An option does not fit the mode or the subspace.
    """
    defaults = mode.sampling(subspace)
    default = defaults.sampler if sampling.split is False else sampling.split_sampler
    given = default if sampling.sampler is None else sampling.sampler
    sampler = given if isinstance(given, str) else tuple(given)
    if sampler == PER_LAYER and not (mode.draws_per_layer and subspace == "point"):
        raise ValueError(
            f"Sampling(sampler={sampler!r}) draws the bits of each layer: it needs mode='quantized' and "
            "subspace='point', where a layer has the same weights at every level"
        )
    count = sampling.levels_per_step(sampler)
    if isinstance(sampler, str):
        SAMPLERS[sampler](step_generator(0, 0), count)  # refuses a count that is too small for the default sampler
    for option in ("warmup", "warmup_schedule"):
        if not mode.warms_up and getattr(sampling, option):
            raise ValueError(
                f"Sampling({option}={getattr(sampling, option)!r}): structured mode trains all widths from the first "
                "step; leave it out"
            )
    return SweepOptions(
        mode=mode,
        sampler=sampler,
        alphas_per_step=count,
        levels=sampling.levels,
        warmup=defaults.warmup if sampling.warmup is None else sampling.warmup,
        warmup_schedule=defaults.warmup_schedule if sampling.warmup_schedule is None else sampling.warmup_schedule,
        shares=sampling.shares(count),
        reduction=loss.reduction,
        diversity_weight=line.diversity_weight,
        scale_penalty=loss.scale_penalty,
        distillation=None if loss.distillation is None else cast(Distillation, loss.distillation),
    )
