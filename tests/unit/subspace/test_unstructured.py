"""Unstructured subspaces: the network's own forward with sparse weights."""

import copy

import pytest
import timm
import torch
from torch import nn

from lightning_lcs import SubspaceModel, Unstructured
from lightning_lcs.functional.sparsity import LAYER_SPARSITIES, zero_count
from lightning_lcs.subspace.modes import unstructured as unstructured_mode
from tests.helpers import first_of_two_levels, relative
from tests.integration.support import Net, group_norm

# The same operations on equal tensors, aligned otherwise in memory, by another path through the code.
SAME_OPS = 1e-5
SPARSE = ("conv1.weight", "conv2.weight", "head.weight")


def all_sparse(layer_density="uniform", **options) -> Unstructured:
    return Unstructured(dense=(), layer_density=layer_density, **options)


def line(net: nn.Module, mode: Unstructured, **options) -> SubspaceModel:
    model = SubspaceModel(net, mode=mode, subspace="line", line={"parameters": "all"}, **options)
    model.runner.evaluation.warns = False  # of batch-norm statistics, which are those of alpha = 1 here
    with torch.no_grad():
        for w0, _ in model.endpoint_pairs():
            w0.add_(torch.randn(w0.shape, generator=torch.Generator().manual_seed(1)))
    return model


def by_hand(model: SubspaceModel, net: nn.Module, alpha: float, sparse=SPARSE) -> nn.Module:
    """A copy of the network whose weights are interpolated, sorted and cut, one by one."""
    twin = Net()
    twin.load_state_dict(net.state_dict())
    endpoints = model.parts[0].endpoints
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            if name in endpoints:
                parameter.copy_((1 - alpha) * endpoints[name] + alpha * parameter)
            if name in sparse:
                flat = parameter.view(-1)
                order = flat.abs().argsort()
                flat[order[: zero_count(flat.numel(), model.mode.sparsity(alpha))]] = 0.0
    return twin


@pytest.fixture
def images():
    return torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.75, 1.0])
def test_a_level_is_the_network_with_its_smallest_weights_removed(images, alpha):
    net = Net().eval()
    model = line(net, all_sparse()).eval()
    model.set_alpha(alpha)
    with torch.no_grad():
        # Interpolation rounds differently here.
        torch.testing.assert_close(model(images), by_hand(model, net, alpha).eval()(images), rtol=1e-5, atol=1e-5)
        assert relative(model.materialize(alpha)(images), model(images)) < SAME_OPS


def test_alpha_one_is_the_users_network(images):
    net = Net().eval()
    model = line(net, all_sparse()).eval()
    assert torch.equal(model(images), net(images))
    # Not so in a range that ends before the full network.
    sparse = SubspaceModel(Net(), mode=all_sparse(max_sparsity=0.9, min_sparsity=0.5), subspace="point").eval()
    sparse.runner.evaluation.warns = False
    assert not torch.equal(sparse(images), sparse.module(images))


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("strength", [1.0, 0.4, 0.0])
def test_gradients_reach_kept_entries_of_both_endpoints_only(images, direct, strength):
    alpha, net = 0.3, Net().train()
    model = line(net, all_sparse()).train()
    statistics = copy.deepcopy(list(net.buffers()))
    sparsity = strength * model.mode.sparsity(alpha)
    with model.runner.training_level(alpha, strength=strength, direct=direct):
        loss = model(images).square().sum()
        if not direct:
            loss.backward()
    if direct:
        loss.backward()
    found = {name: (model.parts[0].endpoints[name].grad, parameter.grad) for name, parameter in _own(net)}
    model.zero_grad()
    # The same through autograd, written out.
    leaves, tensors = {}, {}
    for name, parameter in _own(net):
        w0 = model.parts[0].endpoints[name].detach().clone().requires_grad_()
        w1 = parameter.detach().clone().requires_grad_()
        leaves[name], weight = (w0, w1), (1 - alpha) * w0 + alpha * w1
        if name in SPARSE:
            keep = torch.ones(weight.numel())
            keep[weight.detach().abs().flatten().argsort()[: zero_count(weight.numel(), sparsity)]] = 0.0
            weight = weight * keep.view_as(weight)
        tensors[name] = weight
    tensors |= {name: buffer.clone() for name, buffer in net.named_buffers()}
    torch.func.functional_call(net, tensors, images).square().sum().backward()
    for name, (w0, w1) in leaves.items():
        # One pass each, in float32, over sums of 384 products.
        torch.testing.assert_close(found[name][0], w0.grad, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found[name][1], w1.grad, rtol=1e-5, atol=1e-5)
    for buffer, before in zip(net.buffers(), statistics, strict=True):
        assert torch.equal(buffer, before)


def _own(net):
    return [(name, p) for name, p in net.named_parameters() if "lcs_endpoint_0" not in name]


