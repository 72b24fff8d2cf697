"""Quantized subspaces: the network's own forward with quantized weights and inputs of layers."""

import copy
import pickle

import pytest
import timm
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_lcs import Quantized, SubspaceModel
from lightning_lcs.functional.quantization import fake_quantize, value_range
from lightning_lcs.functional.ranges import least_error_range
from lightning_lcs.subspace.modes import weight_ranges
from tests.helpers import first_of_two_levels, relative, rounded
from tests.integration.support import Net, group_norm

# The same operations on equal tensors, aligned otherwise in memory, by another path through the code.
SAME_OPS = 1e-5


@pytest.fixture
def images():
    return torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def calibrated(net: nn.Module, images: torch.Tensor, mode: Quantized | None = None, **options) -> SubspaceModel:
    model = SubspaceModel(net, mode=mode or Quantized(), **options).eval()
    model.recalibrate([images], alphas=7)
    return model


@pytest.mark.parametrize(
    ("alpha", "bits"),
    [
        (0.0, 3),
        (1e-9, 3),
        (1 / 6, 3),
        (1 / 6 + 1e-6, 4),
        (2 / 6, 4),
        (0.5, 5),
        (4 / 6, 6),
        (5 / 6, 7),
        (0.99, 8),
        (1.0, 8),
    ],
)
def test_bits_at_every_bin_edge(alpha, bits):
    assert Quantized().bit_width(alpha) == bits


@pytest.mark.parametrize("low", range(2, 9))
def test_every_edge_of_every_range(low):
    for high in range(low, 9):
        mode, count = Quantized(min_bits=low, max_bits=high), high - low + 1
        for k in range(1, count + 1):
            # However k / n is computed.
            for alpha in (k / count, k * (1 / count), 1 - (count - k) / count):
                assert mode.bit_width(alpha) == low + k - 1
                assert mode.snap(alpha) == k / count


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_alpha_out_of_range(alpha):
    with pytest.raises(ValueError, match="alpha="):
        Quantized().bit_width(alpha)


@pytest.mark.parametrize("edge_bits", [8, 32, 4])
@pytest.mark.parametrize("alpha", [1 / 6, 0.5, 1.0])
def test_a_level_is_the_network_with_every_layer_quantized_by_hand(images, alpha, edge_bits):
    net = Net(group_norm).eval()
    mode = Quantized(edge_bits=edge_bits)
    model = calibrated(net, images, mode, subspace="point")
    level, bits = mode.snap(alpha), mode.bit_width(alpha)
    edge = {"conv1": edge_bits, "conv2": bits, "head": edge_bits}

    def layer(name: str, x: torch.Tensor) -> torch.Tensor:
        own = copy.deepcopy(getattr(net, name))
        if edge[name] < 32:
            with torch.no_grad():
                own.weight.copy_(rounded(own.weight, edge[name]))
            x = fake_quantize(x, *model.statistics[level][f"{name}.input_range"].unbind(), edge[name])
        return own(x)

    with torch.no_grad():
        x = net.norm1(layer("conv1", images)).relu()
        x = net.norm2(layer("conv2", x)).relu()
        expected = layer("head", x.mean((2, 3)))
        model.set_alpha(alpha)
        small = model.materialize(alpha)
        for network in (model, small, pickle.loads(pickle.dumps(small)), copy.deepcopy(small)):
            assert relative(network(images), expected) < SAME_OPS


def test_the_networks_own_weights_stay_whole(images):
    net = Net().eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    model = calibrated(net, images, subspace="line", line={"parameters": "all"})
    for alpha in (0.0, 1.0):
        with model.at_alpha(alpha), torch.no_grad():
            model(images)
    assert set(net.state_dict()) == set(before)
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name])


def test_levels_that_were_never_observed_are_an_error(images):
    model = SubspaceModel(Net(group_norm), mode="quantized", subspace="point").eval()
    with pytest.raises(RuntimeError, match=r"conv1 were never observed at 8 bits.*recalibrate"):
        model(images)


def test_ranges_move_per_level_and_start_from_the_first_batch(images):
    model = SubspaceModel(Net(group_norm), mode="quantized", subspace="point").train()
    batches = [images, 3 * images, -2 * images]
    for batch in batches:
        with model.runner.training_level(0.5):
            model(batch)
    ends = [torch.stack(least_error_range(batch, 8)) for batch in batches]
    expected = ends[0]
    for found in ends[1:]:
        expected = expected + 0.1 * (found - expected)
    torch.testing.assert_close(model.runner.ranges[0.5]["conv1.input_range"], expected)
    assert set(model.runner.ranges) == {0.5}


