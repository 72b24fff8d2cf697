"""What a mode leaves whole is said: in the report, and in a warning where it is much."""

import warnings

import pytest
import timm
import torch
from torch import nn

from lightning_lcs import SubspaceModel, Unstructured
from lightning_lcs.subspace.curves.curve import Efficiency
from lightning_lcs.subspace.weights.norms import ConvertedNorm
from tests.helpers import relative

# The same operations on equal tensors, aligned otherwise in memory, by another path through the code.
SAME_OPS = 1e-5


class Tables(nn.Module):
    """Most parameters in tables, whose weights no mode but the structured one could cut."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3)
        self.second = nn.Conv2d(8, 8, 3)
        self.table, self.codes = nn.Embedding(100, 8), nn.Parameter(torch.randn(64, 8))
        self.head = nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        steps = self.second(self.first(x)).mean((2, 3)) + self.table.weight[0] + self.codes[0]
        out: torch.Tensor = self.head(steps)
        return out


class Attending(nn.Module):
    """torch's own attention, which keeps its input projection as a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.hidden = nn.Linear(16, 16)
        self.head = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.hidden(self.attention(x, x, x)[0]).mean(1))
        return out


@pytest.mark.parametrize("mode", ["unstructured", "quantized"])
def test_a_network_that_stays_mostly_whole_warns_and_is_reported(mode: str) -> None:
    with pytest.warns(UserWarning, match=r"% of the parameters of Tables stay whole.*codes"):
        model = SubspaceModel(Tables(), mode=mode, subspace="point")
    report = model.report()
    for name, size in (("codes", "512"), ("table.weight", "800")):
        assert f"kept whole: {name}, {size} parameters (not the weight of a convolution, or of a linear," in report


def test_what_the_options_leave_out_is_reported_without_a_warning() -> None:
    net = timm.create_model("resnet10t", num_classes=10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = SubspaceModel(net, mode="unstructured", subspace="point")
        everything = SubspaceModel(net, mode=Unstructured(dense=()), subspace="point")
    assert "kept whole: fc.weight, 5,120 parameters (left out by the mode's options)" in model.report()
    assert "kept whole" not in everything.report()


def test_torchs_attention_is_made_sparse() -> None:
    x = torch.randn(2, 5, 16)
    mode = Unstructured(dense=(), layer_density="uniform")
    model = SubspaceModel(Attending(), x, mode=mode, subspace="point").eval()
    small = model.materialize(0.0)
    weight = small.get_parameter("attention.in_proj_weight")
    assert int((weight == 0).sum()) == int(0.975 * weight.numel())
    with model.at_alpha(0.0), torch.no_grad():
        assert relative(model(x), small(x)) < SAME_OPS


def test_macs_of_attention_are_not_taken_off_with_its_projection() -> None:
    x = torch.randn(2, 5, 16)
    model = SubspaceModel(Attending(), x, mode=Unstructured(dense=()), subspace="point").eval()
    full, least = model.efficiency(1.0), model.efficiency(0.0)
    assert isinstance(least, Efficiency)
    # Scores and mixing, 2 heads x 5 x 5 x 8 each, and the projection to 48: 5 x 16 x 48.
    attention = 2 * 2 * 5 * 5 * 8 + 5 * 16 * 48
    assert attention <= least.macs < full.macs


def test_the_report_names_the_norms_that_were_replaced() -> None:
    net = timm.create_model("mobilenetv3_small_050", num_classes=10)
    model = SubspaceModel(net, torch.randn(2, 3, 64, 64), norm="group")
    lines = [line for line in model.report().splitlines() if line.startswith("  norm replaced: ")]
    assert len(lines) == sum(isinstance(child, ConvertedNorm) for child in net.modules())
    assert "  norm replaced: bn1: 16, 2 groups" in lines


def test_synchronised_batch_norms_are_replaced_like_others() -> None:
    net = nn.SyncBatchNorm.convert_sync_batchnorm(timm.create_model("resnet10t", num_classes=10))
    model = SubspaceModel(net, torch.randn(2, 3, 64, 64), norm="instance")
    assert not model.runner.has_batch_norm


class Sorting(nn.Module):
    """Channels meet an operation that no rule covers: what it touches stays at full width."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 32, 3), nn.Conv2d(32, 8, 3), nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.b(self.a(x).sort(1).values).mean((2, 3)))
        return out


@pytest.mark.parametrize("first", ["below", "full", "efficiency", "materialize", "example", "checkpoint"])
def test_what_stays_at_full_width_is_told_once_whatever_comes_first(first: str) -> None:
    x = torch.randn(2, 3, 16, 16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state = SubspaceModel(Sorting(), x, subspace="point").subspace_state()

    def use() -> None:
        model = SubspaceModel(Sorting(), x if first == "example" else None, subspace="point").eval()
        if first == "checkpoint":
            model.load_subspace_state(state)
        if first == "full":
            model(x)
        if first in ("efficiency", "materialize"):
            model(x)
            getattr(model, first)(0.5)
        for _ in range(2):
            with model.at_alpha(0.5):
                model(x)

    with pytest.warns(UserWarning, match=r"of the parameters of Sorting stay whole") as told:
        use()
    assert len(told) == 1
