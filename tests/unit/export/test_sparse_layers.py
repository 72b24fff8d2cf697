"""Layers with sparse weights compute what the dense ones do, and are chosen by measurement alone."""

import copy
import pickle

import pytest
import timm
import torch
from torch import nn

from lightning_lcs import SubspaceModel, Unstructured
from lightning_lcs.export import sparse_layers
from lightning_lcs.export.sparse_layers import SparseLinear, SparsePointwise, use_sparse_layers
from tests.helpers import relative, scramble

TOLERANCE = 1e-5
NETWORKS = {"resnet50": {}, "mobilenetv3_small_050": {}, "vit_tiny_patch16_224": {"img_size": 32, "depth": 2}}


def level(name, sparsity=0.9):
    network = scramble(timm.create_model(name, num_classes=10, **NETWORKS[name]))
    mode = Unstructured(max_sparsity=sparsity, layer_density="uniform")
    model = SubspaceModel(network, mode=mode, subspace="point").eval()
    model.runner.evaluation.warns = False
    return model.materialize(0.0).eval()


def timed(monkeypatch, sparse, dense):
    """Let the clock say what it is told to."""
    monkeypatch.setattr(sparse_layers, "median_latencies_ms", lambda *_: {"sparse": sparse, "dense": dense})


def of_kind(module):
    return [path for path, child in module.named_modules() if isinstance(child, (SparseLinear, SparsePointwise))]


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_computes_the_same(monkeypatch, name):
    timed(monkeypatch, 0.5, 1.0)
    dense = level(name)
    sparse = copy.deepcopy(dense)
    x = torch.randn(2, 3, 32, 32)
    choices = use_sparse_layers(sparse, x)
    assert [choice.path for choice in choices if choice.sparse] == of_kind(sparse) != []
    assert all(choice.ratio == 0.5 and choice.sparsity > 0.85 for choice in choices)
    for batch in (1, 3):
        x = torch.randn(batch, 3, 32, 32)
        with torch.no_grad():
            expected = dense(x)
            assert expected.abs().max() > 0
            assert relative(sparse(x), expected) < TOLERANCE
    # A wrong weight would be seen.
    with torch.no_grad():
        sparse.get_submodule(choices[0].path).weight.values().mul_(1.1)
        assert relative(sparse(x), dense(x)) > TOLERANCE


@pytest.mark.parametrize("stride", [1, 2, (1, 3)])
@pytest.mark.parametrize("bias", [False, True])
def test_a_pointwise_convolution(stride, bias):
    layer = nn.Conv2d(6, 5, 1, stride=stride, bias=bias)
    x = torch.randn(3, 6, 7, 9)
    with torch.no_grad():
        layer.weight[torch.rand(layer.weight.shape) < 0.7] = 0.0
        assert relative(SparsePointwise(layer)(x), layer(x)) < TOLERANCE


@pytest.mark.parametrize("shape", [(6,), (4, 6), (2, 3, 4, 6)])
def test_a_linear_layer_of_any_shape(shape):
    layer = nn.Linear(6, 5)
    x = torch.randn(shape)
    with torch.no_grad():
        assert relative(SparseLinear(layer)(x), layer(x)) < TOLERANCE


def test_what_gains_nothing_stays_dense(monkeypatch):
    timed(monkeypatch, 0.9, 1.0)
    network = level("mobilenetv3_small_050")
    choices = use_sparse_layers(network, torch.randn(1, 3, 32, 32))
    assert choices
    assert not any(choice.sparse for choice in choices)
    assert not of_kind(network)


def test_what_is_dense_or_no_such_layer_is_not_measured(monkeypatch):
    timed(monkeypatch, 0.5, 1.0)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1, groups=2), nn.Conv2d(4, 4, 1, padding=1), nn.Conv2d(4, 4, 1)
    ).eval()
    with torch.no_grad():
        for layer in network[:3]:
            layer.weight.zero_()
    assert use_sparse_layers(network, torch.randn(1, 3, 8, 8)) == []

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 2)

        def forward(self, x):
            return self.attention(x, x, x)[0]

    attention = Attention().eval()
    nn.init.zeros_(attention.attention.out_proj.weight)
    assert use_sparse_layers(attention, torch.randn(2, 1, 4)) == []


def test_it_can_be_pickled(monkeypatch):
    timed(monkeypatch, 0.5, 1.0)
    network = level("vit_tiny_patch16_224")
    x = torch.randn(1, 3, 32, 32)
    use_sparse_layers(network, x)
    with torch.no_grad():
        assert relative(pickle.loads(pickle.dumps(network))(x), network(x)) < TOLERANCE


def test_a_network_in_training_is_refused():
    with pytest.raises(RuntimeError, match="eval"):
        use_sparse_layers(level("vit_tiny_patch16_224").train(), torch.randn(1, 3, 32, 32))
