"""Batch norms turned into norms without statistics."""

import copy

import pytest
import timm
import torch
from torch import nn

from lightning_lcs import SubspaceModel
from lightning_lcs.subspace.weights.norms import ConvertedNorm, convert_norms, group_count
from tests.helpers import relative
from tests.integration.support import Net

# The same operations on equal tensors, aligned otherwise in memory, by another path through the code.
SAME_OPS = 1e-5


@pytest.fixture
def images():
    return torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d])
@pytest.mark.parametrize("norm", ["instance", "group"])
def test_the_converted_norm_is_torchs_own(kind, norm):
    shape = {nn.BatchNorm1d: (2, 64, 9), nn.BatchNorm2d: (2, 64, 5, 5), nn.BatchNorm3d: (2, 64, 3, 3, 3)}[kind]
    batch = kind(64, eps=1e-3)
    with torch.no_grad():
        batch.weight.uniform_()
        batch.bias.uniform_()
    x = torch.randn(shape)
    net = nn.Sequential(copy.deepcopy(batch))
    convert_norms([net], norm, sliced=False)
    groups = 64 if norm == "instance" else 32
    expected = nn.functional.group_norm(x, groups, batch.weight, batch.bias, 1e-3)
    torch.testing.assert_close(net(x), expected, rtol=1e-5, atol=1e-5)  # float32, another order of sums
    assert list(net.state_dict()) == ["0.weight", "0.bias"]


def test_the_activation_in_a_timm_norm_stays():
    net = timm.create_model("efficientnet_b0", num_classes=3).eval()
    before = [child.act for child in net.modules() if hasattr(child, "running_mean") and hasattr(child, "act")]
    names = {name for name in net.state_dict() if "running" not in name and "num_batches" not in name}
    report = convert_norms([net], "group", sliced=True)
    converted = [child for child in net.modules() if isinstance(child, ConvertedNorm)]
    assert [child.act for child in converted] == before
    assert len(report) == len(converted) > 40
    assert set(net.state_dict()) == names
    assert net(torch.randn(2, 3, 64, 64)).shape == (2, 3)


@pytest.mark.parametrize(
    ("channels", "sliced", "groups"),
    [
        (64, False, 32),
        (16, False, 16),
        (48, False, 24),
        (7, False, 7),
        (64, True, 8),
        (512, True, 32),
        (8, True, 1),
        (24, True, 3),
    ],
)
def test_group_counts(channels, sliced, groups):
    assert group_count(channels, sliced) == groups
    assert channels % groups == 0


@pytest.mark.parametrize("norm", ["instance", "group"])
@pytest.mark.parametrize("mode", ["structured", "unstructured"])
def test_levels_need_no_statistics(images, norm, mode):
    model = SubspaceModel(Net(first=16, second=32), images, mode=mode, subspace="point", norm=norm).eval()
    assert not model.runner.has_batch_norm
    for alpha in (0.0, 0.5):
        with model.at_alpha(alpha), torch.no_grad():  # a warning would be an error
            assert relative(model(images), model.materialize(alpha)(images)) < SAME_OPS
    assert model.efficiency(0.0).params < model.efficiency(1.0).params / 3


@pytest.mark.parametrize(("name", "norm"), [("resnet10t", "instance"), ("mobilenetv2_050", "group")])
def test_narrow_widths_are_narrow_in_every_layer(name, norm):
    x = torch.randn(2, 3, 64, 64)
    kept = SubspaceModel(timm.create_model(name, num_classes=5), x, subspace="point").efficiency(0.0).params
    model = SubspaceModel(timm.create_model(name, num_classes=5), x, subspace="point", norm=norm)
    # Groups of 8 to 16 channels round a quarter of theirs.
    assert model.efficiency(0.0).params == pytest.approx(kept, rel=0.15)


def test_bad_input():
    with pytest.raises(ValueError, match="norm='layer'"):
        SubspaceModel(Net(), norm="layer")
    with pytest.raises(ValueError, match="needs a batch norm to replace"):
        SubspaceModel(nn.Sequential(nn.Linear(3, 3)), norm="group", subspace="line", line={"parameters": "all"})
    with pytest.raises(ValueError, match="itself a batch norm"):
        convert_norms([nn.BatchNorm2d(4)], "group", sliced=False)
