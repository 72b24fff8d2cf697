"""What is checked of a model of any family, and measured on the way."""

import contextlib
import ctypes
import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from lightning_lcs.cli.coverage import Coverage, measured, prepared
from lightning_lcs.cli.coverage import build as build_network
from lightning_lcs.graph import traced_network
from lightning_lcs.model import SubspaceModel
from tests.equivalence.masking import MaskMismatchError, masked_forward, survivors
from tests.helpers import relative, scramble
from tests.models.mistakes import HALF, broken_rules, leaves, wrong_slices

# Alphas of the widths .25, .5, .75 and 1.
ALPHAS = (0.0, 1 / 3, 2 / 3, 1.0)


@dataclasses.dataclass
class Examination(Coverage):
    """One model, at width .5; on top of what ``lightning-lcs coverage`` finds:

    Attributes:
        tracing: processor seconds of ``torch.export`` for the slower of both forms.
        planning: the same of following channels through the graph.
        memory: most bytes taken until both forms are planned and checked, less those of a plain forward of the images
            that they are checked with, per byte of the parameters.
        ungraded: parameters that get a gradient in plain training and none at width .25.
        masked: relative difference at width .5 from the full network with the removed channels absent, in float64;
            ``None`` where the oracle has no answer.
        trouble: what the oracle said then.
        slices: of tensors sliced wrongly on purpose, one at a time, whether the masked run tells.
        rules: of rules broken on purpose, one at a time, whether anything tells.
    """

    tracing: float = 0.0
    planning: float = 0.0
    memory: float = 0.0
    ungraded: list[str] = dataclasses.field(default_factory=list)
    masked: float | None = None
    trouble: str = ""
    slices: list[bool] = dataclasses.field(default_factory=list)
    rules: list[bool] = dataclasses.field(default_factory=list)


def build(spec: str, **options: Any) -> tuple[nn.Module, Tensor]:
    """A network with ten classes, and three images for it, in float64.

    Norms and weights are such that a wrong slice shows: heads, tables and gates that start at next to nothing would
    hide what comes before them.

    Args:
        spec: "timm:resnet50@224" or "torchvision:resnet18@64".
        options: of its constructor.
    """
    name, _, size = spec.removeprefix("timm:").partition("@")
    net, x = build_network(name, int(size), num_classes=10, **options)
    scramble(net)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim > 1 and parameter.std() < 1e-3:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
    return net.double(), x.double()


def examine(net: nn.Module, x: Tensor, masked: bool = True, mistakes: int = 0) -> Examination:
    """Trace a network, run it at four widths in both states, and compare it with itself.

    Args:
        net: the network.
        x: three samples or more.
        masked: compare it with the masked run, too.
        mistakes: how many of each kind to plant, for the masked run to tell.

    Raises:
        Exception: whatever the network raises.
    """
    with _taken() as forward:
        output = net(x[:2])  # as many are traced and checked with
        del output
    with _timed("trace") as tracing, _timed("propagate") as planning, _taken() as taken:
        model, seconds = prepared(net, x)
    with torch.no_grad():
        for alpha in ALPHAS:
            with model.at_alpha(alpha):
                assert all(torch.isfinite(leaf).all() for leaf in leaves(model(x)))
    result = Examination(
        **vars(measured(model, x, HALF, seconds)),
        tracing=max(tracing),
        planning=max(planning),
        memory=(taken[0] - forward[0]) / sum(parameter.nbytes for parameter in net.parameters()),
        ungraded=ungraded(model, x),
    )
    if masked:
        try:
            expected = masked_run(model, x[:2])
            result.masked = masked_difference(model, x[:2], expected)
            result.slices = [noticed for _, noticed in wrong_slices(model, x[:2], expected, mistakes)]
            result.rules = [noticed for _, noticed in broken_rules(model, x[:2], mistakes)]
        except (MaskMismatchError, NotImplementedError) as error:
            result.trouble = str(error)
    return result


@contextlib.contextmanager
def _timed(name: str) -> Iterator[list[float]]:
    """Processor seconds of each call of a function while traces are made."""
    function, seconds = getattr(traced_network, name), []

    def timed(*args: Any) -> Any:
        started = time.process_time()
        try:
            return function(*args)
        finally:
            seconds.append(time.process_time() - started)

    with mock.patch.object(traced_network, name, timed):
        yield seconds


@contextlib.contextmanager
def _taken() -> Iterator[list[int]]:
    """The most bytes of memory that the block has beyond those at its start; 0 where Linux does not tell."""
    most: list[int] = []
    status = Path("/proc/self/status")
    if not status.exists():
        yield most
        most.append(0)
        return
    # What was freed and is kept at hand would hide what the block takes.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _kilobytes(status, "VmRSS")
    yield most
    most.append(1024 * (_kilobytes(status, "VmHWM") - before))


def _kilobytes(status: Path, entry: str) -> int:
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(entry))


def ungraded(model: SubspaceModel, x: Tensor) -> list[str]:
    """Parameters without a gradient at the narrowest width that have one in the network itself."""
    model.train()
    net = model.module
    found = []
    for narrow in (False, True):
        torch.manual_seed(0)  # of stochastic depth
        net.zero_grad(set_to_none=True)
        if narrow:
            with model.runner.training_level(0.0):
                _loss(model(x)).backward()
        else:
            _loss(net(x)).backward()
        found.append({name for name, p in net.named_parameters() if p.grad is not None})
    net.zero_grad(set_to_none=True)
    model.eval()
    return sorted(found[0] - found[1])


def masked_run(model: SubspaceModel, x: Tensor) -> list[Tensor]:
    """What the full network gives with the channels absent that width .5 removes."""
    with torch.no_grad():
        return leaves(masked_forward(model.module, survivors(model, HALF), x))


def masked_difference(model: SubspaceModel, x: Tensor, expected: list[Tensor]) -> float:
    """How far width .5 is from the masked run."""
    with torch.no_grad():
        ours = leaves(model.materialize(HALF)(x))
        return max(relative(a, b) for a, b in zip(ours, expected, strict=True))


def _loss(output: Any) -> Tensor:
    return torch.stack([leaf.float().square().mean() for leaf in leaves(output)]).sum()
