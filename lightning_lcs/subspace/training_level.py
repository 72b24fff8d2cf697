"""A level of a training step, and the collection of statistics at many levels."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_lcs.graph.channels.plan import Selection
from lightning_lcs.graph.network import training_flags
from lightning_lcs.subspace.forward import Execution
from lightning_lcs.subspace.gradients import GradientSum
from lightning_lcs.subspace.modes.observers import Collecting, Observing
from lightning_lcs.subspace.modes.registry import Mode, Quantized
from lightning_lcs.subspace.network import Part
from lightning_lcs.subspace.weights import Compression, Setting, level_tensors, setting_of


class TrainingLevel:
    """One level of a training step.

    The level's tensors are leaves of their own, whose gradients go to ``gradients`` as soon as backward has computed
    them. That is cheaper than back-propagating through every slice, which would build a full-sized gradient per tensor
    and level.

    Args:
        mode: of compression.
        setting: what the level does.
        gradients: takes the gradients; ``None`` to back-propagate into the parameters themselves.
        ranges: moving ranges of quantized inputs, by the bits of a level.
        drawn_bits: bits of single layers in place of the setting's, by qualified path.
    """

    def __init__(
        self,
        mode: Mode,
        setting: Setting,
        gradients: GradientSum | None,
        ranges: Mapping[int, dict[str, Tensor]],
        drawn_bits: Mapping[str, int],
    ) -> None:
        self.setting = setting
        self._ranges = ranges
        self._drawn_bits = drawn_bits
        self._mode = mode
        self._gradients = gradients
        self._compressions: dict[int, Compression] = {}
        self._tensors: dict[tuple[int, str], Tensor] = {}

    @classmethod
    def of(
        cls,
        mode: Mode,
        alpha: float,
        strength: float,
        gradients: GradientSum | None,
        ranges: dict[float, dict[str, Tensor]],
        drawn_bits: Mapping[str, int],
    ) -> TrainingLevel:
        """The level at ``alpha``, of which a share applies while a warm-up lasts.

        Args:
            mode: of compression.
            alpha: the level.
            strength: share of its sparsity; inputs of layers are quantized at 1 only.
            gradients: see the class.
            ranges: of every level that was visited; new ones are added.
            drawn_bits: see the class.
        """
        alpha = mode.snap(alpha)
        moving: dict[int, dict[str, Tensor]] = {}
        if isinstance(mode, Quantized):
            visited = {mode.bit_width(alpha), *drawn_bits.values()}
            moving = {bits: ranges.setdefault(mode.alpha(bits), {}) for bits in visited}
        return cls(mode, setting_of(mode, alpha, strength), gradients, moving, drawn_bits)

    @property
    def is_full(self) -> bool:
        """Whether the network runs as it is."""
        return self.setting == Setting(1.0)

    def run(self, part: Part, full: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a part at the level; calls within one step share their tensors."""
        execution = part.execution(self._mode, self.setting.alpha, args, kwargs)
        if id(part) not in self._compressions:
            self._compressions[id(part)] = Compression(part, self.setting, self._drawn_bits)
        level = self._compressions[id(part)]
        untouched = execution.batch_statistics
        tensors = [None if name in untouched else self._tensor(level, execution, name) for name in execution.names]
        inputs = None
        if level.layer_bits is not None:
            inputs = Observing(self._ranges, part.prefix, level.layer_bits, self.setting.inputs)
        return execution.run(tensors, full, args, kwargs, inputs)

    def _tensor(self, level: Compression, execution: Execution, name: str) -> Tensor:
        key = (id(level.part), name)
        if key not in self._tensors:
            selection = execution.cut(name)
            if self._gradients is None:
                value = level.tensor(name, selection)
                # A slice with gaps is read wrongly by convolutions of some devices (pytorch/pytorch#192212).
                self._tensors[key] = value.detach().clone() if name in execution.updated else value.contiguous()
            else:
                self._tensors[key] = self._leaf(level, name, selection, name in execution.updated, self._gradients)
        return self._tensors[key]

    @torch.no_grad()
    def _leaf(
        self, level: Compression, name: str, selection: Selection, copied: bool, gradients: GradientSum
    ) -> Tensor:
        value = level.tensor(name, selection).detach()
        value = value.clone() if copied else value.contiguous()
        sources = self._sources(level.part, name)
        if sources:
            hook = _Hand(gradients, sources, selection, level.kept(name, value))
            value.requires_grad_().register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]
        return value

    def _sources(self, part: Part, name: str) -> list[tuple[nn.Parameter, float]]:
        """The trainable parameters that a tensor is made of, with the share of each."""
        current = part.network.tensor(name)
        if not isinstance(current, nn.Parameter):
            return []
        sources = [(current, 1.0)]
        if name in part.endpoints:
            alpha = self.setting.alpha
            sources = [(part.endpoints[name], 1.0 - alpha), (current, alpha)]
        return [(parameter, share) for parameter, share in sources if parameter.requires_grad and share > 0.0]


