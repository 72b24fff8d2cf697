"""The tensors with which a network runs at a level: for use, for training, for collecting statistics."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_lcs._gradients import GradientSum
from lightning_lcs.channels.network import TracedNetwork, training_flags
from lightning_lcs.channels.plan import PlanAtWidth, Selection, select
from lightning_lcs.channels.program import Program
from lightning_lcs.functional.subspace import interpolate
from lightning_lcs.modes import Mode


@dataclasses.dataclass
class Part:
    """One separately called network of a subspace model.

    Attributes:
        name: of the part; may be empty for the only one.
        prefix: what its tensor names start with; empty for the only part.
        network: the network and its traces.
        endpoints: endpoint 0 by the network's own parameter names.
        calls: how often it has run, for the check that a training step calls it.
    """

    name: str
    prefix: str
    network: TracedNetwork
    endpoints: dict[str, nn.Parameter] = dataclasses.field(default_factory=dict)
    calls: int = 0


def level_tensors(
    part: Part,
    program: Program,
    at: PlanAtWidth,
    alpha: float,
    statistics: Mapping[str, Tensor],
    complete: bool = False,
) -> list[Tensor | None]:
    """The program's parameters and buffers at a level, differentiable where gradients are recorded.

    Args:
        part: the network with its endpoints.
        program: the traced forward.
        at: the width.
        alpha: position on the line.
        statistics: running statistics of this level, which replace the cut ones.
        complete: give tensors for the statistics that the program would only update, too; else they are ``None``.
    """
    tensors: list[Tensor | None] = []
    for name in program.names:
        if name in program.batch_statistics and not complete:
            tensors.append(None)
            continue
        stored = statistics.get(name)
        current = part.network.tensor(name)
        value = _at_level(part, name, at.of(name), alpha) if stored is None else stored.to(current)
        if name in program.updated:
            value = value.detach().clone()
        tensors.append(value.contiguous())
    return tensors


def _at_level(part: Part, name: str, selection: Selection, alpha: float) -> Tensor:
    value = select(part.network.tensor(name), selection)
    if name in part.endpoints:
        value = interpolate(select(part.endpoints[name], selection), value, alpha)
    return value


class TrainingLevel:
    """One level of a training step.

    The level's tensors are leaves of their own, whose gradients go to ``gradients`` as soon as backward has computed
    them. That is cheaper than back-propagating through every slice, which would build a full-sized gradient per tensor
    and level.
    """

    def __init__(self, alpha: float, width: float, gradients: GradientSum) -> None:
        self.alpha = alpha
        self.width = width
        self._gradients = gradients
        self._leaves: dict[tuple[int, str], Tensor] = {}
        self._at: dict[int, PlanAtWidth] = {}

    def run(self, part: Part, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a part at the level; calls within one step share their leaves."""
        program = part.network.program(args, kwargs)
        at = self._at.setdefault(id(part), part.network.plan.selection(self.width))
        with torch.no_grad():
            tensors = [self._tensor(part, program, at, name) for name in program.names]
        return program.run(tensors, [at.size(dim) for dim in program.sizes], args, kwargs)

    def _tensor(self, part: Part, program: Program, at: PlanAtWidth, name: str) -> Tensor | None:
        if name in program.batch_statistics:
            return None
        key = (id(part), name)
        if key not in self._leaves:
            current, selection = part.network.tensor(name), at.of(name)
            value = _at_level(part, name, selection, self.alpha).detach()
            value = value.clone() if name in program.updated else value.contiguous()
            sources = self._sources(part, name, current)
            if sources:
                hook = _Hand(self._gradients, sources, selection)
                value.requires_grad_().register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]
            self._leaves[key] = value
        return self._leaves[key]

    def _sources(self, part: Part, name: str, current: Tensor) -> list[tuple[nn.Parameter, float]]:
        """The trainable parameters that a tensor is made of, with the share of each."""
        if not isinstance(current, nn.Parameter):
            return []
        sources = [(current, 1.0)]
        if name in part.endpoints:
            sources = [(part.endpoints[name], 1.0 - self.alpha), (current, self.alpha)]
        return [(parameter, share) for parameter, share in sources if parameter.requires_grad and share > 0.0]


class _Hand:
    """Hook of a leaf: hands its gradient on to the parameters that the leaf was cut from."""

    def __init__(self, gradients: GradientSum, sources: list[tuple[nn.Parameter, float]], selection: Selection) -> None:
        self._gradients = gradients
        self._sources = sources
        self._selection = selection

    def __call__(self, leaf: Tensor) -> None:
        gradient, leaf.grad = leaf.grad, None
        if gradient is not None:
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
    def run(self, part: Part, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a batch at the level and take its statistics."""
        program = part.network.program(args, kwargs)
        at = part.network.plan.selection(self._mode.width(self.alpha))
        scratch = {
            name: torch.zeros(at.shape(name)).to(part.network.tensor(name))
            for mean, (variance, _) in program.statistics.items()
            for name in (mean, variance)
        }
        tensors = level_tensors(part, program, at, self.alpha, {})
        tensors = [scratch.get(name, value) for name, value in zip(program.names, tensors, strict=True)]
        result = program.run(tensors, [at.size(dim) for dim in program.sizes], args, kwargs)
        sums, counts = self._sums.setdefault(self.alpha, {}), self._counts.setdefault(self.alpha, {})
        for mean, (variance, momentum) in program.statistics.items():
            for name in (mean, variance):
                key, value = part.prefix + name, scratch[name].float() / momentum
                sums[key] = sums[key] + value if key in sums else value
                counts[key] = counts.get(key, 0) + 1
        return result

    def averages(self) -> dict[float, dict[str, Tensor]]:
        """Level -> running means and variances by qualified name.

        Raises:
            RuntimeError: no batch was seen.
        """
        if not self._counts:
            raise RuntimeError("no batch ran through the network: there is nothing to take batch-norm statistics from")
        return {
            alpha: {name: total / self._counts[alpha][name] for name, total in sums.items()}
            for alpha, sums in self._sums.items()
        }
