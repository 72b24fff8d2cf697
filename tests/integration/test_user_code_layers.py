"""Layers of other kinds than plain convolutions and linear layers: levels equal networks compressed by hand."""

import copy

import pytest
import torch
from torch import Tensor, nn

from lightning_lcs import Quantized, SubspaceModel, Unstructured
from lightning_lcs.export import load_bits, save_bits
from lightning_lcs.functional.quantization import fake_quantize, value_range
from tests.helpers import relative

# The same operations on equal tensors, aligned otherwise in memory, by another path through the code.
SAME_OPS = 1e-5


def images(count: int = 6) -> Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))


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
    model = SubspaceModel(net, images(), mode=Quantized(per_channel=True), subspace="point").eval()
    model.recalibrate([images()], [0.0, 1.0])
    own, inputs, outputs = net.up.weight.detach(), 8 // groups, 12 // groups
    for alpha, bits in ((0.0, 3), (1.0, 8)):
        expected = own.clone()
        for group in range(groups):
            for output in range(outputs):
                kernel = own[group * inputs : (group + 1) * inputs, output]
                low, high = kernel.min(), kernel.max()
                expected[group * inputs : (group + 1) * inputs, output] = fake_quantize(kernel, low, high, bits)
        assert torch.equal(model.materialize(alpha).up.weight, expected)
        again = load_bits(save_bits(model, tmp_path / "level.safetensors", alpha).path, Upsampling(groups))
        assert torch.equal(again.up.weight, expected)
    file = save_bits(model, tmp_path / "level.safetensors", 0.0)
    assert file.bits == {"stem": 8, "up": 3, "head": 8}
    # A scale and a zero point for each of the 8 + 12 + 4 outputs.
    integers = net.stem.weight.numel() + net.head.weight.numel() + -(-own.numel() * 3 // 8)
    assert model.efficiency(0.0).size_bytes == integers + 5 * 24 + 4 * 24


def test_training_quantizes_a_transposed_convolution_per_output_channel():
    model = SubspaceModel(Upsampling(2), images(), mode=Quantized(per_channel=True), subspace="point").train()
    with model.runner.training_level(0.0, strength=0.5):
        loss = model(images()).square().mean()
        loss.backward()
    twin = copy.deepcopy(model.module)
    twin.zero_grad()
    with torch.no_grad():
        for layer, bits in ((twin.stem, 8), (twin.head, 8)):
            layer.weight.copy_(fake_quantize(layer.weight, *value_range(layer.weight, per_channel=True), bits))
        for output in range(12):
            group, own = divmod(output, 6)
            kernel = twin.up.weight[4 * group : 4 * group + 4, own]
            kernel.copy_(fake_quantize(kernel, kernel.min(), kernel.max(), 3))
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
