"""What the paper compares with: each differs from plain training in the way that its row in the paper says."""

import copy

import pytest
import torch
from torch import nn

from lightning_lcs import LCSCallback
from tests.integration.support import Module, Net, trainer

# Sums of the same terms in another order.
ORDER = 1e-5


def fit(folder, name, net, train, val, **options):
    callback = LCSCallback.method(name, **options)
    module = Module(copy.deepcopy(net))
    trainer(folder, callback, max_epochs=2).fit(module, train, val)
    return callback, module


def by_hand(net, train, epochs, losses):
    """Plain PyTorch: the summed losses of a batch, as ``Module`` trains."""
    net = copy.deepcopy(net).train()
    optimizer = Module(net).configure_optimizers()
    for _ in range(epochs):
        for x, y in train:
            optimizer.zero_grad()
            losses(net, x, y).backward()
            optimizer.step()
    return net


def assert_same_weights(ours, theirs):
    for name, value in theirs.named_parameters():
        torch.testing.assert_close(ours.get_parameter(name), value, rtol=0, atol=ORDER, msg=name)


def test_plain_is_plain_training_cut_afterwards(tmp_path, train, val):
    net = Net()
    callback, module = fit(tmp_path, "plain", net, train, val)
    expected = by_hand(net, train, 2, lambda n, x, y: nn.functional.cross_entropy(n(x), y))
    assert_same_weights(module.net, expected)
    assert callback.subspace_model.endpoint_pairs() == []
    assert next(point.width for point in callback.curve) == 0.25


def test_us_sweeps_and_keeps_no_statistics(tmp_path, train, val):
    callback, module = fit(tmp_path, "us", Net(), train, val)
    assert callback.subspace_model.statistics == {}
    assert (callback.options.sampler, callback.options.alphas_per_step) == ("sandwich", 4)
    # A narrow width runs on the first entries of the full network's statistics.
    small = callback.subspace_model.materialize(0.0)
    buffers = dict(small.named_buffers())
    for name, full in module.net.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            kept = buffers[name]
            assert len(kept) < len(full)
            assert torch.equal(kept, full[: len(kept)])
    # Its opposite: the same training, with statistics of each width.
    other, _ = fit(tmp_path, "structured-point", Net(), train, val)
    assert other.subspace_model.statistics


def test_ns_trains_its_four_widths_in_every_step(tmp_path, train, val):
    net = Net()
    callback, module = fit(tmp_path, "ns", net, train, val)
    assert [point.width for point in callback.curve] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert sorted(callback.subspace_model.statistics) == pytest.approx([0.0, 1 / 3, 2 / 3])
    every = {"sampling": {"sampler": [0.0, 1 / 3, 2 / 3, 1.0]}, "loss": {"reduction": "mean"}}
    again, twin = fit(tmp_path, "structured-point", net, train, val, **every)
    assert_same_weights(twin.net, module.net)
    # No width is drawn at random: another seed changes nothing.
    _, other = fit(tmp_path, "ns", net, train, val, seed=5)
    assert_same_weights(other.net, module.net)
    _, drawn = fit(tmp_path, "structured-point", net, train, val, seed=5)
    assert any(not torch.allclose(p, drawn.net.get_parameter(n)) for n, p in module.net.named_parameters())
    assert again.options.alphas(0, 3) == callback.options.alphas(9, 7)


@pytest.mark.parametrize("name", ["us", "ns"])
def test_baselines_as_published_sum_the_losses(name):
    ours, published = LCSCallback.method(name).options, LCSCallback.method(f"paper-{name}").options
    assert (ours.reduction, published.reduction) == ("mean", "sum")
    assert ours.sampler == published.sampler
    # Theirs are drawn from all of [0, 1], ours from 25 levels.
    assert ours.alphas(0, 3) == pytest.approx(published.alphas(0, 3), abs=1 / 24)
    assert published.levels == 0
    assert LCSCallback.paper("structured").options.reduction == "sum"


def test_a_network_for_one_width(tmp_path, train, val):
    """The same as the network that is natively so narrow; the other channels are never touched."""
    net = Net()
    callback, module = fit(tmp_path, "width-0.5", net, train, val)
    assert next(point.width for point in callback.curve) == 0.5
    narrow = Net(first=4, second=4)
    starts = net.state_dict()
    narrow.load_state_dict({n: starts[n][tuple(map(slice, v.shape))] for n, v in narrow.state_dict().items()})
    expected = by_hand(narrow, train, 2, lambda n, x, y: nn.functional.cross_entropy(n(x), y))
    for name, value in expected.named_parameters():
        kept = tuple(map(slice, value.shape))
        ours, before = module.net.get_parameter(name).detach().clone(), net.get_parameter(name).detach().clone()
        torch.testing.assert_close(ours[kept], value, rtol=0, atol=ORDER, msg=name)
        ours[kept] = before[kept] = 0.0
        assert torch.equal(ours, before), name