def test_before_the_warm_up_has_ended_inputs_are_observed_and_weights_quantized(images):
    model = SubspaceModel(Net(group_norm), mode=Quantized(edge_bits=32), subspace="point").train()
    with torch.no_grad(), model.runner.training_level(0.5, strength=0.5):
        found = model(images)
    twin = copy.deepcopy(model.module)
    with torch.no_grad():
        twin.conv2.weight.copy_(rounded(twin.conv2.weight, 5))
        assert relative(found, twin(images)) < SAME_OPS
    assert set(model.runner.ranges[0.5]) == {"conv2.input_range"}


@pytest.mark.parametrize("direct", [True, False])
def test_gradients_pass_straight_through_to_both_endpoints(images, direct):
    """Against the quantized network's own gradients: of each weight a share to each endpoint."""
    alpha = 0.5
    model = SubspaceModel(Net(group_norm), mode="quantized", subspace="line", line={"parameters": "all"}).train()
    with model.runner.training_level(alpha, direct=direct):
        loss = model(images).square().sum()
        if not direct:
            loss.backward()
    if direct:
        loss.backward()
    twin = model.materialize(alpha, train=True)
    twin(images).square().sum().backward()
    for name, w0 in model.parts[0].endpoints.items():
        expected = 0.5 * twin.get_parameter(name).grad
        torch.testing.assert_close(w0.grad, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(model.module.get_parameter(name).grad, expected, rtol=1e-5, atol=1e-5)


class _ReadBacks(TorchDispatchMode):
    """Counts values that are read back to Python."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default)
        return func(*args, **(kwargs or {}))


def test_no_value_is_read_back_to_python(images):
    model = calibrated(Net(), images, subspace="line", line={"parameters": "all"})
    with _ReadBacks() as seen:
        float(images.sum())
    assert seen.count == 1  # the check sees one
    model.set_alpha(0.5)
    with _ReadBacks() as seen, torch.no_grad():
        model(images)
        model(images)
    assert seen.count == 0
    model.train()
    with _ReadBacks() as seen, model.runner.training_level(0.5):
        model(images).sum().backward()
    assert seen.count == 0


def test_what_a_level_costs(images):
    model = SubspaceModel(Net(), images, mode=Quantized(min_bits=4), subspace="point")
    small, large = model.efficiency(0.0), model.efficiency(1.0)
    assert (small.bit_width, large.bit_width, small.params, small.macs) == (4, 8, large.params, large.macs)
    # Only conv2 changes: the first convolution and the head stay at 8 bits.
    assert large.size_bytes - small.size_bytes == model.module.conv2.weight.numel() // 2


def test_a_level_set_again_remembers_the_ranges_of_its_weights(images, monkeypatch):
    net = Net(group_norm).eval()
    model = calibrated(net, images, subspace="point")
    calls = []
    original = weight_ranges.observe
    monkeypatch.setattr(weight_ranges, "observe", lambda *args: calls.append(args) or original(*args))

    before = first_of_two_levels(model, images)
    assert len(calls) == 2 * len(model.parts[0].compressed)
    assert torch.equal(first_of_two_levels(model, images), before)
    assert len(calls) == 2 * len(model.parts[0].compressed)
    with torch.no_grad():
        net.conv2.weight.mul_(2.0)
    with pytest.warns(UserWarning, match="other weights"):
        assert not torch.equal(first_of_two_levels(model, images), before)
    assert len(calls) == 4 * len(model.parts[0].compressed)


@pytest.mark.parametrize("per_channel", [False, True])
def test_ranges_from_the_smallest_to_the_largest_value(images, per_channel):
    mode = Quantized(per_channel=per_channel, weight_range="minmax", input_range="minmax")
    model = calibrated(Net(group_norm), images, mode, subspace="point")
    for alpha, bits in ((0.0, 3), (1.0, 8)):
        weight = model.module.conv2.weight.detach()
        expected = fake_quantize(weight, *value_range(weight, per_channel), bits)
        assert torch.equal(model.materialize(alpha).conv2.weight, expected)
        ends = model.statistics[mode.snap(alpha)]["conv1.input_range"]
        torch.testing.assert_close(ends, torch.stack(value_range(images)))


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "convnext_atto"])
def test_timm_models(name):
    # Without batch norm, whose recalibrated statistics alone would change the result of an untrained network.
    size = 224 if "vit" in name else 64
    net = timm.create_model(name, num_classes=5).eval()
    x = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(0))
    model = calibrated(net, x, Quantized(), subspace="point")
    with torch.no_grad():
        full = net(x)
        errors = []
        for alpha in (1 / 6, 0.5, 1.0):
            model.set_alpha(alpha)
            errors.append(float((model(x) - full).norm() / full.norm()))
    # More bits, closer to the network: at 8 bits an untrained one is within a tenth.
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.1


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"min_bits": 1}, "min_bits=1"),
        ({"max_bits": 9}, "max_bits=9"),
        ({"min_bits": 6, "max_bits": 4}, "min_bits=6"),
        ({"edge_bits": 16}, "edge_bits=16"),
        ({"layer_bits": {"stem": 9}}, r"layer_bits\['stem'\]=9"),
        ({"weight_range": "max"}, "weight_range='max' is not known; choose one of 'minmax', 'mse'"),
        ({"input_range": "max"}, "input_range='max' is not known"),
    ],
)
def test_options_out_of_range(options, match):
    with pytest.raises(ValueError, match=match):
        Quantized(**options)


def test_bits_of_single_layers(images):
    mode = Quantized(layer_bits={"conv1": 32, "conv*": 4, "head": 6})
    model = calibrated(Net(group_norm), images, mode, subspace="point")
    assert model.parts[0].compressed == ("conv2.weight", "head.weight")
    assert model.parts[0].pinned == {"conv2.weight": 4, "head.weight": 6}
    assert "kept whole: conv1.weight" in model.report()
    small = model.materialize(1.0)
    for name, bits in (("conv2", 4), ("head", 6)):
        weight = getattr(model.module, name).weight
        assert torch.equal(getattr(small, name).weight, rounded(weight, bits))
    with pytest.raises(ValueError, match=r"layer_bits names 'stem\.\*', which fits no .*'conv1', 'conv2', 'head'"):
        SubspaceModel(Net(), mode=Quantized(layer_bits={"stem.*": 8}), subspace="point")


def test_layers_that_drew_bits_of_their_own(images):
    model = SubspaceModel(Net(group_norm), mode=Quantized(layer_bits={"head": 6}), subspace="point").train()
    twin = copy.deepcopy(model.module)
    with torch.no_grad(), model.runner.training_level(0.5, drawn={"conv1": 3, "conv2": 4, "head": 5}):
        found = model(images)
    ranges = {
        "conv1": model.runner.ranges[1 / 6],
        "conv2": model.runner.ranges[2 / 6],
        "head": model.runner.ranges[3 / 6],
    }
    with torch.no_grad():
        for (name, held), bits in zip(ranges.items(), (8, 4, 6), strict=True):  # the first convolution keeps its 8
            layer = getattr(twin, name)
            layer.weight.copy_(rounded(layer.weight, bits))
            low, high = held[f"{name}.input_range"].unbind()
            layer.register_forward_pre_hook(lambda _, args, r=(low, high, bits): (fake_quantize(args[0], *r),))
        assert relative(found, twin(images)) < SAME_OPS


@pytest.mark.parametrize("first", [False, True])
def test_a_batch_that_is_not_finite_does_not_stay_in_the_ranges(images, first):
    model = SubspaceModel(Net(group_norm), mode="quantized", subspace="point").train()
    for batch in [images * float("nan"), images, images] if first else [images, images * float("inf"), images]:
        with model.runner.training_level(0.5):
            model(batch)
    expected = torch.stack(least_error_range(images, 8))
    torch.testing.assert_close(model.runner.ranges[0.5]["conv1.input_range"], expected)


class Routed(nn.Module):
    """Of two experts, the second one gets the samples whose first pixel is above a bound."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.low, self.high, self.head = (nn.Linear(4, 4) for _ in range(4))

    def forward(self, x):
        hidden, high = self.stem(x), x[:, 0] > 0
        result = torch.empty_like(hidden)
        result[~high], result[high] = self.low(hidden[~high]), self.high(hidden[high])
        return self.head(result)


def test_a_layer_without_samples_is_not_observed():
    low, high = -torch.ones(3, 4), torch.ones(3, 4)
    model = SubspaceModel(Routed(), mode="quantized", subspace="point").train()
    for batch in (low, high, low):
        with model.runner.training_level(1.0):
            model(batch).sum().backward()
    assert {key.rpartition(".")[0] for key in model.runner.ranges[1.0]} == {"stem", "low", "high", "head"}
    model.recalibrate([low, high], alphas=[1.0])
    assert torch.isfinite(model.eval()(low)).all()
