"""The option groups of LCSCallback: Sampling, Loss and Recalibration."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from lightning_lcs.functional.sampling import SAMPLERS, VISIT_FULL, step_generator
from lightning_lcs.functional.schedules import SCHEDULES
from lightning_lcs.subspace.axis import check_alpha
from lightning_lcs.subspace.option_places import model_places
from lightning_lcs.subspace.running.calibration import DEFAULT_IMAGES, DEFAULT_LEVELS, level_grid
from lightning_lcs.utils.options import check_types, parse_options


def _last_apart(last: float, others: float) -> Callable[[Sequence[float]], list[float]]:
    def weights(shares: Sequence[float]) -> list[float]:
        few = len(shares) - 1
        return [*([others / few] * few), last] if few else [1.0]

    return weights


# Name -> weights of the losses of the levels that a step visits, in ascending order, as a function of the shares of the
# samples on which they run.
LOSS_REDUCTIONS: Mapping[str, Callable[[Sequence[float]], list[float]]] = {
    "full_half": _last_apart(0.5, 0.5),
    "mean": list,
    "sum": lambda shares: [1.0] * len(shares),
    "full_plus_mean": _last_apart(1.0, 1.0),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """Options of the levels that a training step visits, and of the warm-up of the compression.

    Args:
        sampler: How the levels of a step are drawn: "sandwich" (both ends of [0, 1], and uniform draws between them),
            "uniform" (uniform draws, and alpha = 1), "biased_endpoints" (each draw is an end with probability 1/2 and
            uniform otherwise), "uniform_draws" (uniform draws alone), "uniform_draws_per_layer" (each layer also draws
            a bit width of its own; only in quantized mode with a point), "weighted_draws" (each draw is an end with
            probability 2/5, and between the ends the mode draws levels more often that are hard to train: shares kept
            on a logarithmic scale, and the two lowest bit widths twice as often), "weighted" (such draws, of which a
            third is 0, and alpha = 1) or "weighted_sandwich" (both ends, and such draws between them). A list of levels
            in [0, 1] makes every step visit exactly these. The default is "sandwich" in structured mode,
            "weighted_draws" in unstructured mode, and "uniform_draws" in quantized mode.
        alphas_per_step: The number of levels per step, at least 1 (at least 2 for the sandwich rules). The default is
            the number of shares in ``split``, or else 3 for these and for "uniform", 2 for "weighted", and 1 for the
            other samplers.
        levels: The number of evenly spaced levels to which drawn widths and sparsities are rounded, at least 3; 0
            leaves the draws as they are, as in the paper, which costs time on a GPU because it searches for new kernels
            in almost every structured step. The default is 25, or 13, 7 or 4 where the training is too short to draw
            each of so many 20 times.
        split: Whether the batch of a step is divided over its levels, instead of running whole at each of them: a step
            then costs about as much as a plain step. ``True`` gives 0.6 of the samples to the largest level and the
            rest to the others in equal parts; a list gives the share of each level, in ascending order of the levels.
            The default sampler is then "weighted" for two levels and "weighted_sandwich" for more, in every mode. A
            batch that gives a level fewer than two samples runs whole at each level, with a warning. The default is
            ``False``.
        warmup: The share of all training steps, in [0, 1], over which sparsity grows to its level, or in which the
            inputs of layers are not quantized yet. The default is 0.5 in unstructured and in quantized mode.
            Structured mode has no warm-up.
        warmup_schedule: "linear" (the compression grows steadily), "cubic" (it grows fast at first and slowly at the
            end) or "delayed" (there is none until the warm-up is over). The default is "linear" in unstructured mode,
            and "delayed" in quantized mode.

    Raises:
        ValueError: An option is outside its range.
        TypeError: An option has another type.

    Example:
        >>> from lightning_lcs import LCSCallback, Sampling
        >>> LCSCallback("structured", sampling=Sampling(alphas_per_step=3)).sampling.alphas_per_step
        3
    """

    sampler: str | Sequence[float] | None = None
    alphas_per_step: int | None = None
    levels: int | None = None
    split: bool | Sequence[float] = False
    warmup: float | None = None
    warmup_schedule: str | None = None

    def __post_init__(self) -> None:
        check_types(self)
        if self.levels is not None and self.levels != 0 and self.levels < 3:
            raise ValueError(
                f"Sampling(levels={self.levels}) is neither 0 (any alpha is drawn) nor at least 3; use, for example, "
                f"{DEFAULT_LEVELS}"
            )
        if self.alphas_per_step is not None and self.alphas_per_step < 1:
            raise ValueError(
                f"Sampling(alphas_per_step={self.alphas_per_step}) is below 1: a step needs at least one level"
            )
        if self.warmup is not None and not 0.0 <= self.warmup <= 1.0:
            raise ValueError(
                f"Sampling(warmup={self.warmup!r}) is not in [0, 1]: it is a share of all training steps; 0 turns it "
                "off"
            )
        if self.warmup_schedule not in (None, *SCHEDULES):
            raise ValueError(
                f"Sampling(warmup_schedule={self.warmup_schedule!r}) is not known; choose one of "
                f"{', '.join(map(repr, SCHEDULES))}"
            )
        if isinstance(self.sampler, str):
            if self.sampler not in SAMPLERS:
                raise ValueError(
                    f"Sampling(sampler={self.sampler!r}) is not known; choose one of {', '.join(map(repr, SAMPLERS))}, "
                    "or give the levels that every step visits"
                )
            SAMPLERS[self.sampler](step_generator(0, 0), self.levels_per_step(self.sampler))
        elif self.sampler is not None:
            self._take_levels(self.sampler)
        if self.split is not False:
            self._check_split()

    def _take_levels(self, given: Sequence[float]) -> None:
        levels = tuple(sorted({check_alpha(alpha) for alpha in given}))
        if not levels:
            raise ValueError(
                "Sampling(sampler=[]) visits no level; give at least one, such as [1.0] for plain training"
            )
        if self.alphas_per_step not in (None, len(levels)):
            raise ValueError(
                f"Sampling(alphas_per_step={self.alphas_per_step}) does not fit its sampler, which gives {len(levels)} "
                "levels; leave alphas_per_step out"
            )
        object.__setattr__(self, "sampler", levels)

    @property
    def split_sampler(self) -> str:
        """The default sampler of a split batch: both ends of the range belong to every step of three or more levels."""
        levels = self.alphas_per_step if isinstance(self.split, bool) else len(self.split)
        return "weighted" if levels in (None, 1, 2) else "weighted_sandwich"

    def levels_per_step(self, sampler: str | Sequence[float]) -> int:
        """The number of levels that a step visits with a sampler: what was given, or the sampler's default."""
        if not isinstance(sampler, str):
            return len(sampler)
        if self.alphas_per_step is not None:
            return self.alphas_per_step
        if not isinstance(self.split, bool):
            return len(self.split)
        if sampler == "weighted":
            return 2
        return 3 if sampler in VISIT_FULL else 1

    def shares(self, count: int) -> tuple[float, ...] | None:
        """The share of the samples of each level of a step, ascending; ``None`` where each runs on all of them.

        Args:
            count: The number of levels that the step visits.
        """
        if self.split is False:
            return None
        return even_but_last(count) if self.split is True else tuple(self.split)

    def _check_split(self) -> None:
        entries = (
            self.split if isinstance(self.split, (list, tuple)) else [0.0 if isinstance(self.split, bool) else None]
        )
        if not all(isinstance(entry, (int, float)) for entry in entries):
            raise ValueError(
                f"Sampling(split={self.split!r}) is neither true nor false nor a list of the shares of the levels, "
                "such as [0.4, 0.6]"
            )
        count = self.levels_per_step(self.split_sampler if self.sampler is None else self.sampler)
        if count < 2:
            raise ValueError(
                f"Sampling(split={self.split!r}) divides a batch over the levels of a step, and the sampler visits "
                "one; use sampler='weighted', or leave split out"
            )
        if isinstance(self.split, bool):
            return
        shares = tuple(float(share) for share in self.split)
        if len(shares) != count or not all(share > 0.0 for share in shares) or abs(sum(shares) - 1.0) > 1e-6:
            raise ValueError(
                f"Sampling(split={self.split!r}) is not a share above 0 for each of the {count} levels of a step, with "
                f"a sum of 1; use, for example, {even_but_last(count)}"
            )
        object.__setattr__(self, "split", shares)


