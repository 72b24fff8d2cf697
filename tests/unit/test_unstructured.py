"""Unstructured subspaces: the network's own forward with sparse weights."""

import copy

import pytest
import timm
import torch
from torch import nn

from lightning_lcs import SubspaceModel, Unstructured
from lightning_lcs.functional.sparsity import zeros_at
from tests.integration.support import Net

SPARSE = ("conv1.weight", "conv2.weight", "head.weight")


def all_sparse(**options) -> Unstructured:
    return Unstructured(dense=(), **options)


def line(net: nn.Module, mode: Unstructured, **options) -> SubspaceModel:
    model = SubspaceModel(net, mode=mode, line_parameters="all", **options)
    model.warns = False  # of batch-norm statistics, which are those of alpha = 1 here
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
                flat[order[: zeros_at(flat.numel(), model.mode.sparsity(alpha))]] = 0.0
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
        assert torch.equal(model.materialize(alpha)(images), model(images))


def test_alpha_one_is_the_users_network(images):
    net = Net().eval()
    model = line(net, all_sparse()).eval()
    assert torch.equal(model(images), net(images))
    # Not so in a range that ends before the full network.
    sparse = SubspaceModel(Net(), mode=all_sparse(max_sparsity=0.9, min_sparsity=0.5), subspace="point").eval()
    sparse.warns = False
    assert not torch.equal(sparse(images), sparse.module(images))


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("strength", [1.0, 0.4, 0.0])
def test_gradients_reach_kept_entries_of_both_endpoints_only(images, direct, strength):
    alpha, net = 0.3, Net().train()
    model = line(net, all_sparse()).train()
    statistics = copy.deepcopy(list(net.buffers()))
    sparsity = strength * model.mode.sparsity(alpha)
    with model.training_level(alpha, strength=strength, direct=direct):
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
            keep[weight.detach().abs().flatten().argsort()[: zeros_at(weight.numel(), sparsity)]] = 0.0
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
    with pytest.raises(ValueError, match="besides those that are kept whole"):
        SubspaceModel(nn.Sequential(nn.Linear(2, 2)), mode=Unstructured(dense=("last",)), subspace="point")
    with pytest.raises(ValueError, match="no convolution or linear layer"):
        SubspaceModel(nn.Sequential(nn.BatchNorm2d(2)), mode=all_sparse(), subspace="point")


def test_what_a_level_costs(images):
    model = SubspaceModel(Net(), images, mode=all_sparse(max_sparsity=0.5), subspace="point")
    half, full = model.efficiency(0.0), model.efficiency(1.0)
    weights = {name: p.numel() for name, p in model.module.named_parameters()}
    removed = sum(zeros_at(weights[name], 0.5) for name in SPARSE)
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
    model.warns = False
    with model.at_alpha(0.0), torch.no_grad():
        assert model(-torch.ones(2, 1, 8, 8)).shape == (2, 10)
    assert model.efficiency(0.0).params < model.efficiency(1.0).params


@pytest.mark.parametrize("name", ["mobilenetv2_050", "regnetx_002", "vit_tiny_patch16_224"])
def test_timm_models(name):
    size = 224 if "vit" in name else 32
    net = timm.create_model(name, num_classes=5).eval()
    x = torch.randn(2, 3, size, size)
    model = SubspaceModel(net, x, mode=Unstructured(max_sparsity=0.9), line_parameters="norm").eval()
    model.warns = False
    with torch.no_grad():
        model.set_alpha(0.0)
        sparse = model(x)
        small = model.materialize(0.0)
        assert torch.equal(small(x), sparse)
        model.set_alpha(1.0)
        assert torch.equal(model(x), net(x))
    for weight in model.parts[0].compressed:
        parameter = small.get_parameter(weight)
        assert int((parameter == 0).sum()) == zeros_at(parameter.numel(), 0.9)


def test_what_belongs_to_structured_mode_is_refused(tmp_path, images):
    model = SubspaceModel(Net(), images, mode="unstructured", subspace="point")
    with pytest.raises(NotImplementedError, match="writes structured subspaces"):
        model.save(tmp_path / "model.lcs")
    assert not list(tmp_path.iterdir())
    with pytest.raises(RuntimeError, match="belongs to structured mode"):
        _ = model.plan


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"max_sparsity": 1.0}, "max_sparsity=1.0"),
        ({"max_sparsity": -0.1}, "max_sparsity=-0.1"),
        ({"max_sparsity": 0.5, "min_sparsity": 0.6}, "min_sparsity=0.6"),
        ({"dense": ("stem",)}, "dense="),
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
