"""What a trace keeps of a network besides its operations: each test fails without the code that keeps it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_lcs.graph.tracing.errors import TraceError
from lightning_lcs.model import SubspaceModel
from tests.equivalence.masking import Survivors, masked_forward
from tests.helpers import BATCH_NORM_WARNING, WHOLE_WARNING, Chain, Lambda, relative, scramble

pytestmark = [pytest.mark.filterwarnings(BATCH_NORM_WARNING), pytest.mark.filterwarnings(WHOLE_WARNING)]
X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
# Eight bits of mantissa, over two layers; and where only the first of two layers is computed in so few.
BFLOAT16, FIRST_IN_BFLOAT16 = 0.02, 1e-4
ALL = 1.0 - 1e-3  # a level whose width keeps every channel: the trace runs, and is the network


def net_of(forward: Callable[..., Any], **layers: nn.Module | Tensor) -> nn.Module:
    return scramble(Lambda(forward, a=nn.Conv2d(3, 8, 3), head=nn.Linear(8, 5), **layers))


def trained(net: nn.Module, x: Tensor = X) -> tuple[Tensor, dict[str, Tensor | None]]:
    net.zero_grad(set_to_none=True)
    out = net(x)
    out.square().sum().backward()
    return out.detach(), {name: p.grad for name, p in net.named_parameters()}


def trained_as_trace(net: nn.Module) -> tuple[Tensor, dict[str, Tensor | None]]:
    model = SubspaceModel(net, subspace="point")
    net.zero_grad(set_to_none=True)
    with model.runner.training_level(ALL):
        out = model(X)
        out.square().sum().backward()
    return out.detach(), {name: p.grad for name, p in net.named_parameters()}


@pytest.mark.parametrize("frozen", ["bn1", "bn2"])
def test_a_batch_norm_frozen_in_evaluation_stays_frozen(frozen: str) -> None:
    net = scramble(Chain()).train()
    whole, _ = trained(net)
    net.get_submodule(frozen).eval()
    expected, gradients = trained(net)
    assert relative(whole, expected) > 1e-2
    before = {name: value.clone() for name, value in net.named_buffers()}
    out, ours = trained_as_trace(net)
    # The same operations on the same numbers.
    assert relative(out, expected) < 1e-6
    for name, gradient in gradients.items():
        assert gradient is not None
        assert relative(ours[name], gradient) < 1e-5  # type: ignore[arg-type]
    assert all(torch.equal(value, before[name]) for name, value in net.named_buffers())


def in_full_precision(m: Any, x: Tensor) -> Tensor:
    x = m.a(x)
    with torch.autocast("cpu", enabled=False):
        return m.head(x.float().mean((2, 3)) * 1.0001)


def test_a_block_with_autocast_off_stays_in_full_precision() -> None:
    net = net_of(in_full_precision).eval()
    model = SubspaceModel(net, X, subspace="point").eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = net(X)
        assert expected.dtype == torch.float32
        for found in (model.materialize(1.0)(X), *[model(X) for _ in [model.set_alpha(ALL)]]):
            assert relative(found, expected) < FIRST_IN_BFLOAT16
        assert torch.is_autocast_enabled("cpu")


def without_gradient(m: Any, x: Tensor) -> Tensor:
    x = m.a(x)
    with torch.no_grad():
        scale = x.abs().amax((1, 2, 3), keepdim=True)
    return m.head((x / scale).mean((2, 3)))


def only_some_with_gradient(m: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        x = m.a(x)
        with torch.enable_grad():
            y = m.b(x)
    return m.head((x + y).mean((2, 3)))


@pytest.mark.parametrize("forward", [without_gradient, only_some_with_gradient])
def test_blocks_without_gradients_stay_so(forward: Callable[..., Any]) -> None:
    layers = {"b": nn.Conv2d(8, 8, 1)} if forward is only_some_with_gradient else {}
    net = net_of(forward, **layers).train()
    expected, gradients = trained(net)
    out, ours = trained_as_trace(net)
    assert relative(out, expected) < 1e-6
    assert {n for n, g in ours.items() if g is not None} == {n for n, g in gradients.items() if g is not None}
    for name, gradient in gradients.items():
        if gradient is not None:
            assert relative(ours[name], gradient) < 1e-5  # type: ignore[arg-type]


SCALES = [0.5, 2.0, -1.0, 3.0, 0.1, 1.5, -2.0, 0.7]


@pytest.mark.parametrize(
    ("forward", "cut"),
    [
        (lambda m, x: m.head(m.a(x).mean((2, 3)) * torch.tensor(SCALES, dtype=x.dtype)), False),
        (lambda m, x: m.head((m.a(x) - torch.tensor([[[[0.5]]]], dtype=x.dtype)).mean((2, 3))), True),
        (lambda m, x: m.head(m.a((x - torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1).to(x)) / 0.2).mean((2, 3))), True),
    ],
    ids=["per channel", "one number", "per colour"],
)
def test_constants_in_the_code_count_and_keep_whole_what_they_meet(forward: Callable[..., Any], cut: bool) -> None:
    net, x = net_of(forward).double().eval(), X.double()
    model = SubspaceModel(net, x, subspace="point").eval()
    with torch.no_grad():
        assert relative(model.materialize(1.0)(x), net(x)) < 1e-12
        small = model.materialize(0.0)
        assert relative(small(x), masked_forward(net, Survivors(net, x).masks(0.0), x)) < 1e-12
    assert small.state_dict()["a.weight"].shape[0] == (2 if cut else 8)
    assert ("kept whole: a.weight, dimension 0 (a constant in the code)" in model.report()) is not cut


def test_constants_live_where_the_input_lives() -> None:
    net = net_of(lambda m, x: m.head(m.a(x).mean((2, 3)) * torch.tensor(SCALES)))
    model = SubspaceModel(net, X, subspace="point").eval()
    # Counting runs on tensors without data, on a device of its own.
    assert model.efficiency(0.0).macs > 0
    program = model.parts[0].network.in_mode(False)
    state = [model.parts[0].network.tensor(name).to("meta") for name in program.names]
    sizes = [model.plan.structure.size(dim) for dim in program.sizes]
    assert program.run(state, sizes, (X.to("meta"),), {}).device.type == "meta"


def test_a_batch_norm_of_cumulative_average_trains_below_and_counts_at_one() -> None:
    net = net_of(lambda m, x: m.head(m.n(m.a(x)).mean((2, 3)).tanh()), n=nn.BatchNorm2d(8, momentum=None)).train()
    expected, gradients = trained(net)
    assert net.n.num_batches_tracked == 1
    mean = net.n.running_mean.clone()
    out, ours = trained_as_trace(net)
    assert relative(out, expected) < 1e-6
    assert relative(ours["a.weight"], gradients["a.weight"]) < 1e-4  # type: ignore[arg-type]
    assert net.n.momentum is None
    assert net.n.num_batches_tracked == 1
    assert torch.equal(net.n.running_mean, mean)


def test_nothing_is_left_of_a_trace_that_fails() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.head(m.n(m.a(x)).mean((2, 3))) if x.sum() > 0 else x

    net = net_of(forward, n=nn.BatchNorm2d(8, momentum=None)).train()
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    with pytest.raises(TraceError):
        SubspaceModel(net, X, subspace="point")
    assert torch.equal(torch.rand(4), expected)
    assert net.n.momentum is None
    assert all(child.training for child in net.modules())
    assert not nn.modules.module._global_buffer_registration_hooks


def test_a_network_traced_in_inference_mode_can_be_trained() -> None:
    net = net_of(without_gradient)
    model = SubspaceModel(net, subspace="point")
    with torch.inference_mode(), model.at_alpha(ALL):
        found = model(X)
        assert relative(found, net(X)) < 1e-6
    with model.runner.training_level(0.0):
        model(X).sum().backward()
    assert net.head.weight.grad is not None


def test_a_network_traced_under_autocast_runs_without() -> None:
    net = net_of(without_gradient).eval()
    model = SubspaceModel(net, subspace="point").eval()
    model.set_alpha(ALL)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert relative(model(X).float(), net(X).float()) < BFLOAT16
    with torch.no_grad():
        assert model(X).dtype == torch.float32
        assert relative(model(X), net(X)) < 1e-6


class Remembers(nn.Module):
    """As LeViT does: what is computed from a parameter is kept in evaluation, until the mode is set."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)
        self.bias = nn.Parameter(torch.randn(2, 1))
        self.kept: Tensor | None = None

    def train(self, mode: bool = True) -> "Remembers":
        self.kept = None
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            bias = self.bias.sum()
        else:
            self.kept = self.bias.sum() if self.kept is None else self.kept
            bias = self.kept
        return self.head((self.conv(x) + bias).relu().mean((2, 3)))


@pytest.mark.parametrize("grad", [True, False])
def test_what_a_network_remembers_of_an_earlier_call_is_no_constant(grad: bool) -> None:
    net = Remembers().eval()
    net.conv.eval()
    with torch.set_grad_enabled(grad):
        net(X)
    model = SubspaceModel(net, X, subspace="point").eval()
    with torch.no_grad(), model.at_alpha(0.0):
        before = model(X)
        net.bias.add_(1.0)
        net.eval()
        assert not torch.equal(model(X), before)
