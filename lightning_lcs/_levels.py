"""The tensors with which a network runs at a level: for use, for training, for collecting statistics."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_lcs._activations import Collecting, LayerBits, Observing
from lightning_lcs._coverage import warn_of_whole
from lightning_lcs._execution import Execution, Replaced, Traced, attention_weights, layer_weights
from lightning_lcs._gradients import GradientSum
from lightning_lcs.channels.network import TracedNetwork, training_flags
from lightning_lcs.channels.plan import Selection, select
from lightning_lcs.functional.quantization import fake_quantize, range_of
from lightning_lcs.functional.sparsity import largest_mask
from lightning_lcs.functional.subspace import interpolate
from lightning_lcs.modes import Mode, Quantized, Structured, Unstructured


@dataclasses.dataclass
class Part:
    """One separately called network of a subspace model.

    Attributes:
        name: of the part; may be empty for the only one.
        prefix: what its tensor names start with; empty for the only part.
        network: the network and its traces.
        endpoints: endpoint 0 by the network's own parameter names.
        compressed: names of the weights that lose entries or bits.
        fixed_bits: bits of those among them that have the same at every level.
        calls: how often it has run, for the check that a training step calls it.
        running: how many of these calls have not returned yet.
    """

    name: str
    prefix: str
    network: TracedNetwork
    endpoints: dict[str, nn.Parameter] = dataclasses.field(default_factory=dict)
    compressed: tuple[str, ...] = ()
    fixed_bits: dict[str, int] = dataclasses.field(default_factory=dict)
    calls: int = 0
    running: int = 0
    _replaced: Replaced | None = None

    def execution(self, mode: Mode, alpha: float, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Execution:
        """How the network runs at a level, for this call and the current training flags."""
        if isinstance(mode, Structured):
            program = self.network.program(args, kwargs)
            return Traced(program, self.network.plan.selection(mode.width(alpha)))
        self.network.remember(args, kwargs)
        return self.replaced()

    def example_execution(self, mode: Mode, alpha: float, training: bool) -> Execution:
        """The same for the call seen first, wholly in training or in evaluation.

        Raises:
            RuntimeError: in structured mode, the network was never called below alpha = 1: its input is not known.
        """
        if not isinstance(mode, Structured):
            return self.replaced()
        with training_flags(self.network.module, training):
            return self.execution(mode, alpha, *self.network.example_inputs())

    def replaced(self) -> Replaced:
        """The network's own forward, with the tensors of the line and the compressed ones as arguments."""
        if self._replaced is None:
            names = tuple(dict.fromkeys((*self.endpoints, *self.compressed)))
            layers = tuple(name.rpartition(".")[0] for name in self.compressed)
            self._replaced = Replaced(self.network, names, layers)
        return self._replaced

    def layer_bits(self, bits: int) -> LayerBits:
        """Bits of the layers at a level of so many."""
        return LayerBits(bits, {name.rpartition(".")[0]: own for name, own in self.fixed_bits.items()})


def compressed_weights(module: nn.Module, mode: Mode) -> tuple[tuple[str, ...], dict[str, int]]:
    """Names of the weights of a network that a mode compresses, and the bits of those that it pins.

    Raises:
        ValueError: the mode compresses weights, and finds none.
    """
    if isinstance(mode, Structured):
        return (), {}
    if isinstance(mode, Unstructured):
        return layer_weights(module, mode.dense) + attention_weights(module), {}
    inner = layer_weights(module, ("first", "last"))
    if mode.edge_bits == 32:
        return inner, {}
    every = layer_weights(module)
    return every, {name: mode.edge_bits for name in every if name not in inner}


