"""The order in memory of convolution weights: chosen by measurement, and nothing but the time shows it."""

import math

import pytest
import torch
from torch import nn

from lightning_lcs import SubspaceModel
from lightning_lcs.runtime import memory_format
from lightning_lcs.runtime.memory_format import layout_of
from tests.helpers import Chain, relative
from tests.unit.runtime.from_file import ALPHAS, TOLERANCE, Grouped, through_a_file, trained


@pytest.fixture
def file(tmp_path):
    through_a_file(trained(Chain(32, 48), 8), tmp_path)
    return tmp_path / "model.lcs"


class Flattened(nn.Module):
    """Maps of several pixels flattened for a linear layer: their order in memory must not show."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12)
        self.branches = nn.ModuleList([nn.Conv2d(12, 8, 3), nn.Conv2d(12, 4, 3)])
        self.after = nn.Conv2d(12, 6, 3, bias=False)
        self.head = nn.Linear(6 * 2 * 2, 5)

    def forward(self, x):
        x = self.norm(self.conv(x)).relu()
        x = torch.cat([branch(x) for branch in self.branches], 1).relu()  # a cut in two places
        return self.head(self.after(x).view(x.shape[0], -1))


@pytest.mark.parametrize(("subspace", "lines"), [("point", "norm"), ("line", "all")])
@pytest.mark.parametrize("network", [lambda: Chain(32, 48), Grouped, Flattened])
def test_levels_with_weights_channels_last_are_the_same(tmp_path, network, lines, subspace):
    model = trained(network(), 8, subspace, line={"parameters": lines})
    loaded, x = through_a_file(model, tmp_path, "channels_last"), torch.randn(3, 3, 8, 8)
    assert layout_of(loaded.parts[0]) == "channels_last"
    with torch.no_grad():
        for alpha in (*ALPHAS, 0.5, 0.0):
            loaded.set_alpha(alpha)
            with model.at_alpha(alpha):
                assert relative(loaded(x), model(x)) < TOLERANCE
                assert relative(loaded.materialize(alpha)(x), model(x)) < TOLERANCE
    loaded.save(tmp_path / "again.lcs")
    again = SubspaceModel.load(tmp_path / "again.lcs", layout="contiguous")
    assert layout_of(again.parts[0]) == "contiguous"
    again.set_alpha(0.0)
    assert relative(again(x), loaded(x)) < TOLERANCE


def test_the_layout_is_a_known_one_and_small_networks_are_not_timed(file):
    assert layout_of(SubspaceModel.load(file).parts[0]) == "contiguous"
    with pytest.raises(ValueError, match="layout='nhwc' is not one of 'auto', 'contiguous', 'channels_last'"):
        SubspaceModel.load(file, layout="nhwc")


@pytest.mark.parametrize("gain", [0.0, math.inf])
def test_the_faster_layout_is_taken(file, monkeypatch, gain):
    """With a gain that nothing reaches, and one that everything does."""
    monkeypatch.setattr(memory_format, "LEAST_MACS", 0)
    monkeypatch.setattr(memory_format, "GAIN", gain)
    loaded = SubspaceModel.load(file)
    assert layout_of(loaded.parts[0]) == ("channels_last" if gain else "contiguous")
