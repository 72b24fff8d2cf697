"""What is in a file, a file of one level, and timings of its levels."""

import math

import pytest
import timm
import torch

from lightning_lcs import Structured, SubspaceModel
from lightning_lcs.export.level_file import save_level
from lightning_lcs.export.level_times import machine, time_levels
from lightning_lcs.io.inspect import inspect_file
from lightning_lcs.subspace.curves.curve import CurvePoint
from tests.helpers import Chain, Mlp, Nested, relative, scramble

TOLERANCE = 1e-5  # relative to the largest output: batch norms are folded in both


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    torch.manual_seed(0)
    network = scramble(timm.create_model("mobilenetv3_small_050", num_classes=4))
    model = SubspaceModel(network, torch.randn(2, 3, 32, 32), subspace="line", line={"start": "independent"}).eval()
    model.recalibrate([torch.randn(8, 3, 32, 32)], [0.0, 0.5])
    curve = [
        CurvePoint(**vars(model.efficiency(alpha)), latency_ms=3.0, metrics={"val_acc": 0.5}) for alpha in (0.0, 0.5, 1)
    ]
    path = tmp_path_factory.mktemp("lcs") / "model.lcs"
    model.save(path, levels=curve, class_names=["a", "b", "c", "d"])
    return path


def test_a_summary_says_what_is_in_a_file(file):
    found = inspect_file(file)
    assert found.size_bytes == file.stat().st_size
    assert found.mode == Structured()
    assert found.subspace == "line"
    assert found.statistics == (0.0, 0.5)
    assert found.inputs == ((("batch", "3", "any (saved with 32)", "any (saved with 32)"), "float32"),)
    assert found.ops > 100
    assert found.class_names == ("a", "b", "c", "d")
    assert [level.name for level in found.levels] == ["small", "medium", "full"]
    assert sum(count for count, _ in found.tensors.values()) == found.sections


def test_a_summary_of_a_file_of_tensors_needs_no_module(tmp_path):
    model = SubspaceModel(Mlp(), torch.randn(2, 6), mode="unstructured", subspace="point")
    with model.at_alpha(0.5):
        model(torch.randn(2, 6))
    model.save(tmp_path / "m.lcs")
    found = inspect_file(tmp_path / "m.lcs")
    assert found.ops == 0
    assert found.inputs == ()
    assert len(found.levels) == 5


def test_a_damaged_file_has_no_summary(file, tmp_path):
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    (tmp_path / "bad.lcs").write_bytes(content)
    with pytest.raises(ValueError, match="checksum of the tensor"):
        inspect_file(tmp_path / "bad.lcs")


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_a_file_of_one_level_runs_as_the_level(file, tmp_path, alpha):
    model = SubspaceModel.load(file)
    made = save_level(model, alpha, tmp_path / "one.lcs")
    one, x = SubspaceModel.load(tmp_path / "one.lcs"), torch.randn(3, 3, 32, 32)
    assert (made.name, made.params) == (next(v.name for v in model.levels if v.alpha == alpha), one.levels[0].params)
    assert made.metrics == {"val_acc": 0.5}
    assert one.class_names == model.class_names
    assert (tmp_path / "one.lcs").stat().st_size <= file.stat().st_size
    with torch.no_grad():
        model.set_alpha(alpha)
        for other in (1.0, 0.2):
            one.set_alpha(other)
            assert relative(one(x), model(x)) < TOLERANCE
    assert one.efficiency(1.0).macs == model.efficiency(alpha).macs
    assert one(torch.randn(1, 3, 48, 40)).shape == (1, 4)


def test_a_file_of_one_level_of_a_model_that_was_never_saved(tmp_path):
    model = SubspaceModel(
        Chain(8, 12), torch.randn(2, 3, 8, 8), mode=Structured(min_width=0.5), subspace="point"
    ).eval()
    model.recalibrate([torch.randn(8, 3, 8, 8)], [0.0])
    made = save_level(model, 0.0, tmp_path / "one.lcs")
    assert made.name == "full"
    assert math.isnan(made.latency_ms)
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad(), model.at_alpha(0.0):
        assert relative(SubspaceModel.load(tmp_path / "one.lcs")(x), model(x)) < TOLERANCE


def test_only_structured_files_have_files_of_one_level(tmp_path):
    model = SubspaceModel(Mlp(), torch.randn(2, 6), mode="quantized", subspace="point")
    with pytest.raises(ValueError, match="structured"):
        save_level(model, 0.5, tmp_path / "one.lcs")
    assert list(tmp_path.iterdir()) == []


def test_timings_leave_the_level_and_cover_the_table(file):
    model = SubspaceModel.load(file)
    model.set_alpha(0.5)
    timings = time_levels(model, repeats=2, batch=3)
    assert model.alpha == 0.5
    assert [timing.level for timing in timings] == list(model.levels)
    assert all(min(t.latency_ms, t.switch_ms, t.copy_ms) > 0.0 for t in timings)
    assert "torch" in machine()
    for wrong in ({"repeats": 0}, {"batch": 0}):
        with pytest.raises(ValueError, match="at least 1"):
            time_levels(model, **wrong)
    with pytest.raises(ValueError, match="level table"):
        time_levels(SubspaceModel(Mlp(), torch.randn(2, 6), subspace="point"))


def test_networks_with_mappings_and_flags_are_timed_and_summed_up(tmp_path):
    batch, extra = {"image": torch.randn(2, 3, 8, 8), "table": torch.randn(2, 5)}, [torch.randn(2, 1)]
    model = SubspaceModel(Nested(), subspace="point").eval()
    model(batch, extra, squash=True)
    model.save(tmp_path / "m.lcs")
    assert [shape for shape, _ in inspect_file(tmp_path / "m.lcs").inputs] == [
        ("batch", "3", "8", "8"),
        ("batch", "5"),
        ("batch", "1"),
    ]
    assert all(timing.latency_ms > 0.0 for timing in time_levels(SubspaceModel.load(tmp_path / "m.lcs"), repeats=1))
