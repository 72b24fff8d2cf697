"""What is checked of a model of any family, and measured on the way."""

import dataclasses
import random
import time
import warnings
from typing import Any
from unittest import mock

import timm
import torch
import torch.utils._pytree as pytree
import torchvision
from torch import Tensor, nn

from lightning_lcs.channels.plan import PlanAtWidth
from lightning_lcs.model import SubspaceModel
from tests.equivalence.masking import MaskMismatchError, masked_forward, survivors
from tests.helpers import relative, scramble

# Alphas of the widths .25, .5, .75 and 1.
ALPHAS = (0.0, 1 / 3, 2 / 3, 1.0)
HALF = 1 / 3
HALF_WIDTH = 0.5
MISTAKES = 10  # planted in each network
NOTICED = 1e-9  # of the largest output, in float64: rounding is far below it


@dataclasses.dataclass
class Examination:
    """One model.

    Attributes:
        params: share of the parameters left at width 0.5.
        macs: share of the multiply-accumulates left.
        seconds: to trace and to analyse both forms, for training and for evaluation.
        ungraded: parameters that get a gradient in plain training and none at width .25.
        identity: relative difference of the traced graph at width 1 from the module; 0 is bitwise.
        masked: relative difference at width .5 from the full network with the removed channels absent, in float64;
            ``None`` where the oracle has no answer.
        trouble: what the oracle said then.
        mistakes: of tensors sliced wrongly on purpose, one at a time, whether the masked run tells.
        whole: dimensions kept whole, by what froze them.
    """

    params: float
    macs: float
    seconds: float
    ungraded: list[str]
    identity: float
    masked: float | None = None
    trouble: str = ""
    mistakes: list[bool] = dataclasses.field(default_factory=list)
    whole: dict[str, int] = dataclasses.field(default_factory=dict)


def build(spec: str) -> tuple[nn.Module, Tensor]:
    """A network with ten classes, and three images for it, in float64.

    Norms and weights are such that a wrong slice shows: heads, tables and gates that start at next to nothing would
    hide what comes before them.

    Args:
        spec: "timm:resnet50@224" or "torchvision:resnet18@64".
    """
    library, _, name = spec.partition(":")
    name, _, size = name.partition("@")
    torch.manual_seed(0)
    net: nn.Module
    if library == "timm":
        net = timm.create_model(name, num_classes=10)
        channels = net.pretrained_cfg["input_size"][0]
    else:
        net = torchvision.models.get_model(name, weights=None, **_options(name))
        channels = 3
    scramble(net)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim > 1 and parameter.std() < 1e-3:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
    x = torch.randn(3, channels, int(size), int(size), generator=torch.Generator().manual_seed(0))
    return net.double().eval(), x.double()


def _options(name: str) -> dict[str, Any]:
    if ("resnet50" in name and "_resnet50" in name) or "_mobilenet" in name:
        return {"weights_backbone": None, "num_classes": 10}
    return {"num_classes": 10, **({"init_weights": False} if name in ("googlenet", "inception_v3") else {})}


def examine(net: nn.Module, x: Tensor, masked: bool = True) -> Examination:
    """Trace a network, run it at four widths in both states, and compare it with itself.

    Raises:
        Exception: whatever the network raises.
    """
    started = time.monotonic()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The tensor attributes")  # of recurrent layers, from torch.export
        model = SubspaceModel(net, x[:2], subspace="point").eval()
    seconds = time.monotonic() - started
    model.warns = False
    full, half = model.efficiency(1.0), model.efficiency(HALF)
    with torch.no_grad():
        for alpha in ALPHAS:
            with model.at_alpha(alpha):
                assert all(torch.isfinite(leaf).all() for leaf in leaves(model(x)))
    result = Examination(
        params=half.params / full.params,
        macs=half.macs / full.macs,
        seconds=seconds,
        ungraded=ungraded(model, x),
        identity=identity(model, x),
        whole=_frozen(model),
    )
    if masked:
        try:
            expected = masked_run(model, x[:2])
            result.masked = masked_difference(model, x[:2], expected)
            result.mistakes = [noticed for _, noticed in planted_mistakes(model, x[:2], expected)]
        except (MaskMismatchError, NotImplementedError) as error:
            result.trouble = str(error)
    return result