def even_but_last(count: int) -> tuple[float, ...]:
    """Shares of ``count`` levels: 0.6 for the last one, and the same for each of the others."""
    return (*[0.4 / (count - 1)] * (count - 1), 0.6)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distillation:
    """Options of distillation: compressed levels also learn what the full network gives for the same samples.

    The loss of a compressed level is ``(1 - weight) * loss + weight * distance``, with the distance between the outputs
    of the last call of a network in the step. The full network learns from labels alone, and gives its outputs in a
    forward without gradients.

    Args:
        loss: The distance: "logits" (the cross-entropy under the teacher's probabilities of classes, of which each
            sample has one), "features" (the distance between what modules inside the network return, each a tensor,
            averaged over them), or a function of the outputs of student and teacher, as the network returns them, that
            returns a tensor with one entry. Classes lie along dimension 1 of the output, or along the last of three in
            the entry "logits" of a mapping. The default is "logits".
        modules: The paths of the modules within the network, for "features": a list, or a mapping to the paths within
            ``teacher``, whose features have the shapes of the full network's. A narrower level is compared with the
            channels that it keeps. The default is none.
        distance: The distance between features: "mse" (the mean of the squared differences) or "cosine" (1 minus the
            cosine between the features of a sample, averaged over samples). The default is "mse".
        weight: The weight of the distance, in (0, 1]; 1 leaves the labels out. The default is 0.5.
        temperature: Divides the logits of both, above 0. The default is 1.
        start: The share of all training steps after which distillation begins, in [0, 1): the full network teaches
            little while it has learned little. The default is 0.
        teacher: A network that teaches all levels, the full one too, instead of the full network; it is called with the
            arguments of the network, in evaluation and without gradients. The default is ``None``.

    Raises:
        ValueError: An option is outside its range.
        TypeError: An option has another type.

    Example:
        >>> from lightning_lcs import Distillation, LCSCallback, Loss
        >>> LCSCallback("structured", loss=Loss(distillation=Distillation(start=0.3))).loss.distillation.weight
        0.5
    """

    loss: str | Callable[[Any, Any], Any] = "logits"
    modules: Sequence[str] | Mapping[str, str] = ()
    distance: str = "mse"
    weight: float = 0.5
    temperature: float = 1.0
    start: float = 0.0
    teacher: nn.Module | None = dataclasses.field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_types(self)
        known = self.loss in ("logits", "features") if isinstance(self.loss, str) else callable(self.loss)
        if not known or isinstance(self.loss, type):
            raise ValueError(
                f"Distillation(loss={self.loss!r}) is not known; give 'logits', 'features', or a function of the "
                "outputs of the student and the teacher"
            )
        self._check_features()
        if self.teacher is not None and not isinstance(self.teacher, nn.Module):
            raise ValueError(f"Distillation(teacher={self.teacher!r}) is not a network; give an nn.Module")
        if not 0.0 < self.weight <= 1.0:
            raise ValueError(f"Distillation(weight={self.weight!r}) is not in (0, 1]; use, for example, 0.5")
        if not self.temperature > 0.0:
            raise ValueError(f"Distillation(temperature={self.temperature!r}) is not above 0; use, for example, 1")
        if not 0.0 <= self.start < 1.0:
            raise ValueError(
                f"Distillation(start={self.start!r}) is not in [0, 1): it is a share of all training steps"
            )

    def _check_features(self) -> None:
        if self.distance != "mse" and self.loss != "features":
            raise ValueError(
                f"Distillation(distance={self.distance!r}) is of features, and loss is {self.loss!r}; give "
                "loss='features' and modules, or leave distance out"
            )
        if not isinstance(self.modules, (Mapping, Sequence)):
            raise ValueError(f"Distillation(modules={self.modules!r}) is not a list of paths, such as ['layer3']")
        if isinstance(self.modules, str):
            raise ValueError(f"Distillation(modules={self.modules!r}) is one path; give a list, [{self.modules!r}]")
        if not all(isinstance(path, str) for path in self.module_pairs):
            raise ValueError(f"Distillation(modules={self.modules!r}) is not a list of paths, such as ['layer3']")
        if isinstance(self.modules, Mapping) and self.teacher is None:
            raise ValueError(
                f"Distillation(modules={self.modules!r}) names modules of a teacher, and there is none; give teacher, "
                f"or a list of modules of the network, {list(self.modules)}"
            )
        if (self.loss == "features") != bool(self.modules):
            raise ValueError(
                f"Distillation(loss={self.loss!r}, modules={self.modules!r}) do not go together: 'features' compares "
                "what modules return; give both, such as loss='features', modules=['layer3']"
            )
        if self.distance not in ("mse", "cosine"):
            raise ValueError(f"Distillation(distance={self.distance!r}) is not known; choose 'mse' or 'cosine'")

    @property
    def module_pairs(self) -> dict[str, str]:
        """The paths of modules within the teacher, by those within the network."""
        return dict(self.modules) if isinstance(self.modules, Mapping) else {path: path for path in self.modules}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loss:
    """Options of the loss that a training step minimizes.

    Args:
        reduction: "full_half" (the largest level of the step has half of the weight, and the others share the other
            half), "mean" (the mean of the losses of the levels; on a split batch each sample has the same weight),
            "sum" (their sum, as in the paper; gradients are then as many times larger as a step visits levels) or
            "full_plus_mean" (the loss of the largest level plus the mean of the others). With the first two, the
            weights add up to 1, so that a project keeps its learning rate. The default is "full_half".
        scale_penalty: The weight of the L1 norm of the scales of the normalization layers, at least 0. It is 1e-5 in
            network slimming. The default is 0.
        distillation: How compressed levels learn from the full network: "logits", a function of the outputs of student
            and teacher, or a :class:`Distillation` or a mapping of its options. The default is ``None``: from labels
            alone.

    Raises:
        ValueError: An option is outside its range.
        TypeError: An option has another type.

    Example:
        >>> from lightning_lcs import LCSCallback, Loss
        >>> LCSCallback("structured", loss=Loss(reduction="sum")).loss.reduction
        'sum'
    """

    reduction: str = "full_half"
    scale_penalty: float = 0.0
    distillation: Distillation | Mapping[str, Any] | str | Callable[[Any, Any], Any] | None = None

    def __post_init__(self) -> None:
        check_types(self)
        given = self.distillation
        if given is not None:
            given = {"loss": given} if isinstance(given, str) or callable(given) else given
            object.__setattr__(self, "distillation", parse_options(Distillation, given, "distillation"))
        if self.reduction not in LOSS_REDUCTIONS:
            raise ValueError(
                f"Loss(reduction={self.reduction!r}) is not known; choose one of "
                f"{', '.join(map(repr, LOSS_REDUCTIONS))}"
            )
        if not self.scale_penalty >= 0:
            raise ValueError(f"Loss(scale_penalty={self.scale_penalty!r}) is not 0 or above; 0 turns the term off")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recalibration:
    """Options of the batch-norm statistics that each level gets.

    Args:
        images: The number of training images from which the statistics of each level are taken; 0 for none, so that
            every level runs on the statistics of alpha = 1, with a loss of accuracy. The default is 512.
        levels: The levels whose statistics are kept: their number (evenly spaced over [0, 1], at least 2), or a list of
            levels in [0, 1]. An alpha that is asked for later runs at the nearest of them. The default is 25.
        every_checkpoint: Whether the statistics are collected for each checkpoint when it is written, which takes one
            recalibration each. By default, the best and the last file of each ``ModelCheckpoint`` get them when
            training ends, together with files whose weights have a curve, and files that your code saves elsewhere.

    Raises:
        ValueError: An option is outside its range.
        TypeError: An option has another type.

    Example:
        >>> from lightning_lcs import LCSCallback, Recalibration
        >>> LCSCallback("structured", recalibration=Recalibration(images=512)).recalibration.images
        512
    """

    images: int = DEFAULT_IMAGES
    levels: int | Sequence[float] = DEFAULT_LEVELS
    every_checkpoint: bool = False

    def __post_init__(self) -> None:
        check_types(self)
        if self.images < 0:
            raise ValueError(f"Recalibration(images={self.images}) is negative; use, for example, {DEFAULT_IMAGES}")
        level_grid(self.levels)  # refuses what is not a grid
        if not isinstance(self.levels, int):
            object.__setattr__(self, "levels", tuple(self.levels))


def places() -> dict[str, str]:
    """Names that are options somewhere else than where people may look -> the end of a sentence that says where."""
    own = {
        "sampler": "sampling=Sampling(sampler=...)",
        "alphas_per_step": "sampling=Sampling(alphas_per_step=...)",
        "training_levels": "sampling=Sampling(levels=...)",
        "warmup": "sampling=Sampling(warmup=...)",
        "warmup_schedule": "sampling=Sampling(warmup_schedule=...)",
        "loss_reduction": "loss=Loss(reduction=...)",
        "scale_penalty": "loss=Loss(scale_penalty=...)",
        "distillation": "loss=Loss(distillation=...)",
        "recalibration_images": "recalibration=Recalibration(images=...)",
        "recalibration_levels": "recalibration=Recalibration(levels=...)",
    }
    return {**model_places(), **{name: f"is now {place}" for name, place in own.items()}}