@pytest.mark.parametrize("sparsity", [0.5, 0.9])
def test_a_network_for_one_sparsity(tmp_path, train, val, sparsity):
    """The share kept decays from 1 over half of the steps; every step visits the target alone."""
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 10))
    callback, module = fit(tmp_path, f"sparsity-{sparsity}", net, train, val)
    options = callback.options
    assert [callback.mode.sparsity(alpha) for alpha in options.alphas(0, 0)] == pytest.approx([sparsity])
    assert [options.strength(progress) for progress in (0.0, 0.25, 0.5, 1.0)] == pytest.approx([0.0, 0.5, 1.0, 1.0])
    steps = 2 * len(train)
    done = iter(range(steps))

    def loss(n, x, y):
        zeros = min(1.0, next(done) / steps / 0.5) * sparsity
        weight = n[2].weight
        smallest = int(zeros * weight.numel() + 1e-6)  # products such as 0.1 * 30 are exact
        mask = torch.ones(weight.numel())
        mask[weight.detach().abs().flatten().argsort()[:smallest]] = 0.0
        hidden = nn.functional.conv2d(n[1](n[0](x)), weight * mask.view_as(weight), n[2].bias)
        return nn.functional.cross_entropy(n[5](n[4](n[3](hidden))), y)

    assert_same_weights(module.net, by_hand(net, train, 2, loss))


def test_a_network_for_one_bit_width(tmp_path, train, val):
    callback, _ = fit(tmp_path, "bits-4", Net(), train, val)
    assert [point.bit_width for point in callback.curve] == [4]
    assert {callback.mode.bit_width(alpha) for step in range(20) for alpha in callback.options.alphas(0, step)} == {4}
    weight = callback.subspace_model.materialize(2 / 6).conv2.weight
    drawn, _ = fit(tmp_path, "quantized-point", Net(), train, val)
    assert len({drawn.mode.bit_width(alpha) for step in range(40) for alpha in drawn.options.alphas(0, step)}) == 6
    assert all(output.unique().numel() <= 2**4 for output in weight)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("structured-line", ("structured", "line", "keep", "norm")),
        ("unstructured-point-group", ("unstructured", "point", "group", "norm")),
        ("paper-structured-line", ("structured", "line", "instance", "norm")),
        ("paper-quantized-line-keep", ("quantized", "line", "keep", "backbone")),
    ],
)
def test_subspaces_by_name(name, expected):
    callback = LCSCallback.method(name)
    mode = type(callback.mode).__name__.lower()
    assert (mode, callback.subspace, callback.norm, callback.line.parameters) == expected


@pytest.mark.parametrize("name", ["", "structured", "structured-line-batch", "paper", "paper-line", "bits-4.5", "ns-1"])
def test_other_names_are_refused(name):
    with pytest.raises(ValueError, match="is not known; choose from"):
        LCSCallback.method(name)


def test_lec_penalises_scales_and_cuts_the_smallest_of_the_whole_network(tmp_path, train, val):
    net = Net()
    callback, module = fit(tmp_path, "lec", net, train, val)
    options = callback.options
    assert (options.sampler, options.scale_penalty, callback.mode.select) == ((1.0,), 1e-5, "scale")
    scales = torch.cat([module.net.norm1.weight, module.net.norm2.weight]).detach().abs()
    for point in callback.curve:
        small = callback.subspace_model.materialize(point.alpha)
        kept = torch.cat([small.norm1.weight, small.norm2.weight]).detach().abs()
        assert len(kept) == round(callback.mode.width(point.alpha) * len(scales))
        if min(small.norm1.weight.numel(), small.norm2.weight.numel()) > 1:
            assert torch.equal(kept.sort().values, scales.sort().values[-len(kept) :])


def test_the_penalty_is_in_the_update(tmp_path, train, val):
    """Of one step of gradient descent: the sign of each scale, times the penalty and the learning rate."""
    ends = []
    for penalty in (0.0, 0.5):
        torch.manual_seed(0)
        module = Module(Net(), lr=0.1)
        callback = LCSCallback(
            subspace="point",
            sampling={"sampler": [1.0]},
            loss={"scale_penalty": penalty},
            alphas=2,
            recalibration={"levels": 2},
        )
        trainer(tmp_path, callback, max_steps=1).fit(module, train, val)
        ends.append(module.net)
    for name, parameter in ends[0].named_parameters():
        expected = parameter - 0.1 * 0.5 if name in ("norm1.weight", "norm2.weight") else parameter
        # All scales start at 1: their signs are.
        torch.testing.assert_close(ends[1].get_parameter(name), expected, rtol=1e-5, atol=1e-6)
