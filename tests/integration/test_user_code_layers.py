"""Layers of other kinds than plain convolutions and linear layers: levels equal networks compressed by hand."""

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_lcs import Quantized, SubspaceModel, Unstructured
from lightning_lcs.export import export_int8, int8_network, load_bits, save_bits
from lightning_lcs.functional.quantization import fake_quantize
from lightning_lcs.functional.ranges import least_error_range
from tests.helpers import relative, rounded
from tests.integration.compressed_by_hand import SAME_OPS, images, quantized_by_hand
from tests.integration.support import Module, Net, digits, lcs, loader, trainer

# Small networks are not faster with integers.
STORAGE_ONLY = pytest.mark.filterwarnings("ignore:.*they save storage only")


class Upsampling(nn.Module):
    def __init__(self, groups: int) -> None:
        super().__init__()
        self.stem, self.up = nn.Conv2d(1, 8, 3), nn.ConvTranspose2d(8, 12, 2, 2, groups=groups)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.up(self.stem(x).relu()).relu().mean((2, 3)))
        return out


# -- transposed convolutions ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_each_output_channel_of_a_transposed_convolution_has_a_range(tmp_path, groups):
    net = Upsampling(groups).eval()
    # Outputs of very different size: a range along the inputs would lose the small ones.
    with torch.no_grad():
        net.up.weight.mul_(torch.logspace(-2, 0, 12 // groups).view(1, -1, 1, 1))
    model = SubspaceModel(net, images(), mode=Quantized(), subspace="point").eval()
    model.recalibrate([images()], [0.0, 1.0])
    own, inputs, outputs = net.up.weight.detach(), 8 // groups, 12 // groups
    for alpha, bits in ((0.0, 3), (1.0, 8)):
        expected = own.clone()
        for group in range(groups):
            for output in range(outputs):
                kernel = own[group * inputs : (group + 1) * inputs, output]
                ends = least_error_range(kernel, bits)
                expected[group * inputs : (group + 1) * inputs, output] = fake_quantize(kernel, *ends, bits)
        assert torch.equal(model.materialize(alpha).up.weight, expected)
        again = load_bits(save_bits(model, tmp_path / "level.safetensors", alpha).path, Upsampling(groups))
        assert torch.equal(again.up.weight, expected)
    file = save_bits(model, tmp_path / "level.safetensors", 0.0)
    assert file.bits == {"stem": 8, "up": 3, "head": 8}
    # A scale and a zero point for each of the 8 + 12 + 4 outputs.
    integers = net.stem.weight.numel() + net.head.weight.numel() + -(-own.numel() * 3 // 8)
    assert model.efficiency(0.0).size_bytes == integers + 5 * 24 + 4 * 24


def test_training_quantizes_a_transposed_convolution_per_output_channel():
    model = SubspaceModel(Upsampling(2), images(), mode=Quantized(), subspace="point").train()
    with model.runner.training_level(0.0, strength=0.5):
        loss = model(images()).square().mean()
        loss.backward()
    twin = copy.deepcopy(model.module)
    twin.zero_grad()
    with torch.no_grad():
        for layer, bits in ((twin.stem, 8), (twin.head, 8)):
            layer.weight.copy_(rounded(layer.weight, bits))
        for output in range(12):
            group, own = divmod(output, 6)
            kernel = twin.up.weight[4 * group : 4 * group + 4, own]
            kernel.copy_(fake_quantize(kernel, *least_error_range(kernel, 3), 3))
    twin(images()).square().mean().backward()
    for ours, theirs in zip(model.module.parameters(), twin.parameters(), strict=True):
        assert relative(ours.grad, theirs.grad) < SAME_OPS


def test_blocks_of_a_transposed_convolution_lie_along_its_inputs():
    net = Upsampling(2)
    model = SubspaceModel(net, images(), mode=Unstructured(max_sparsity=0.5, scope="block"), subspace="point").eval()
    assert model.parts[0].compressed == ("up.weight",)  # four inputs for each output
    kept = model.materialize(0.0).up.weight.ne(0.0).unflatten(0, (2, 4)).sum(1)
    assert torch.equal(kept, torch.full_like(kept, 2))
    odd = nn.Sequential(nn.Conv2d(1, 8, 1), nn.ConvTranspose2d(8, 16, 2, groups=4), nn.Conv2d(16, 4, 1))
    with pytest.warns(UserWarning, match="56% of the parameters"):
        report = SubspaceModel(odd, mode=Unstructured(max_sparsity=0.5, scope="block"), subspace="point").report()
    assert "kept whole: 1.weight, 128 parameters (its 2 inputs are not a multiple of 4)" in report


# -- torch's attention ------------------------------------------------------------------------------------------------


class Encoder(nn.Module):
    """A transformer of torch, whose functional attention never calls its output projection."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 16, 2, 2)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.layer(self.patches(x).flatten(2).transpose(1, 2)).mean(1))
        return out


PROJECTIONS = ("layer.self_attn.out_proj.weight", "layer.self_attn.in_proj_weight")


CALLED = {"patches", "layer.linear1", "layer.linear2", "head"}


def test_torchs_attention_is_quantized_with_its_projections(tmp_path):
    model = SubspaceModel(Encoder().eval(), images(), mode=Quantized(), subspace="point").eval()
    model.recalibrate([images()], [0.0, 1.0])
    assert set(PROJECTIONS) < set(model.parts[0].compressed)
    assert not [line for line in model.report().splitlines() if "kept whole" in line]
    for name in PROJECTIONS:
        assert f"quantized, with inputs that stay float: {name}" in model.report()
    for alpha in (0.0, 1.0):
        with torch.no_grad(), model.at_alpha(alpha):
            expected = quantized_by_hand(model, alpha)(images())
            assert relative(model(images()), expected) < SAME_OPS
            assert relative(model.materialize(alpha)(images()), expected) < SAME_OPS
            file = save_bits(model, tmp_path / "level.safetensors", alpha)
            assert relative(load_bits(file.path, Encoder())(images()), expected) < SAME_OPS
    assert file.bits["layer.self_attn"] == file.bits["layer.self_attn.out_proj"] == 8
    assert set(model.statistics[1.0]) == {f"{layer}.input_range" for layer in CALLED}


@STORAGE_ONLY
def test_exports_with_integers_say_that_torchs_attention_stays_float(tmp_path):
    model = SubspaceModel(Encoder().eval(), images(), mode=Quantized(), subspace="point").eval()
    with pytest.raises(RuntimeError, match="the inputs of patches were never observed at 8 bits"):
        export_int8(model, tmp_path / "level.onnx", images())
    model.recalibrate([images()], [1.0])
    with pytest.warns(UserWarning, match="2 of 6 quantized weights stay float: layer.self_attn.out_proj.weight"):
        file = export_int8(model, tmp_path / "level.onnx", images(), min_agreement=0.5)
    assert set(file.kept_float) == set(PROJECTIONS)
    with pytest.warns(UserWarning, match="2 of 6 quantized weights stay float: layer.self_attn.out_proj.weight"):
        network = int8_network(model, images(), min_agreement=0.5)
    assert set(network.kept_float) == set(PROJECTIONS)
    assert set(network.trained) == CALLED


class Read(nn.Module):
    """A linear layer whose weight is read, and which is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mid, self.head = nn.Conv2d(1, 8, 3), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.linear(self.stem(x).mean((2, 3)), self.mid.weight, self.mid.bias)
        out: Tensor = self.head(x)
        return out


@STORAGE_ONLY
def test_a_layer_that_is_never_called_has_a_quantized_weight_and_a_float_input(tmp_path):
    model = SubspaceModel(Read().eval(), images(), mode=Quantized(), subspace="point").eval()
    with pytest.raises(RuntimeError, match="the inputs of stem were never observed"):
        save_bits(model, tmp_path / "level.safetensors", 1.0)
    model.recalibrate([images()], [1.0])
    assert torch.equal(model.materialize(1.0)(images()), quantized_by_hand(model, 1.0)(images()))
    file = save_bits(model, tmp_path / "level.safetensors", 1.0)
    assert torch.equal(load_bits(file.path, Read())(images()), model.materialize(1.0)(images()))
    with pytest.warns(UserWarning, match="1 of 3 quantized weights stay float: mid.weight"):
        file = export_int8(model, tmp_path / "level.onnx", images(), min_agreement=0.5)
    assert file.kept_float == ("mid.weight",)
    # Ranges that training moved at some level count for all layers that are called.
    assert model.runner.needs_data([1.0])
    with model.runner.training_level(1.0):
        model(images())
    assert not model.runner.needs_data([1.0])


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(1, 8, 3), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(input=self.stem(input=x).mean((2, 3)))
        return out


def test_layers_that_get_their_input_by_name_have_it_quantized():
    model = SubspaceModel(Named().eval(), images(), mode=Quantized(edge_bits=8, layer_bits={"*": 4}), subspace="point")
    model.eval().recalibrate([images()], [1.0])
    twin = copy.deepcopy(model.module)
    with torch.no_grad():
        for layer in (twin.stem, twin.head):
            layer.weight.copy_(rounded(layer.weight, 4))
        ranges = {name: value.unbind() for name, value in model.statistics[1.0].items()}
        x = twin.stem(fake_quantize(images(), *ranges["stem.input_range"], 4)).mean((2, 3))
        expected = twin.head(fake_quantize(x, *ranges["head.input_range"], 4))
        assert relative(model(images()), expected) < SAME_OPS
        assert relative(pickle.loads(pickle.dumps(model.materialize(1.0)))(images()), expected) < SAME_OPS


class InEvaluation(Net):
    """A layer that runs in evaluation only."""

    def __init__(self) -> None:
        super().__init__()
        self.extra = nn.Conv2d(8, 8, 1)

    def features(self, x: Tensor) -> Tensor:
        x = super().features(x)
        return x if self.training else x + 0.1 * self.extra(x)


def test_a_layer_that_training_never_runs_is_named_in_the_sanity_check(tmp_path):
    data = loader(digits(0, 32))
    whole = r"extra were never observed at 8 bits.*stays whole with Quantized\(layer_bits=\{'extra': 32\}\)"
    with pytest.raises(RuntimeError, match=whole):
        trainer(tmp_path, lcs(mode="quantized"), num_sanity_val_steps=1).fit(Module(InEvaluation()), data, data)
    mode = Quantized(layer_bits={"extra": 32})
    run = trainer(tmp_path, lcs(mode=mode), num_sanity_val_steps=1)
    run.fit(Module(InEvaluation()), data, data)
    assert "lcs/val_acc/alpha_100" in run.callback_metrics