def test_which_layers_stay_dense():
    depthwise = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 1), nn.Linear(8, 4))

    def sparse(*dense):
        return SubspaceModel(depthwise, mode=Unstructured(dense=dense), subspace="point").parts[0].compressed

    assert sparse() == ("0.weight", "1.weight", "2.weight", "3.weight")
    assert sparse("first") == ("1.weight", "2.weight", "3.weight")
    assert sparse("last", "depthwise") == ("0.weight", "2.weight")
    with pytest.raises(ValueError, match=r"besides those that dense=\('last',\) keeps"):
        SubspaceModel(nn.Sequential(nn.Linear(2, 2)), mode=Unstructured(dense=("last",)), subspace="point")
    with pytest.raises(ValueError, match="no layer that Unstructured compresses"):
        SubspaceModel(nn.Sequential(nn.BatchNorm2d(2)), mode=all_sparse(), subspace="point")


def test_what_a_level_costs(images):
    model = SubspaceModel(Net(), images, mode=all_sparse(max_sparsity=0.5), subspace="point")
    half, full = model.efficiency(0.0), model.efficiency(1.0)
    weights = {name: p.numel() for name, p in model.module.named_parameters()}
    removed = sum(zero_count(weights[name], 0.5) for name in SPARSE)
    assert (half.sparsity, half.width, full.sparsity) == (0.5, 1.0, 0.0)
    assert full.params == sum(weights.values())
    assert half.params == full.params - removed
    # Every weight of these three layers has an even number of entries: half of the multiplications.
    assert half.macs * 2 == full.macs == 8 * 64 * 9 + 8 * 8 * 16 * 9 + 8 * 10
    assert half.size_bytes == full.size_bytes - 4 * removed + sum(weights[name] // 8 for name in SPARSE)


def test_a_forward_that_cannot_be_traced():
    class Branching(Net):
        def forward(self, x):
            return super().forward(x if x.sum() > 0 else -x)

    model = SubspaceModel(Branching(), mode="unstructured", subspace="point").eval()
    model.runner.evaluation.warns = False
    with model.at_alpha(0.0), torch.no_grad():
        assert model(-torch.ones(2, 1, 8, 8)).shape == (2, 10)
    assert model.efficiency(0.0).params < model.efficiency(1.0).params


@pytest.mark.parametrize("density", ["uniform", "erk"])
@pytest.mark.parametrize("name", ["mobilenetv2_050", "regnetx_002", "vit_tiny_patch16_224"])
def test_timm_models(name, density):
    size = 224 if "vit" in name else 32
    net = timm.create_model(name, num_classes=5).eval()
    x = torch.randn(2, 3, size, size)
    model = SubspaceModel(
        net, x, mode=Unstructured(max_sparsity=0.9, layer_density=density), subspace="line", line={"parameters": "norm"}
    ).eval()
    model.runner.evaluation.warns = False
    with torch.no_grad():
        model.set_alpha(0.0)
        sparse = model(x)
        small = model.materialize(0.0)
        assert relative(small(x), sparse) < SAME_OPS
        model.set_alpha(1.0)
        assert torch.equal(model(x), net(x))
    weights = {name: small.get_parameter(name) for name in model.parts[0].compressed}
    shares = LAYER_SPARSITIES[density]({name: tuple(weight.shape) for name, weight in weights.items()}, 0.9)
    zeros = {name: int((weight == 0).sum()) for name, weight in weights.items()}
    assert zeros == {name: zero_count(weight.numel(), shares[name]) for name, weight in weights.items()}
    # Less than one entry of each weight is lost to rounding.
    count = sum(weight.numel() for weight in weights.values())
    assert 0.9 * count - len(weights) < sum(zeros.values()) <= 0.9 * count


def test_what_belongs_to_structured_mode_is_refused(images):
    model = SubspaceModel(Net(), images, mode="unstructured", subspace="point")
    with pytest.raises(RuntimeError, match="needs structured mode"):
        _ = model.plan


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"max_sparsity": 1.0}, "max_sparsity=1.0"),
        ({"max_sparsity": -0.1}, "max_sparsity=-0.1"),
        ({"max_sparsity": 0.5, "min_sparsity": 0.6}, "min_sparsity=0.6"),
        ({"dense": ("stem",)}, "dense="),
        ({"scope": "channel"}, "scope='channel'"),
        ({"layer_density": "ERK"}, "layer_density='ERK' is not known; choose one of 'uniform', 'erk'"),
        ({"scope": "block"}, "max_sparsity=0.975.*use max_sparsity=0.5 for the 2:4"),
    ],
)
def test_options_out_of_range(options, match):
    with pytest.raises(ValueError, match=match):
        Unstructured(**options)


def test_attention_is_counted():
    net = timm.create_model("test_vit", num_classes=5).eval()
    x = torch.randn(2, 3, 160, 160)
    sparse = SubspaceModel(net, x, mode="unstructured", subspace="point").efficiency(1.0).macs
    assert sparse == SubspaceModel(net, x, subspace="point").efficiency(1.0).macs