def ungraded(model: SubspaceModel, x: Tensor) -> list[str]:
    """Parameters without a gradient at the narrowest width that have one in the network itself."""
    model.train()
    net = model.module
    found = []
    for narrow in (False, True):
        torch.manual_seed(0)  # of stochastic depth
        net.zero_grad(set_to_none=True)
        if narrow:
            with model.training_level(0.0):
                _loss(model(x)).backward()
        else:
            _loss(net(x)).backward()
        found.append({name for name, p in net.named_parameters() if p.grad is not None})
    net.zero_grad(set_to_none=True)
    model.eval()
    return sorted(found[0] - found[1])


def identity(model: SubspaceModel, x: Tensor) -> float:
    """How far the traced graph at full width is from the module."""
    part = model.parts[0]
    with torch.no_grad():
        program = part.network.in_mode(False)
        at = part.network.plan.selection(1.0)
        tensors = [part.network.tensor(name) for name in program.names]
        ours = program.run(tensors, [at.size(dim) for dim in program.sizes], (x,), {})
        pairs = zip(leaves(ours), leaves(model.module(x)), strict=True)
        return max(0.0 if torch.equal(a, b) else relative(a, b) for a, b in pairs)


def masked_run(model: SubspaceModel, x: Tensor) -> list[Tensor]:
    """What the full network gives with the channels absent that width .5 removes."""
    with torch.no_grad():
        return leaves(masked_forward(model.module, survivors(model, HALF), x))


def masked_difference(model: SubspaceModel, x: Tensor, expected: list[Tensor]) -> float:
    """How far width .5 is from the masked run."""
    with torch.no_grad():
        ours = leaves(model.materialize(HALF)(x))
        return max(relative(a, b) for a, b in zip(ours, expected, strict=True))


def planted_mistakes(
    model: SubspaceModel, x: Tensor, expected: list[Tensor], count: int = MISTAKES, seed: int = 0
) -> list[tuple[str, bool]]:
    """Slice one dimension of one tensor wrongly, its last entries in the place of its first, and so with others.

    Args:
        model: a point subspace.
        x: images.
        expected: of the masked run at width .5.
        count: number of dimensions, drawn at random.
        seed: of the draw.

    Returns:
        Which tensor and dimension, and whether the result differs from the masked run's.
    """
    right, tensor = PlanAtWidth.of, model.parts[0].network.tensor
    at = model.plan.selection(HALF_WIDTH)
    sliced = [
        (name, axis)
        for name in model.plan.tensors
        for axis, kept in enumerate(at.of(name))
        if isinstance(kept, int) and kept < tensor(name).shape[axis]
    ]
    found = []
    for name, axis in random.Random(seed).sample(sliced, min(count, len(sliced))):
        size = tensor(name).shape[axis]

        def wrong(self: PlanAtWidth, asked: str, name: str = name, axis: int = axis, size: int = size) -> Any:
            selection = list(right(self, asked))
            if asked == name:
                selection[axis] = list(range(size - selection[axis], size))
            return tuple(selection)

        with mock.patch.object(PlanAtWidth, "of", wrong), torch.no_grad():
            ours = leaves(model.materialize(HALF)(x))
        differences = [relative(a, b) for a, b in zip(ours, expected, strict=True)]
        found.append((f"{name}, dimension {axis}", max(differences) > NOTICED))
    return found


def _frozen(model: SubspaceModel) -> dict[str, int]:
    counts: dict[str, int] = {}
    for items in model.plan.whole().values():
        for _, why in items:
            reason = why.split(" in ")[0]
            counts[reason] = counts.get(reason, 0) + 1
    return counts


def leaves(output: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]


def _loss(output: Any) -> Tensor:
    return torch.stack([leaf.float().square().mean() for leaf in leaves(output)]).sum()
