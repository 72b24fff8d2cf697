"""Gradient checkpointing: parts of a network that run again in the backward run at the level of the forward."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from tests.integration.support import Module, fitted, small_callback

# torch says so wherever a network with the older kind runs without gradients.
pytestmark = pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning")
# The same sums in the same order; a batch norm that runs again may differ by rounding.
TOLERANCE = 1e-6


class Blocks(nn.Module):
    """Three layers, of which the middle ones run again in the backward."""

    def __init__(self, how, norm):
        super().__init__()
        self.how = how
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), norm(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU())
        self.head = nn.Linear(8, 10)

    def forward(self, x):
        x = self.stem(x)
        x = self.block(x) if self.how is None else checkpoint(self.block, x, use_reentrant=self.how == "older")
        return self.head(x.mean((2, 3)))


class Around(Module):
    """A step that has the whole network run again."""

    def training_step(self, batch, batch_idx):
        images = batch[0].clone().requires_grad_(True)
        return F.cross_entropy(checkpoint(self.net, images, use_reentrant=True), batch[1])


def weights(make, tmp_path, **options):
    return dict(fitted(make, tmp_path, small_callback(**options), epochs=1).net.named_parameters())


def assert_same(one, other):
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=0.0, atol=TOLERANCE)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, nn.Identity])
@pytest.mark.parametrize("how", ["newer", "older"])
@pytest.mark.parametrize("sampler", [[0.0, 1.0], [0.0], "uniform_draws"])
@pytest.mark.parametrize("mode", ["unstructured", "quantized"])
def test_inside_of_the_network(tmp_path, mode, sampler, how, norm):
    options = {"mode": mode, "sampling": {"sampler": sampler, "warmup": 0}}
    found = [weights(lambda how=each: Module(Blocks(how, norm)), tmp_path, **options) for each in (None, how)]
    assert_same(*found)


@pytest.mark.parametrize("mode", ["structured", "unstructured", "quantized"])
@pytest.mark.parametrize("sampler", [[0.0, 1.0], [0.3]])
def test_around_the_network(tmp_path, mode, sampler):
    options = {"mode": mode, "sampling": {"sampler": sampler} | ({} if mode == "structured" else {"warmup": 0})}
    makes = (lambda: Module(Blocks(None, nn.Identity)), lambda: Around(Blocks(None, nn.Identity)))
    assert_same(*[weights(make, tmp_path, **options) for make in makes])