@pytest.mark.parametrize("alpha", [0.0, 0.4])
def test_with_one_threshold_for_all_layers_each_keeps_a_share_of_its_own(images, alpha):
    net = Net().eval()
    with torch.no_grad():
        net.conv2.weight.mul_(10.0)
    model = line(net, all_sparse(max_sparsity=0.9, scope="global")).eval()
    small = model.materialize(alpha)
    kept = {name: small.get_parameter(name).ne(0) for name in SPARSE}
    magnitudes = {}
    for name in SPARSE:
        w0, w1 = model.parts[0].endpoints[name], net.get_parameter(name)
        magnitudes[name] = ((1 - alpha) * w0 + alpha * w1).detach().abs()
    total = sum(mask.numel() for mask in kept.values())
    assert total - sum(int(mask.sum()) for mask in kept.values()) == zero_count(total, model.mode.sparsity(alpha))
    # Of all but the largest entry of each weight, which is kept in any case.
    others = torch.cat([m[kept[n] & (m < m.max())] for n, m in magnitudes.items()])
    assert others.min() > torch.cat([m[~kept[n]] for n, m in magnitudes.items()]).max()
    assert kept["conv2.weight"].float().mean() > kept["conv1.weight"].float().mean()
    model.set_alpha(alpha)
    with torch.no_grad():
        assert relative(model(images), small(images)) < SAME_OPS
    cost = model.efficiency(alpha)
    whole = sum(p.numel() for name, p in net.named_parameters() if "lcs_endpoint_0" not in name)
    assert cost.params == whole - zero_count(total, model.mode.sparsity(alpha))
    shares = {name: float(mask.float().mean()) for name, mask in kept.items()}
    products = {"conv1.weight": 8 * 64 * 9, "conv2.weight": 8 * 8 * 16 * 9, "head.weight": 80}
    assert cost.macs == pytest.approx(sum(shares[name] * products[name] for name in SPARSE), abs=1)


def test_the_pattern_of_accelerators():
    net = timm.create_model("resnet10t", num_classes=10).eval()
    mode = Unstructured(scope="block", max_sparsity=0.5)
    model = SubspaceModel(net, torch.randn(2, 3, 32, 32), mode=mode, subspace="point").eval()
    model.runner.evaluation.warns = False
    assert [mode.sparsity(alpha) for alpha in (0.0, 0.2, 0.25, 0.7, 0.75, 1.0)] == [0.5, 0.5, 0.25, 0.25, 0.0, 0.0]
    assert [model.nearest_level(alpha) for alpha in (0.2, 0.3, 0.8)] == [0.0, 0.5, 1.0]
    small = model.materialize(0.0)
    for name in model.parts[0].compressed:
        blocks = small.get_parameter(name).detach().movedim(1, -1).unflatten(-1, (-1, 4))
        assert (blocks.ne(0).sum(-1) == 2).all()
    weights = [net.get_parameter(name).numel() for name in model.parts[0].compressed]
    assert model.efficiency(0.0).params == sum(p.numel() for p in net.parameters()) - sum(weights) // 2


def test_layers_that_the_pattern_does_not_fit_are_named():
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 64, 1), nn.Flatten(), nn.Linear(64, 2))
    with pytest.warns(UserWarning, match=r"2\.weight \(its 6 inputs are not a multiple of 4\)"):
        model = SubspaceModel(net, mode=Unstructured(scope="block", max_sparsity=0.5), subspace="point")
    assert model.parts[0].compressed == ("1.weight",)
    with pytest.raises(ValueError, match="has a multiple of 4 inputs"):
        SubspaceModel(
            nn.Sequential(nn.Linear(3, 3)), mode=all_sparse(scope="block", max_sparsity=0.5), subspace="point"
        )


@pytest.mark.parametrize("scope", ["layer", "global", "block"])
@pytest.mark.parametrize("direct", [True, False])
def test_entries_that_are_zero_themselves_learn_where_they_are_kept(images, scope, direct):
    """A weight that starts at zero: all its entries tie."""
    net = Net(group_norm).train()
    with torch.no_grad():
        net.conv2.weight.zero_()
    mode = Unstructured(dense=("first",), scope=scope, layer_density="uniform", max_sparsity=0.5)
    model = SubspaceModel(net, mode=mode, subspace="point")
    with model.runner.training_level(0.0, direct=direct):
        loss = model(images).square().sum()
        if not direct:
            loss.backward()
    if direct:
        loss.backward()
    learned = int(net.conv2.weight.grad.ne(0).sum())
    assert learned == {"layer": 288, "block": 288}.get(scope, learned)
    assert learned > 0


def test_a_level_set_again_remembers_its_thresholds(images, monkeypatch):
    net = Net(group_norm).eval()
    model = SubspaceModel(net, mode=all_sparse(), subspace="point").eval()
    calls = []
    original = unstructured_mode.magnitude_threshold
    monkeypatch.setattr(unstructured_mode, "magnitude_threshold", lambda *args: calls.append(args) or original(*args))

    before = first_of_two_levels(model, images)
    assert len(calls) == 2 * len(SPARSE)
    assert torch.equal(first_of_two_levels(model, images), before)
    assert len(calls) == 2 * len(SPARSE)
    with torch.no_grad():
        net.conv1.weight.neg_()
        net.conv2.weight.mul_(2.0)
    assert not torch.equal(first_of_two_levels(model, images), before)
    assert len(calls) == 4 * len(SPARSE)
