"""Recurrent layers: levels equal networks compressed by hand."""

import copy

import pytest
import torch
from torch import Tensor, nn

from lightning_lcs import Quantized, SubspaceModel, Unstructured
from lightning_lcs.export import load_bits, load_sparse, save_bits, save_sparse
from tests.helpers import relative, rounded
from tests.integration.compressed_by_hand import SAME_OPS, Recurrent, images, quantized_by_hand


class Cells(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.memory, self.head = nn.Conv2d(1, 8, 2, 2), nn.GRUCell(8, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for step in self.stem(x).flatten(2).unbind(2):
            state = self.memory(step, state)
        out: Tensor = self.head(state)
        return out


RECURRENT = {
    "lstm": lambda: Recurrent(nn.LSTM),
    "gru": lambda: Recurrent(nn.GRU, num_layers=2, bias=False),
    "rnn": lambda: Recurrent(nn.RNN, bidirectional=True),
    "projected": lambda: Recurrent(nn.LSTM, num_layers=2, proj_size=8, bidirectional=True),
    "cell": Cells,
}


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("kind", RECURRENT)
def test_a_recurrent_layer_is_quantized_as_by_hand(tmp_path, kind):
    model = SubspaceModel(RECURRENT[kind]().eval(), images(), mode=Quantized(), subspace="point").eval()
    model.recalibrate([images()], [0.0, 1.0])
    weights = {f"memory.{name}" for name, value in model.module.memory.named_parameters() if value.ndim == 2}
    assert weights == set(model.parts[0].compressed) - {"stem.weight", "head.weight"}
    for alpha in (0.0, 1.0):
        with torch.no_grad(), model.at_alpha(alpha):
            expected = quantized_by_hand(model, alpha)(images())
            assert relative(model(images()), expected) < SAME_OPS
            assert relative(model.materialize(alpha)(images()), expected) < SAME_OPS
            file = save_bits(model, tmp_path / "level.safetensors", alpha)
            assert relative(load_bits(file.path, RECURRENT[kind]())(images()), expected) < SAME_OPS
    with torch.no_grad():  # the network's own weights are as they were
        assert relative(model.module(images()), expected) > SAME_OPS


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("kind", RECURRENT)
def test_a_recurrent_layer_is_made_sparse_as_by_hand(tmp_path, kind):
    mode = Unstructured(layer_density="uniform", max_sparsity=0.75)
    model = SubspaceModel(RECURRENT[kind]().eval(), images(), mode=mode, subspace="point").eval()
    twin = copy.deepcopy(model.module)
    for name in model.parts[0].compressed:
        weight = twin.get_parameter(name)
        with torch.no_grad():
            weight.mul_(weight.abs() > weight.abs().flatten().sort().values[weight.numel() * 3 // 4 - 1])
    with torch.no_grad(), model.at_alpha(0.0):
        assert relative(model(images()), twin(images())) < SAME_OPS
        assert relative(model.materialize(0.0)(images()), twin(images())) < SAME_OPS
    file, small = save_sparse(model, tmp_path / "levels.safetensors", [0.0, 1.0]), RECURRENT[kind]().eval()
    load_sparse(file.path, small).set_alpha(0.0)
    assert relative(small(images()), twin(images())) < SAME_OPS
    # Three quarters of the multiplications of the recurrent layer, and nothing else.
    stem, head = 16 * 4 * 8, model.module.head.weight.numel()
    full, least = model.efficiency(1.0).macs, model.efficiency(0.0).macs
    assert least - stem - head == pytest.approx((full - stem - head) / 4, abs=1)


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("kind", RECURRENT)
def test_training_reaches_the_weights_of_a_recurrent_layer(kind, direct):
    model = SubspaceModel(RECURRENT[kind](), images(), mode=Quantized(edge_bits=32), subspace="point").train()
    twin = copy.deepcopy(model.module)
    with model.runner.training_level(0.0, direct=direct):
        loss = model(images()).square().mean()
        loss.backward()
    for name in model.parts[0].compressed:
        weight = twin.get_parameter(name)
        with torch.no_grad():
            weight.copy_(rounded(weight, 3))
    twin(images()).square().mean().backward()
    for ours, theirs in zip(model.module.parameters(), twin.parameters(), strict=True):
        assert relative(ours.grad, theirs.grad) < SAME_OPS
    copy.deepcopy(model.module)(images())  # no tensor of the level is left behind