class _Hand:
    """Hook of a leaf: hands its gradient on to the parameters that the leaf was cut from."""

    def __init__(
        self,
        gradients: GradientSum,
        sources: list[tuple[nn.Parameter, float]],
        selection: Selection,
        kept: Tensor | None,
    ) -> None:
        self._gradients = gradients
        self._sources = sources
        self._selection = selection
        self._kept = kept

    def __call__(self, leaf: Tensor) -> None:
        gradient, leaf.grad = leaf.grad, None
        if gradient is not None:
            gradient = gradient if self._kept is None else gradient * self._kept
            for parameter, share in self._sources:
                self._gradients.add(parameter, self._selection, gradient, share)


def _is_made_of_layers(module: nn.Module) -> bool:
    own = not type(module).__module__.startswith("torch.nn.")
    return own and next(module.children(), None) is not None


class Collector:
    """Cumulative averages of batch-norm statistics, for any number of levels.

    Every batch counts the same, whatever the momentum: each starts from zeroed statistics, whose update by the batch's
    mean and unbiased variance is divided by the momentum again.

    Attributes:
        alpha: the level that the next batch belongs to.
    """

    def __init__(self, parts: Sequence[Part], mode: Mode) -> None:
        self.alpha = 0.0
        self._parts = parts
        self._mode = mode
        self._sums: dict[float, dict[str, Tensor]] = {}
        self._counts: dict[float, dict[str, int]] = {}
        # Weights stay what they are meanwhile: a threshold is searched for once per level, not once per batch.
        self._thresholds: dict[tuple[str, float], dict[str, float | None]] = {}
        self._ran = False

    @contextlib.contextmanager
    def flags(self) -> Iterator[None]:
        """Layers in evaluation, but for batch norms; code that is made of layers as in training.

        It may give other results then, which the training step expects: losses, or those of auxiliary heads.
        """
        with contextlib.ExitStack() as stack:
            for part in self._parts:
                stack.enter_context(training_flags(part.network.module, False))
                for child in part.network.module.modules():
                    child.training = isinstance(child, nn.modules.batchnorm._BatchNorm) or _is_made_of_layers(child)
            yield

    @torch.no_grad()
    def run(self, part: Part, full: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a batch at the level and take its statistics."""
        execution = part.execution(self._mode, self.alpha, args, kwargs)
        variances = (variance for variance, _ in execution.statistics.values())
        scratch = {
            name: part.network.tensor(name).new_zeros(tuple(execution.shape(name)))
            for name in {*execution.statistics, *variances, *execution.batch_statistics}
        }
        thresholds = self._thresholds.setdefault((part.prefix, self.alpha), {})
        level = Compression(part, setting_of(self._mode, self.alpha), thresholds=thresholds)
        tensors = level_tensors(level, execution, {})
        tensors = [scratch.get(name, value) for name, value in zip(execution.names, tensors, strict=True)]
        inputs = None
        if level.layer_bits is not None:
            inputs = Collecting(self._add, part.prefix, level.layer_bits)
        result = execution.run(tensors, full, args, kwargs, inputs)
        for mean, (variance, momentum) in execution.statistics.items():
            for name in (mean, variance):
                self._add(part.prefix + name, scratch[name].float() / momentum)
        self._ran = True
        return result

    def _add(self, name: str, value: Tensor) -> None:
        sums, counts = self._sums.setdefault(self.alpha, {}), self._counts.setdefault(self.alpha, {})
        sums[name] = sums[name] + value if name in sums else value
        counts[name] = counts.get(name, 0) + 1

    def averages(self) -> dict[float, dict[str, Tensor]]:
        """Level -> running means and variances, and ranges of quantized inputs, by qualified name.

        Raises:
            RuntimeError: no batch was seen.
        """
        if not self._ran:
            raise RuntimeError("no batch ran through the network: there is nothing to take batch-norm statistics from")
        return {
            alpha: {name: total / self._counts[alpha][name] for name, total in sums.items()}
            for alpha, sums in self._sums.items()
        }