def parts_of(modules: Mapping[str, nn.Module], mode: Mode) -> list[Part]:
    """The networks of a subspace model, by name, and a warning where much of one can't be compressed."""
    parts = []
    for name, module in modules.items():
        weights, fixed_bits = compressed_weights(module, mode)
        if not isinstance(mode, Structured):
            warn_of_whole(module, weights)
        prefix = f"{name}." if len(modules) > 1 else ""
        parts.append(Part(name, prefix, TracedNetwork(module), compressed=weights, fixed_bits=fixed_bits))
    return parts


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a level does to tensors.

    Attributes:
        alpha: position on the line.
        sparsity: share of zeros in compressed weights.
        bits: of compressed weights and of their layers' inputs; ``None`` to leave both.
        per_channel: quantize each output channel of a weight with its own range.
        inputs: whether inputs of layers are quantized already.
    """

    alpha: float
    sparsity: float = 0.0
    bits: int | None = None
    per_channel: bool = False
    inputs: bool = True


def setting_of(mode: Mode, alpha: float, strength: float = 1.0) -> Setting:
    """What a mode does at a level, of which a share applies while a warm-up lasts."""
    if isinstance(mode, Quantized):
        return Setting(alpha, bits=mode.bit_width(alpha), per_channel=mode.per_channel, inputs=strength >= 1.0)
    return Setting(alpha, strength * mode.sparsity(alpha))


def level_tensors(
    part: Part,
    execution: Execution,
    setting: Setting,
    statistics: Mapping[str, Tensor],
    complete: bool = False,
) -> list[Tensor | None]:
    """The parameters and buffers that a forward takes at a level, differentiable where gradients are recorded.

    Args:
        part: the network with its endpoints.
        execution: the forward.
        setting: the level.
        statistics: running statistics of this level, which replace the cut ones.
        complete: give tensors for the statistics that the forward would only update, too; else they are ``None``.
    """
    tensors: list[Tensor | None] = []
    untouched = execution.batch_statistics
    for name in execution.names:
        if name in untouched and not complete:
            tensors.append(None)
            continue
        stored = statistics.get(name)
        current = part.network.tensor(name)
        if stored is None:
            value, _ = _at_level(part, name, execution.cut(name), setting)
        else:
            value = stored.to(current)
        if name in execution.updated:
            value = value.detach().clone()
        tensors.append(value.contiguous())
    return tensors


def _at_level(part: Part, name: str, selection: Selection, setting: Setting) -> tuple[Tensor, Tensor | None]:
    """A tensor at a level, and the mask of its kept entries where it has one."""
    value = select(part.network.tensor(name), selection)
    if name in part.endpoints:
        value = interpolate(select(part.endpoints[name], selection), value, setting.alpha)
    if name not in part.compressed:
        return value, None
    if setting.bits is not None:
        low, high = range_of(value, setting.per_channel)
        return fake_quantize(value, low, high, part.fixed_bits.get(name, setting.bits)), None
    if setting.sparsity == 0.0:
        return value, None
    mask = largest_mask(value, setting.sparsity)
    return value * mask, mask


class TrainingLevel:
    """One level of a training step.

    The level's tensors are leaves of their own, whose gradients go to ``gradients`` as soon as backward has computed
    them. That is cheaper than back-propagating through every slice, which would build a full-sized gradient per tensor
    and level.

    Args:
        mode: of compression.
        setting: what the level does.
        gradients: takes the gradients; ``None`` to back-propagate into the parameters themselves.
        ranges: moving ranges of the level's quantized inputs.
    """

    def __init__(self, mode: Mode, setting: Setting, gradients: GradientSum | None, ranges: dict[str, Tensor]) -> None:
        self.setting = setting
        self._ranges = ranges
        self._mode = mode
        self._gradients = gradients
        self._tensors: dict[tuple[int, str], Tensor] = {}

    @property
    def is_full(self) -> bool:
        """Whether the network runs as it is."""
        return self.setting == Setting(1.0)

    def run(self, part: Part, full: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a part at the level; calls within one step share their tensors."""
        execution = part.execution(self._mode, self.setting.alpha, args, kwargs)
        untouched = execution.batch_statistics
        tensors = [None if name in untouched else self._tensor(part, execution, name) for name in execution.names]
        inputs = None
        if self.setting.bits is not None:
            inputs = Observing(self._ranges, part.prefix, part.layer_bits(self.setting.bits), self.setting.inputs)
        return execution.run(tensors, full, args, kwargs, inputs)

    def _tensor(self, part: Part, execution: Execution, name: str) -> Tensor:
        key = (id(part), name)
        if key not in self._tensors:
            selection = execution.cut(name)
            if self._gradients is None:
                value, _ = _at_level(part, name, selection, self.setting)
                self._tensors[key] = value.detach().clone() if name in execution.updated else value
            else:
                self._tensors[key] = self._leaf(part, name, selection, name in execution.updated, self._gradients)
        return self._tensors[key]

    @torch.no_grad()
    def _leaf(self, part: Part, name: str, selection: Selection, copied: bool, gradients: GradientSum) -> Tensor:
        value, mask = _at_level(part, name, selection, self.setting)
        value = value.detach()
        value = value.clone() if copied else value.contiguous()
        sources = self._sources(part, name)
        if sources:
            hook = _Hand(gradients, sources, selection, mask)
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
        mask: Tensor | None,
    ) -> None:
        self._gradients = gradients
        self._sources = sources
        self._selection = selection
        self._mask = mask

    def __call__(self, leaf: Tensor) -> None:
        gradient, leaf.grad = leaf.grad, None
        if gradient is not None:
            gradient = gradient if self._mask is None else gradient * self._mask
            for parameter, share in self._sources:
                self._gradients.add(parameter, self._selection, gradient, share)


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
        self._ran = False

    @contextlib.contextmanager
    def flags(self) -> Iterator[None]:
        """Evaluation, with the batch norms in training."""
        with contextlib.ExitStack() as stack:
            for part in self._parts:
                stack.enter_context(training_flags(part.network.module, False))
                for child in part.network.module.modules():
                    if isinstance(child, nn.modules.batchnorm._BatchNorm):
                        child.training = True
            yield

    @torch.no_grad()
    def run(self, part: Part, full: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a batch at the level and take its statistics."""
        execution = part.execution(self._mode, self.alpha, args, kwargs)
        variances = (variance for variance, _ in execution.statistics.values())
        scratch = {
            name: torch.zeros(tuple(execution.shape(name))).to(part.network.tensor(name))
            for name in {*execution.statistics, *variances, *execution.batch_statistics}
        }
        setting = setting_of(self._mode, self.alpha)
        tensors = level_tensors(part, execution, setting, {})
        tensors = [scratch.get(name, value) for name, value in zip(execution.names, tensors, strict=True)]
        inputs = None
        if setting.bits is not None:
            inputs = Collecting(self._add, part.prefix, part.layer_bits(setting.bits))
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
