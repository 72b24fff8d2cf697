"""Options of the structured mode: rounding, least channels, modules kept whole, the order of channels."""

import copy

import pytest
import timm
import torch
from torch import nn

from lightning_lcs.graph.channels.dims import kept_channels
from lightning_lcs.model import SubspaceModel
from lightning_lcs.subspace.modes import Structured
from lightning_lcs.subspace.modes.registry import mode_to_dict, parse_mode
from tests.equivalence.masking import masked_forward, survivors
from tests.helpers import BATCH_NORM_WARNING, Chain, relative, scramble

pytestmark = pytest.mark.filterwarnings(BATCH_NORM_WARNING)
X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def subspace(net: nn.Module, x: torch.Tensor = X, **options: object) -> SubspaceModel:
    return SubspaceModel(net, x, mode=Structured(**options), subspace="point").eval()  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["test_byobnet", "densenet121"])
def test_all_sizes_that_shrink_are_multiples(name: str) -> None:
    """Of eight, also where channels keep a prefix in each group, or join."""
    options = {"block_config": (2, 2, 2, 2)} if "densenet" in name else {}
    net = timm.create_model(name, num_classes=10, **options).eval()
    model, loose = subspace(net, round_to=8), subspace(net)
    seen = 0
    for alpha in (0.0, 0.3, 0.7):
        at, exact = (m.plan.selection(m.mode.width(alpha)) for m in (model, loose))
        for tensor, dims in model.plan.tensors.items():
            for dim, ours, theirs in zip(dims, at.shape(tensor), exact.shape(tensor), strict=True):
                if model.plan.structure.free(dim):
                    full = model.plan.structure.size(dim)
                    # Sizes that are no multiple themselves are kept in multiples, or whole.
                    assert ours % 8 == 0 or ours == full or full % 8
                    seen += ours != theirs
        with model.at_alpha(alpha), torch.no_grad():
            model(X)
    assert seen > 0


def test_channels_per_head_count_with_the_heads() -> None:
    net = timm.create_model("test_vit", num_classes=5).eval()
    model = subspace(net, torch.randn(2, 3, 160, 160), round_to=8, min_width=0.3)
    at = model.plan.selection(0.3)
    heads = net.blocks[0].attn.num_heads
    joined = at.shape("blocks.0.attn.proj.weight")[1]
    assert joined % 8 == 0
    assert joined // heads % (8 // torch.gcd(torch.tensor(8), torch.tensor(heads)).item()) == 0


@pytest.mark.parametrize(
    ("size", "width", "step", "least", "kept"),
    [
        (64, 0.5, 8, 1, 32),
        (64, 0.3, 8, 1, 16),
        (64, 0.05, 8, 1, 8),
        (64, 1.0, 8, 1, 64),
        (20, 1.0, 8, 1, 20),
        (20, 0.9, 8, 1, 16),
        (6, 0.5, 8, 1, 6),
        (64, 0.1, 1, 16, 16),
        (64, 0.1, 8, 20, 24),
        (10, 0.1, 1, 16, 10),
    ],
)
def test_kept_channels(size: int, width: float, step: int, least: int, kept: int) -> None:
    assert kept_channels(size, width, step, least) == kept


def test_least_channels() -> None:
    model = subspace(Chain(first=8, second=32), min_channels=6)
    at = model.plan.selection(0.25)
    assert at.shape("conv2.weight") == [8, 6, 3, 3]


def test_modules_kept_whole() -> None:
    net = timm.create_model("resnet10t", num_classes=10).eval()
    model = subspace(net, keep=("layer4*",))
    at = model.plan.selection(0.25)
    for name, parameter in net.named_parameters():
        if name.startswith("layer4"):
            assert at.shape(name) == list(parameter.shape)
    assert at.shape("layer2.0.conv1.weight")[0] == 32
    assert "keep='layer4*'" in model.report()
    with model.at_alpha(0.0), torch.no_grad():
        model(X)
    with pytest.raises(ValueError, match="keep='layer9' fits the path of no module of ResNet"):
        subspace(net, keep=("layer9",))


