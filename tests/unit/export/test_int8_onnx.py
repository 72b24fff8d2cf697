"""A level of eight bits that runs with integers, against its simulation on real images."""

import copy

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lightning_lcs import SubspaceModel
from lightning_lcs.export.int8_onnx import export_int8
from lightning_lcs.export.onnx import session
from lightning_lcs.export.qdq import Weight, _scaled
from tests.helpers import Mlp
from tests.unit.export.integers import AGREEMENT, DIFFERENCE, quantized

# A tiny network may be no faster with integers.
pytestmark = pytest.mark.filterwarnings("ignore:.*integers take:UserWarning")


def with_scales_of_either_sign(network, x):
    """The same function, in which some outputs of convolutions and the scales after them have the other sign."""
    turned = copy.deepcopy(network)
    last = None
    with torch.no_grad():
        for child in turned.modules():
            if isinstance(child, nn.BatchNorm2d):
                for tensor in (last.weight, child.weight, child.running_mean):
                    tensor[::5] *= -1.0
            last = child if isinstance(child, nn.Conv2d) else last
        assert torch.allclose(turned(x), network(x), atol=1e-4)
    return turned


def run(path, x):
    opened = session(path)
    return torch.from_numpy(opened.run(None, {opened.get_inputs()[0].name: x.numpy()})[0])


@pytest.mark.parametrize("per_channel", [False, True])
def test_integers_give_what_the_simulation_gives(network, tmp_path, per_channel):
    net, train, images = network
    net = with_scales_of_either_sign(net, train[0])
    model = quantized(net, train, per_channel=per_channel)
    file = export_int8(model, tmp_path / "small.onnx", images[:100])
    held_out = images[100:]
    with torch.no_grad():
        expected = model(held_out)
    found = run(file.path, held_out)
    assert (found.argmax(1) == expected.argmax(1)).float().mean() >= AGREEMENT
    assert (found - expected).abs().mean() <= DIFFERENCE * expected.abs().mean()
    assert file.kept_float == ()
    floats = sum(p.numel() * 4 for p in net.parameters())
    assert file.size_bytes < 0.3 * floats + 100_000


def test_every_layer_runs_with_integers(network, tmp_path):
    import onnxruntime

    net, train, images = network
    file = export_int8(quantized(net, train), tmp_path / "small.onnx", images[:50])
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(file.path), options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    layers = sum(isinstance(child, (nn.Conv2d, nn.Linear)) for child in net.modules())
    integers = ("QLinearConv", "MatMulIntegerToFloat", "QGemm")
    assert sum(kinds.count(kind) for kind in integers) == layers
    assert not {"Conv", "Gemm"} & set(kinds)


def test_linear_layers_add_no_rounding(tmp_path):
    x = torch.randn(64, 6)
    model = quantized(Mlp(32), [x], edge_bits=8)
    file = export_int8(model, tmp_path / "mlp.onnx", x)
    with torch.no_grad():
        # The last layer's bias is rounded to a product of scales, and an input may lie between two steps.
        assert (run(file.path, x) - model(x)).abs().mean() < 2e-3 * model(x).abs().mean()
    assert file.difference < 2e-3


def test_a_wrong_file_is_refused_and_nothing_stays(network, tmp_path):
    net, train, images = network
    model = quantized(copy.deepcopy(net), train)
    simulated = quantized(net, train)
    model.materialize = simulated.materialize
    wrong = {k: torch.zeros_like(v) if k.endswith("weight") and v.ndim == 2 else v for k, v in net.state_dict().items()}
    model.module.load_state_dict(wrong)
    with pytest.raises(RuntimeError, match=r"min_agreement=0\.9: nothing is kept"):
        export_int8(model, tmp_path / "new" / "small.onnx", images[:100])
    assert not list(tmp_path.iterdir())


def test_what_can_not_be_run_is_named(tmp_path):
    x = torch.randn(4, 6)
    path = tmp_path / "new" / "model.onnx"
    with pytest.raises(ValueError, match=r"fc1\.weight has 4 bits.*alpha of 8 bits"):
        export_int8(quantized(Mlp(), [x], layer_bits={"fc1": 4}), path, x)
    with pytest.raises(ValueError, match="quantized mode"):
        export_int8(SubspaceModel(Mlp(), x, subspace="point"), path, x)
    with pytest.raises(ValueError, match="images is empty"):
        export_int8(quantized(Mlp(), [x]), path, [])
    with pytest.raises(RuntimeError, match="never observed"):
        export_int8(SubspaceModel(Mlp(), mode="quantized", subspace="point").eval(), path, x)
    assert not list(tmp_path.iterdir())


@given(
    st.lists(st.floats(-3, 3, width=32), min_size=3, max_size=3),
    st.lists(st.integers(-128, 127), min_size=3, max_size=3),
    st.sampled_from([1, 3]),
    st.integers(0, 99),
)
def test_integers_times_a_factor(factors, zero_points, scales, seed):
    drawn = np.random.default_rng(seed)
    integers = drawn.integers(-128, 128, (3, 4), np.int64).astype(np.int8)
    shape = () if scales == 1 else (3,)
    scale = drawn.uniform(0.1, 1.0, shape)
    zero_point = np.array(zero_points[0] if scales == 1 else zero_points)
    factor = np.array(factors)
    made = _scaled(Weight(integers, scale, zero_point), factor)
    assert len(set(made.zero_point)) == 1

    def values(weight):
        rows = np.broadcast_to(weight.scale, 3)[:, None], np.broadcast_to(weight.zero_point, 3)[:, None]
        return (weight.integers.astype(float) - rows[1]) * rows[0]

    expected = values(Weight(integers, scale, zero_point)) * factor[:, None]
    # Half a step of the new integers; exact where no sign turned and all had one zero point.
    assert (np.abs(values(made) - expected) <= made.scale[:, None] / 2 + 1e-9).all()
    if scales == 1 and (factor >= 0).all():
        assert np.allclose(values(made), expected)
