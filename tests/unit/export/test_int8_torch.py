"""A level of eight bits as a torch network of integers, against its simulation on real images."""

import pytest
import torch
from torch import nn

from lightning_lcs import SubspaceModel
from lightning_lcs.export.int8_torch import int8_network
from tests.helpers import Mlp
from tests.unit.export.integers import AGREEMENT, DIFFERENCE, quantized

pytest.importorskip("torchao", reason="torchao is not installed: int8_network is not tested")
# Of torchao and torch's compiler.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:To copy construct from a tensor:UserWarning"),
    pytest.mark.filterwarnings("ignore:erase_node:UserWarning"),
]
# Compiled, the same integers: what is left are ties between two of them.
COMPILED = 0.01


def test_integers_give_what_the_simulation_gives(network):
    net, train, images = network
    model = quantized(net, train)
    found = int8_network(model, images[:100])
    held_out = images[100:]
    with torch.no_grad():
        expected, ours = model(held_out), found.module(held_out)
    assert (ours.argmax(1) == expected.argmax(1)).float().mean() >= AGREEMENT
    assert (ours - expected).abs().mean() <= DIFFERENCE * expected.abs().mean()
    layers = [name for name, child in net.named_modules() if isinstance(child, (nn.Conv2d, nn.Linear))]
    assert sorted(found.trained) == sorted(layers)
    assert found.kept_float == ()


def test_layers_that_stay_float_are_named():
    x = torch.randn(8, 3, 4, 4, 4)
    net = nn.Sequential(nn.Conv3d(3, 4, 3), nn.Flatten(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4))
    with pytest.warns(UserWarning, match=r"1 of 3 quantized weights stay float: 0\.weight"):
        found = int8_network(quantized(net, [x]), x, min_agreement=0.0)
    assert found.kept_float == ("0.weight",)
    assert found.trained == ("2", "4")


def test_inputs_of_layers_have_the_ranges_of_the_simulation():
    """Negative control: with images ten times as small as what was trained on, ranges of the images would be finer."""
    x = torch.randn(64, 6)
    model = quantized(Mlp(32), [x], edge_bits=8)
    scales = {n.args[1] for n in int8_network(model, x).module.graph.nodes if "quantize_per_tensor" in str(n.target)}
    small = int8_network(model, x / 10).module
    assert {n.args[1] for n in small.graph.nodes if "quantize_per_tensor" in str(n.target)} == scales
    other = int8_network(quantized(Mlp(32), [x / 10], edge_bits=8), x / 10).module
    assert not scales & {n.args[1] for n in other.graph.nodes if "quantize_per_tensor" in str(n.target)}


@pytest.mark.parametrize("reduce_range", [None, True])
def test_compiled_it_runs_with_integers(reduce_range):
    """Also with the kernels for processors without VNNI, whose products of 8 bits overflow (`make processors`)."""
    x = torch.randn(64, 6)
    module = int8_network(quantized(Mlp(32), [x], edge_bits=8), x, reduce_range=reduce_range).module
    with torch.no_grad(), torch._inductor.config.patch(freezing=True):
        compiled, code = torch._inductor.utils.run_and_get_code(torch.compile(module), x)
        assert "qlinear" in "".join(code)
        assert (compiled - module(x)).abs().max() <= COMPILED * compiled.abs().max()


def test_inputs_of_seven_bits_cover_the_same_range():
    x = torch.randn(64, 6)
    model = quantized(Mlp(32), [x], edge_bits=8)
    made = {reduced: int8_network(model, x, reduce_range=reduced) for reduced in (False, True)}
    assert [found.reduced_range for found in made.values()] == [False, True]
    ranges = {}
    for reduced, found in made.items():
        layers = [node.args[0].args[0] for node in found.module.graph.nodes if "linear" in str(node.target)]
        (_, scale, zero_point, low, high, _), *_ = [node.args for node in layers]
        assert (low, high) == (0, 127 if reduced else 255)
        ranges[reduced] = ((low - zero_point) * scale, (high - zero_point) * scale, scale)
    low, high, scale = ranges[True]
    # A zero point of 7 bits moves the range by half a step at most.
    assert abs(low - ranges[False][0]) <= scale / 2 + 1e-6
    assert abs(high - ranges[False][1]) <= scale / 2 + 1e-6


def test_what_can_not_be_run_is_named():
    x = torch.randn(4, 6)
    with pytest.raises(ValueError, match=r"fc1\.weight has 4 bits.*alpha of 8 bits"):
        int8_network(quantized(Mlp(), [x], layer_bits={"fc1": 4}), x)
    with pytest.raises(ValueError, match="quantized mode"):
        int8_network(SubspaceModel(Mlp(), x, subspace="point"), x)
    with pytest.raises(RuntimeError, match="never observed"):
        int8_network(SubspaceModel(Mlp(), mode="quantized", subspace="point").eval(), x)
    with pytest.raises(RuntimeError, match=r"min_agreement=1\.1"):
        int8_network(quantized(Mlp(), [x]), x, min_agreement=1.1)
