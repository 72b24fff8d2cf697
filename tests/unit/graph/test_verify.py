"""What tracing loses is an error before the first step, and what it keeps is none."""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_lcs.graph.tracing.errors import TraceError
from lightning_lcs.model import SubspaceModel
from tests.helpers import BATCH_NORM_WARNING, Chain, Lambda, relative

pytestmark = pytest.mark.filterwarnings(BATCH_NORM_WARNING)
X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
# The traced graph against the network's own code.
SAME_OPS = 1e-5


def subspace(net: nn.Module) -> SubspaceModel:
    return SubspaceModel(net.train(), X, subspace="point")


class Reversal(torch.autograd.Function):
    """The identity, with the gradient's sign turned: of domain-adversarial training."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return -gradients[0]


class StraightThrough(torch.autograd.Function):
    """Rounding, through which gradients pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


def between(function: Callable[[Tensor], Tensor]) -> nn.Module:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        return m.head(function(m.a(x).relu()).mean((2, 3)))  # type: ignore[operator,return-value]

    return Lambda(forward, a=nn.Conv2d(3, 8, 3), head=nn.Linear(8, 5))


@pytest.mark.parametrize("function", [Reversal.apply, StraightThrough.apply])
def test_a_custom_backward_is_an_error_that_names_the_layer_before_it(function: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(TraceError, match=r"2 of its 4 parameters, the last of which is a\.bias.*unstructured"):
        subspace(between(function))


class Hidden(torch.autograd.Function):
    """Rounding out of reach of autograd, through which gradients pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            return x.round()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


def test_a_trace_in_which_nothing_is_trained_is_an_error() -> None:
    net = Lambda(lambda m, x: Hidden.apply(m.head(m.a(x).mean((2, 3)))), a=nn.Conv2d(3, 8, 3), head=nn.Linear(8, 5))
    with pytest.raises(TraceError, match=r"4 of its 4 parameters, the last of which is head\.bias"):
        subspace(net)


def test_a_hook_on_gradients_is_an_error() -> None:
    net = Chain()
    net.conv2.register_full_backward_hook(lambda module, into, out: (2 * into[0],))
    with pytest.raises(TraceError, match=r"the last of which is bn1\.bias"):
        subspace(net)


def test_a_hook_that_changes_values_is_traced_with_its_values() -> None:
    net = Chain().train()
    net.conv2.register_forward_hook(lambda module, args, result: 3 * result)
    model = subspace(net).eval()
    small = model.materialize(1.0)
    with torch.no_grad():
        assert relative(small(X), net(X)) < SAME_OPS
    plain = Chain().eval()
    plain.load_state_dict(net.state_dict())
    with torch.no_grad():
        assert relative(small(X), plain(X)) > 100 * SAME_OPS


def test_numbers_drawn_outside_of_torch_are_an_error() -> None:
    random.seed(0)
    with pytest.raises(TraceError, match="another result than the network itself"):
        subspace(between(lambda x: x * random.random()))


def test_training_flags_of_single_modules_are_kept() -> None:
    net = Chain()
    model = subspace(net)
    net.bn1.eval()
    flags = [child.training for child in model.module.modules()]
    with model.runner.training_level(0.0), torch.no_grad():
        first = model(X)
        assert torch.equal(first, model(X))
        net.bn1.train()
        assert not torch.equal(first, model(X))
    net.bn1.eval()
    assert flags == [child.training for child in model.module.modules()]


def test_nothing_is_left_of_the_comparison() -> None:
    net = Chain().train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    subspace(net)
    assert torch.equal(torch.rand(4), expected)
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(parameter.grad is None for parameter in net.parameters())


@pytest.mark.parametrize("dropout", [nn.Dropout(0.5), nn.Dropout2d(0.5), nn.AlphaDropout(0.5)])
def test_random_layers_draw_the_same_numbers(dropout: nn.Module) -> None:
    net = Lambda(
        lambda m, x: m.head(m.drop(m.a(x)).mean((2, 3))), a=nn.Conv2d(3, 8, 3), drop=dropout, head=nn.Linear(8, 5)
    )
    subspace(net)


def test_a_single_image_serves_a_batch_norm_on_one_place() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 8), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 5))
    model = SubspaceModel(net.train(), X[:1], subspace="point").eval()
    assert model.efficiency(0.0).params < model.efficiency(1.0).params
    assert model.materialize(0.0)(X[:1]).shape == (1, 5)
