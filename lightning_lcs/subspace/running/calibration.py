"""Batch-norm statistics of levels, collected once and kept in the model, so that any level runs without data."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_lcs.graph.channels.plan import select
from lightning_lcs.graph.traced_network import training_flags
from lightning_lcs.subspace.axis import check_alpha
from lightning_lcs.subspace.mode import Level, Mode
from lightning_lcs.subspace.part import Part
from lightning_lcs.subspace.running.level_weights import LevelWeights, level_tensors

DEFAULT_LEVELS = 25
# More change the accuracy of no level by more than its error; examples/settings/recalibration_images.py shows it.
DEFAULT_IMAGES = 512


def level_grid(alphas: int | Sequence[float]) -> list[float]:
    """The levels of a grid in ascending order.

    Args:
        alphas: A number of levels, at least 2, spaced evenly over [0, 1]; or the levels themselves.

    Raises:
        ValueError: There are fewer than 2, or a level is outside [0, 1].

    Example:
        >>> from lightning_lcs.subspace.running.calibration import level_grid
        >>> level_grid(3)
        [0.0, 0.5, 1.0]
    """
    if isinstance(alphas, int):
        if alphas < 2:
            raise ValueError(f"alphas={alphas} is below 2: a grid holds both ends of [0, 1]; use, for example, 7")
        return [step / (alphas - 1) for step in range(alphas)]
    if not alphas:
        raise ValueError("alphas is empty: give at least one level, or a number of levels")
    return sorted({check_alpha(alpha) for alpha in alphas})


def needs_data(
    parts: Sequence[Part], mode: Mode, ranges: Mapping[float, Mapping[str, Any]], alphas: Sequence[float]
) -> bool:
    """Whether levels need training images, for batch-norm statistics or for input ranges that training did not collect.

    Args:
        parts: The networks.
        mode: The mode.
        ranges: The ranges that are known, by level.
        alphas: The levels.
    """
    if has_batch_norm(parts):
        return True
    if not mode.observes_inputs or not any(part.layers for part in parts):
        return False
    # Where layers draw their own bit widths, a level may have ranges for only some of the layers. A layer that no level
    # has a range of is never called.
    layers = {name for known in ranges.values() for name in known}
    seen = {level for level, known in ranges.items() if known and layers <= known.keys()}
    return not {mode.snap(alpha) for alpha in alphas} <= seen


def has_batch_norm(parts: Sequence[Part]) -> bool:
    """Whether any network has batch norms, whose running statistics depend on the level."""
    children = [child for part in parts for child in part.network.module.modules()]
    norms = [child for child in children if isinstance(child, nn.modules.batchnorm._BatchNorm)]
    return any(norm.track_running_stats for norm in norms)


def collect(
    collector: Collector, batches: Iterable[Any], levels: Sequence[float], forward: Callable[[Any], Any]
) -> dict[float, dict[str, Tensor]]:
    """Run every batch at every level, and return the average statistics of each level.

    In a distributed run the averages of the ranks are averaged.

    Args:
        collector: Runs the networks inside ``forward``.
        batches: The batches of training data.
        levels: The levels.
        forward: Takes a batch and calls the networks.

    Raises:
        ValueError: There is no batch.
    """
    empty = True
    for batch in batches:
        empty = False
        for alpha in levels:
            collector.alpha = alpha
            forward(batch)
    if empty:
        raise ValueError("batches is empty: recalibration of batch norm needs training data")
    return {alpha: over_ranks(tensors) for alpha, tensors in collector.averages().items()}


def over_ranks(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The mean of tensors over the ranks of a distributed run, in one message."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return tensors
    flat = torch.cat([value.flatten() for value in tensors.values()])
    torch.distributed.all_reduce(flat)
    sizes = [value.numel() for value in tensors.values()]
    parts = torch.split(flat / torch.distributed.get_world_size(), sizes)
    return {name: part.reshape(value.shape) for (name, value), part in zip(tensors.items(), parts, strict=True)}


class Collector:
    """Runs networks, and takes the cumulative averages of their batch-norm statistics at several levels.

    Every batch has the same weight, whatever the momentum. Each batch starts from zeroed statistics, and the update by
    the mean and the unbiased variance of the batch is divided by the momentum.

    Args:
        parts: The networks.
        mode: The mode.

    Attributes:
        alpha: The level that the next batch belongs to.
    """

    def __init__(self, parts: Sequence[Part], mode: Mode) -> None:
        self.alpha = 0.0
        self._parts = parts
        self._mode = mode
        self._sums: dict[float, dict[str, Tensor]] = {}
        self._counts: dict[float, dict[str, int]] = {}
        # The weights don't change meanwhile, so that a threshold is searched for once per level, not once per batch.
        self._known: dict[tuple[str, float], dict[str, Any]] = {}
        # The statistics of norms in parts that nothing trains, which are the same at every level.
        self._kept: dict[str, set[str]] = {}
        self._ran = False

    @contextlib.contextmanager
    def flags(self) -> Iterator[None]:
        """Inside the block all layers but batch norms are in evaluation mode, and modules with layers in training mode.

        Batch norms in parts that nothing trains, such as a teacher, are in evaluation mode, too. The training step
        expects what modules with layers return in training mode, such as losses or the outputs of auxiliary heads.
        """
        with contextlib.ExitStack() as stack:
            for part in self._parts:
                stack.enter_context(training_flags(part.network.module, False))
                frozen = part.frozen_modules()
                buffers = [name for name, _ in part.network.module.named_buffers()] if frozen else []
                self._kept[part.prefix] = {name for name in buffers if name.rpartition(".")[0] in frozen}
                for path, child in part.network.module.named_modules():
                    is_norm = isinstance(child, nn.modules.batchnorm._BatchNorm) and path not in frozen
                    child.training = is_norm or _is_made_of_layers(child)
            yield

    def run(self, part: Part, full: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a batch at the level, and add its statistics."""
        level = Level(self._mode, self.alpha)
        execution = level.mode.execution(part, level, args, kwargs)
        variances = (variance for variance, _ in execution.statistics.values())
        scratch = {
            name: part.network.tensor(name).new_zeros(tuple(execution.shape(name)))
            for name in {*execution.statistics, *variances, *execution.batch_statistics} - self._kept[part.prefix]
        }
        known = self._known.setdefault((part.prefix, self.alpha), {})
        tensors = level_tensors(LevelWeights(part, level, known), execution, {})
        tensors = [scratch.get(name, value) for name, value in zip(execution.names, tensors, strict=True)]
        inputs = level.mode.calibration_inputs(part, level, self._add)
        result = execution.run(tensors, full, args, kwargs, inputs)
        for mean, (variance, momentum) in execution.statistics.items():
            for name in (mean, variance):
                if name in scratch:
                    self._add(part.prefix + name, scratch[name].float() / momentum)
                else:
                    self._add(part.prefix + name, select(part.network.tensor(name), execution.cut(name)).float())
        self._ran = True
        return result

    def _add(self, name: str, value: Tensor) -> None:
        sums, counts = self._sums.setdefault(self.alpha, {}), self._counts.setdefault(self.alpha, {})
        value = value.detach()  # a step may need gradients of its own
        sums[name] = sums[name] + value if name in sums else value
        counts[name] = counts.get(name, 0) + 1

    def averages(self) -> dict[float, dict[str, Tensor]]:
        """The running means and variances, and the ranges of quantized inputs, by level and qualified name.

        Raises:
            RuntimeError: No batch was seen.
        """
        if not self._ran:
            raise RuntimeError(
                "no batch ran through the network, so that there are no batch-norm statistics to average"
            )
        return {
            alpha: {name: total / self._counts[alpha][name] for name, total in sums.items()}
            for alpha, sums in self._sums.items()
        }


def _is_made_of_layers(module: nn.Module) -> bool:
    own = not type(module).__module__.startswith("torch.nn.")
    return own and next(module.children(), None) is not None
