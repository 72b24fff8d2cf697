"""What runs is as small as what is reported: multiply-accumulates counted around real forwards, and parameters."""

import copy
import itertools
from collections.abc import Callable

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lightning_lcs.graph.channels.dims import kept_channels
from lightning_lcs.model import SubspaceModel
from lightning_lcs.subspace.modes import Structured
from tests.equivalence.masking import prefix_masks
from tests.helpers import BATCH_NORM_WARNING, Chain, Joined, Mlp, at_width, relative, scramble

pytestmark = pytest.mark.filterwarnings(BATCH_NORM_WARNING)

# A narrow network of the same class runs the same kernels on equal tensors.
SAME_OPS = 1e-6

WIDTHS = (0.25, 0.4, 0.625, 1.0)


def counted(network: nn.Module, x: Tensor) -> int:
    counter = FlopCounterMode(display=False)
    # The counter does not know the CPU's own attention kernel; of the plain one it counts the two products.
    with counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        network(x)
    assert counter.get_total_flops() % 2 == 0
    return counter.get_total_flops() // 2


def bytes_of(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


class Residual(nn.Module):
    """Two residual stages with squeeze-and-excitation and a depthwise convolution; every width an argument."""

    def __init__(self, first: int = 16, second: int = 24, squeezed: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, first, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(first)
        self.depthwise = nn.Conv2d(first, first, 3, padding=1, groups=first)
        self.reduce, self.expand = nn.Linear(first, squeezed), nn.Linear(squeezed, first)
        self.down = nn.Conv2d(first, second, 3, stride=2, padding=1)
        self.mix = nn.Conv2d(second, second, 1)
        self.head = nn.Linear(second, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        gate = self.expand(self.reduce(x.mean((2, 3))).relu()).sigmoid()
        x = x + self.depthwise(x) * gate.unsqueeze(2).unsqueeze(3)
        x = self.down(x).relu()
        return self.head((x + self.mix(x)).mean((2, 3)))


class Fully(nn.Module):
    def __init__(self, first: int = 32, second: int = 20) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(48, first), nn.LayerNorm(first), nn.GELU(), nn.Linear(first, second))
        self.head = nn.Linear(second, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x.flatten(1)[:, :48]).relu())


NATIVE: list[tuple[Callable[..., nn.Module], tuple[int, ...]]] = [
    (Chain, (8, 12)),
    (Residual, (16, 24, 4)),
    (Fully, (32, 20)),
]


@pytest.mark.parametrize(("make", "sizes"), NATIVE)
@pytest.mark.parametrize("width", WIDTHS)
def test_cost_and_result_are_those_of_a_network_built_that_narrow(
    make: Callable[..., nn.Module], sizes: tuple[int, ...], width: float
) -> None:
    net, x = scramble(make(*sizes)).eval(), torch.randn(1, 3, 8, 8)
    model = at_width(net, x.repeat(2, 1, 1, 1), width)
    narrow = make(*(max(1, round(size * width)) for size in sizes)).eval()
    cost = model.efficiency(0.0)
    assert cost.width == width
    assert cost.params == sum(p.numel() for p in narrow.parameters())
    assert cost.size_bytes == sum(bytes_of(t) for n, t in narrow.state_dict().items() if "num_batches" not in n)
    assert cost.macs == counted(narrow, x)
    with model.at_alpha(0.0):
        assert cost.macs == counted(model, x) == counted(model.materialize(0.0), x)
    masks = prefix_masks(net, narrow)
    narrow.load_state_dict(
        {name: value[masks[name]].view(narrow.state_dict()[name].shape) for name, value in net.state_dict().items()}
    )
    with torch.no_grad():
        assert relative(model.materialize(0.0)(x), narrow(x)) < SAME_OPS


@pytest.mark.parametrize(
    "name", ["resnet10t", "regnety_002", "mobilenetv3_small_100", "convnext_atto", "test_vit", "test_efficientnet"]
)
def test_reported_macs_are_those_that_run(name: str) -> None:
    size = 160 if name == "test_vit" else 32
    net = timm.create_model(name, num_classes=10).eval()
    x = torch.randn(1, 3, size, size)
    model = SubspaceModel(copy.deepcopy(net), x.repeat(2, 1, 1, 1), subspace="point").eval()
    for alpha in (0.0, 0.5, 1.0):
        cost = model.efficiency(alpha)
        small = model.materialize(alpha)
        with model.at_alpha(alpha):
            assert cost.macs == counted(model, x) == counted(small, x)
            # Two samples cost twice as much: the traced batch is not counted in.
            assert counted(model, x.repeat(2, 1, 1, 1)) == 2 * cost.macs
        assert cost.params == sum(p.numel() for p in small.parameters())
        assert cost.size_bytes == sum(bytes_of(t) for t in (*small.parameters(), *small.buffers()))
    assert model.efficiency(1.0).macs == counted(net, x)
    assert model.efficiency(1.0).params == sum(p.numel() for p in net.parameters())


def test_efficiency_says_what_it_is_of() -> None:
    model = SubspaceModel(Chain(), torch.randn(2, 3, 8, 8), mode=Structured(min_width=0.2), subspace="line").eval()
    cost = model.efficiency(0.25)
    assert (cost.alpha, cost.sparsity, cost.bit_width) == (0.25, 0.0, 32)
    assert cost.width == Structured(min_width=0.2).width(0.25)


def test_macs_and_parameters_rise_with_alpha() -> None:
    model = SubspaceModel(Joined(16, 24), torch.randn(2, 3, 8, 8), subspace="line").eval()
    costs = [model.efficiency(k / 20) for k in range(21)]
    for below, above in itertools.pairwise(costs):
        assert below.macs <= above.macs
        assert below.params <= above.params
        assert below.size_bytes <= above.size_bytes
    assert costs[0].macs < costs[-1].macs / 4


def test_a_line_costs_no_more_than_a_point() -> None:
    x = torch.randn(2, 3, 8, 8)
    line = SubspaceModel(Chain(), x, subspace="line", line={"parameters": "all"})
    point = SubspaceModel(Chain(), x, subspace="point")
    assert line.efficiency(0.3) == point.efficiency(0.3)


def test_parameters_that_the_forward_does_not_use_are_in_the_full_network_alone() -> None:
    net = Mlp(16)
    net.unused = nn.Linear(7, 3)
    model = at_width(net, torch.randn(2, 6), 0.5)
    used = sum(p.numel() for p in Mlp(kept_channels(16, 0.5)).parameters())
    assert model.efficiency(0.0).params == used == sum(p.numel() for p in model.materialize(0.0).parameters())
    assert model.efficiency(1.0).params == sum(p.numel() for p in Mlp(16).parameters()) + 24


def test_cost_of_several_networks_is_their_sum() -> None:
    x = torch.randn(2, 3, 8, 8)
    both = SubspaceModel({"a": Chain(), "b": Joined()}, subspace="point")
    for part in both.parts:
        with pytest.raises(RuntimeError, match="input is not known yet"):
            both.efficiency(0.5)
        with both.at_alpha(0.5):
            both.runner.run(part, part.network.module, (x,), {})
    single = [SubspaceModel(make(), x, subspace="point").efficiency(0.5) for make in (Chain, Joined)]
    cost = both.efficiency(0.5)
    assert cost.macs == single[0].macs + single[1].macs
    assert cost.params == single[0].params + single[1].params
    assert cost.size_bytes == single[0].size_bytes + single[1].size_bytes


def test_counting_needs_no_memory_and_leaves_the_network_alone() -> None:
    model = SubspaceModel(Chain(), torch.randn(2, 3, 8, 8))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    model.efficiency(0.5)
    assert model.training
    assert all(child.training for child in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
def test_steps_of_recurrent_layers_count(kind: type[nn.Module], gates: int) -> None:
    net = kind(16, 24, batch_first=True, bidirectional=True).eval()
    model = SubspaceModel(net, torch.randn(2, 12, 16), subspace="point")
    # In every step and both directions the gates read the input and the state.
    assert model.efficiency(1.0).macs == 2 * 12 * gates * 24 * (16 + 24)