@pytest.mark.parametrize("name", ["resnet10t", "test_efficientnet", "convnext_atto", "regnety_002"])
def test_sorted_channels_compute_the_same(name: str) -> None:
    net = scramble(timm.create_model(name, num_classes=10)).eval()
    twin = copy.deepcopy(net)
    model = SubspaceModel(
        net, X, mode=Structured(order="importance"), subspace="line", line={"parameters": "all"}
    ).eval()
    model.sort_channels()
    changed = [n for n, p in twin.named_parameters() if not torch.equal(p, net.get_parameter(n))]
    assert len(changed) > 10
    with torch.no_grad():
        # float32, sums in another order.
        assert relative(model(X), twin(X)) < 1e-5
        endpoints = [(w0, w1) for w0, w1 in model.endpoint_pairs()]
        assert all(torch.equal(w0, w1) for w0, w1 in endpoints)


def test_the_strongest_channels_come_first() -> None:
    net = Chain(first=4, second=6)
    with torch.no_grad():
        for channel, scale in enumerate((0.1, 3.0, 1.0, 2.0)):
            net.conv1.weight[channel] = scale * torch.sign(net.conv1.weight[channel])
        net.conv2.weight.fill_(1.0)
    before = net.conv1.weight.detach().clone()
    subspace(net, order="importance").sort_channels()
    assert torch.equal(net.conv1.weight, before[[1, 3, 2, 0]])


def test_sorting_needs_structured_mode() -> None:
    model = SubspaceModel(Chain(), X, mode="quantized", subspace="point")
    with pytest.raises(RuntimeError, match="structured mode"):
        model.sort_channels()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"round_to": 0}, "round_to=0"),
        ({"min_channels": -1}, "min_channels=-1"),
        ({"order": "random"}, "order='random'"),
        ({"select": "last"}, "select='last'"),
    ],
)
def test_options_out_of_range(options: dict[str, object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Structured(**options)  # type: ignore[arg-type]


def test_options_survive_as_plain_data() -> None:
    mode = Structured(round_to=8, keep=("a.*",), order="importance")
    assert parse_mode(mode_to_dict(mode)) == mode


@pytest.mark.parametrize("name", ["resnet10t", "mobilenetv2_050", "convnext_atto"])
def test_the_channels_of_largest_scale_equal_the_masked_network(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net = scramble(timm.create_model(name, num_classes=10)).double().eval()
    x = X.double()
    model = subspace(net, x, select="scale", min_width=0.3)
    part = model.parts[0]
    at = {alpha: model.mode.selection(part, alpha) for alpha in (0.0, 1.0)}
    # The scales themselves are numbered to find out what stays.
    monkeypatch.setattr(Structured, "selection", lambda mode, part, alpha: at[alpha])
    with torch.no_grad():
        small = model.materialize(0.0)
        assert relative(small(x), masked_forward(net, survivors(model, 0.0), x)) < 1e-9
        with model.at_alpha(0.0):
            assert relative(model(x), small(x)) < 1e-9
        assert torch.equal(model(x), net(x))
    assert model.efficiency(0.0).params == sum(p.numel() for p in small.parameters())


def test_one_threshold_for_all_scales_and_one_channel_in_any_case() -> None:
    net = Chain(first=4, second=6)
    with torch.no_grad():
        net.bn1.weight.copy_(torch.tensor([0.01, -0.03, 0.02, 0.0]))
        net.bn2.weight.copy_(torch.tensor([1.0, -5.0, 2.0, 0.5, -4.0, 3.0]))
    small = subspace(net, select="scale", min_width=0.5).materialize(0.0)
    # Half of ten channels: the largest of the first norm, and the four largest of the second.
    assert small.get_parameter("bn1.weight").tolist() == pytest.approx([-0.03])
    assert small.get_parameter("bn2.weight").tolist() == [-5.0, 2.0, -4.0, 3.0]
    assert torch.equal(small.get_parameter("conv2.weight"), net.conv2.weight[[1, 2, 4, 5]][:, [1]])
