"""Training methods by name: subspaces, and the methods that arXiv 2110.04252 compares them with."""

from __future__ import annotations

import math
from typing import Any

from lightning_lcs.functional.sampling import PER_LAYER
from lightning_lcs.subspace.mode import Mode
from lightning_lcs.subspace.modes import Quantized, Structured, Unstructured
from lightning_lcs.subspace.modes.registry import MODES, SUBSPACES
from lightning_lcs.subspace.running.calibration import DEFAULT_LEVELS
from lightning_lcs.subspace.weights.line import Line
from lightning_lcs.subspace.weights.norms import NORMS
from lightning_lcs.training.options import Loss, Recalibration, Sampling

# The shares of weights kept at which arXiv 2110.04252 evaluates its unstructured subspaces.
PAPER_SHARES_KEPT = (0.025, 0.05, 0.075, 0.1, 0.125, 0.15, 0.175, 0.2, 0.25, 0.5, 0.75, 0.9, 0.95, 1.0)
# The levels of the widths 0.25, 0.5, 0.75 and 1.
SLIMMABLE_ALPHAS = (0.0, 1 / 3, 2 / 3, 1.0)
METHODS = (
    "MODE-SUBSPACE (such as structured-line)",
    "paper-MODE-SUBSPACE (either with -keep, -instance or -group for another norm)",
    "plain",
    "us, ns (or paper-us, paper-ns)",
    "lec",
    "width-W (W in [0.25, 1])",
    "sparsity-S (S in [0, 0.975])",
    "bits-B (B in 3..8)",
)


def method_settings(name: str) -> dict[str, Any]:
    """The options of :class:`LCSCallback` that make a training method.

    Args:
        name: The name of the method, one of

            * "structured-line", "unstructured-point" and so on: a mode and a subspace, with their defaults;
              "paper-structured-line" and so on: the same with the settings of :meth:`LCSCallback.paper`; both may end
              in "-keep", "-instance" or "-group" for that norm;
            * "plain": ordinary training; the network is cut to each width afterwards;
            * "us": a universally slimmable network (sandwich rule, batch norm) whose narrow widths run on the
              statistics of the full width;
            * "ns": a slimmable network, trained at the widths 0.25, 0.5, 0.75 and 1 in every step, with batch-norm
              statistics for each width (scale and shift are shared; in the paper each width has its own);
            * "paper-us", "paper-ns": the same on the sum of the losses, and US at any width, as published;
            * "lec": network slimming: plain training with an L1 penalty on the scales of the norms; the network is cut
              afterwards to the channels of the largest scales in the whole network, without fine-tuning;
            * "width-0.5": a network for this width, trained with these channels alone;
            * "sparsity-0.95": a network for this sparsity, which grows over half of the training;
            * "bits-4": a network for this bit width.

    Returns:
        The keyword arguments for :class:`LCSCallback`, with groups of options as objects.

    Raises:
        ValueError: The name is not known.

    Example:
        >>> from lightning_lcs.training.methods import method_settings
        >>> settings = method_settings("width-0.625")
        >>> settings["mode"], settings["subspace"], settings["alphas"]
        ('structured', 'point', [0.5])
    """
    fixed: dict[str, Any] = {"subspace": "point", "norm": "keep"}
    levels = list(SLIMMABLE_ALPHAS)
    plain = {"sampling": Sampling(sampler=[1.0])}
    kind, _, rest = name.partition("-")
    published = {"loss": Loss(reduction="sum" if kind == "paper" else "mean")}
    rounded = 0 if kind == "paper" else DEFAULT_LEVELS
    subspace_settings = _subspace_settings(name.removeprefix("paper-").split("-"), paper=kind == "paper")
    if subspace_settings is not None:
        return subspace_settings
    if name == "plain":
        return {**fixed, **plain, "mode": "structured"}
    if name in ("us", "paper-us"):
        sandwich = {"sampling": Sampling(sampler="sandwich", alphas_per_step=4, levels=rounded)}
        return {**fixed, **published, **sandwich, "mode": "structured", "recalibration": Recalibration(images=0)}
    if name in ("ns", "paper-ns"):
        every = {"sampling": Sampling(sampler=levels, levels=rounded), "recalibration": Recalibration(levels=levels)}
        return {**fixed, **published, **every, "mode": "structured", "alphas": levels}
    if name == "lec":
        return {**fixed, **plain, "mode": Structured(select="scale"), "loss": Loss(scale_penalty=1e-5)}
    number = _number(rest)
    if kind == "width" and Structured().min_width <= number <= 1.0:
        alpha = (number - Structured().min_width) / (1.0 - Structured().min_width)
        return {**fixed, "mode": "structured", "sampling": Sampling(sampler=[alpha]), "alphas": [alpha]}
    if kind == "sparsity" and 0.0 <= number <= Unstructured().max_sparsity:
        alpha = 1.0 - number / Unstructured().max_sparsity
        grid = [step / 6 for step in range(7)]
        sampling = Sampling(sampler=[alpha], warmup_schedule="linear")
        return {**fixed, "mode": "unstructured", "sampling": sampling, "alphas": sorted({*grid, alpha})}
    if kind == "bits" and number in range(3, 9):
        level = Quantized().alpha(int(number))
        sampling = Sampling(sampler=[level])
        return {**fixed, "mode": Quantized(edge_bits=32), "sampling": sampling, "alphas": [level]}
    raise ValueError(f"method {name!r} is not known; choose from {', '.join(METHODS)}")


def _subspace_settings(words: list[str], paper: bool) -> dict[str, Any] | None:
    """The settings of ``[mode, subspace]`` or ``[mode, subspace, norm]``; ``None`` for anything else."""
    norm = {"norm": words[2]} if len(words) == 3 and words[2] in NORMS else {}
    if len(words) != 2 + len(norm) or words[0] not in MODES or words[1] not in SUBSPACES:
        return None
    mode, subspace = words[:2]
    return {**(paper_settings(mode, subspace) if paper else {"mode": mode, "subspace": subspace}), **norm}


def paper_settings(mode: str, subspace: str) -> dict[str, Any]:
    """The options of :class:`LCSCallback` that the paper uses; see :meth:`LCSCallback.paper`."""
    quantized = Quantized(edge_bits=32, per_channel=False, weight_range="minmax", input_range="minmax")
    modes: dict[str, Mode] = {"unstructured": Unstructured(layer_density="uniform"), "quantized": quantized}
    structured = mode == "structured"
    settings: dict[str, Any] = {
        "mode": modes.get(mode, mode),
        "subspace": subspace,
        "norm": "instance" if structured else "group",
        "line": Line(
            parameters="norm" if structured else "backbone",
            start="independent",
            diversity_weight=1.0,
        ),
        "sampling": _paper_sampling(mode, subspace),
        "loss": Loss(reduction="sum"),
    }
    if mode == "unstructured":
        settings["alphas"] = [(kept - 0.025) / 0.975 for kept in PAPER_SHARES_KEPT]
    return settings


def _paper_sampling(mode: str, subspace: str) -> Sampling:
    if mode == "structured":
        return Sampling(sampler="sandwich", alphas_per_step=4, levels=0)
    if mode == "quantized":
        sampler = PER_LAYER if subspace == "point" else "uniform_draws"
        return Sampling(sampler=sampler, warmup=0.8, warmup_schedule="delayed", levels=0)
    if subspace == "line":
        return Sampling(sampler="biased_endpoints", warmup=0.8, warmup_schedule="linear", levels=0)
    return Sampling(sampler="uniform_draws", warmup=0.8, warmup_schedule="delayed", levels=0)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
