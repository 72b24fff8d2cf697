"""A subspace model as plain data."""

import json

import pytest
import torch
from torch import nn

from lightning_lcs import Structured, SubspaceModel
from lightning_lcs.functional.statistics import statistics_drift
from lightning_lcs.reporting.run_summary import read_summary, write_summary
from tests.integration.support import Net


def images():
    return torch.randn(8, 1, 8, 8)


def model(mode="structured", subspace="line", net=None):
    made = SubspaceModel(Net() if net is None else net, images(), mode=mode, subspace=subspace)
    made.eval().recalibrate([images(), images()], 3)
    return made


@pytest.mark.parametrize("mode", ["structured", "unstructured", "quantized"])
@pytest.mark.parametrize("subspace", ["line", "point"])
def test_it_is_json_and_comes_back_whole(tmp_path, mode, subspace):
    summary = model(mode, subspace).describe()
    assert read_summary(write_summary(summary, tmp_path / "summary.json")) == summary
    assert summary["settings"]["mode"]["name"] == mode
    assert set(summary["endpoints"]) == ({"cosine", "distance"} if subspace == "line" else set())


def test_numbers_left_are_those_of_the_materialized_network():
    made = model()
    small = made.materialize(0.0)
    tensors = {k: v for k, v in small.state_dict().items() if "num_batches" not in k}
    plan = made.describe()["plan"]
    counted = sum(v.numel() for v in tensors.values()) + 2  # the batch norms' counters are in the plan
    assert plan["kept_numbers"] == counted
    left = {name: small for name, _, small in plan["compressed"]}
    for name, value in tensors.items():
        if name in left:
            assert left[name] == " \N{MULTIPLICATION SIGN} ".join(map(str, value.shape))


def test_what_stays_whole_is_named_with_the_reason():
    plan = model("unstructured").describe()["plan"]
    assert ["conv1.weight", "left out by the mode's options"] in plan["whole"]
    # floor(0.975 * 576) zeros
    assert plan["compressed"] == [
        [
            "conv2.weight",
            "8 \N{MULTIPLICATION SIGN} 8 \N{MULTIPLICATION SIGN} 3 \N{MULTIPLICATION SIGN} 3",
            "15 of 576 entries",
        ]
    ]
    kept = model(Structured(keep=("conv2",))).describe()["plan"]["whole"]
    assert any(what == "conv2.weight, dimension 0" and why.startswith("keep=") for what, why in kept)


def test_bits_are_named_in_quantized_mode():
    plan = model("quantized").describe()["plan"]
    assert {name: left for name, _, left in plan["compressed"]}["conv2.weight"] == "3 bits"
    assert plan["kept_numbers"] == plan["numbers"]


def test_drift_is_taken_on_the_channels_that_a_level_keeps():
    made = model()
    drift = dict(made.describe()["drift"])
    assert sorted(drift) == [0.0, 0.5]
    expected = []
    for name in ("norm1", "norm2"):
        norm = getattr(made.module, name)
        stored = [made.statistics[0.0][f"{name}.{leaf}"] for leaf in ("running_mean", "running_var")]
        kept = len(stored[0])
        assert kept == 2
        expected.append(statistics_drift(*stored, norm.running_mean[:kept], norm.running_var[:kept]))
    assert drift[0.0] == pytest.approx(float(torch.cat(expected).mean()))


def test_statistics_of_alpha_1_itself_have_not_drifted():
    made = model("unstructured")
    net = made.module
    made.statistics = {0.5: {k: v.clone() for k, v in net.named_buffers() if "running" in k}}
    assert dict(made.describe()["drift"]) == {0.5: 0.0}


def test_without_batch_norm_there_is_no_drift():
    made = SubspaceModel(Net(lambda c: nn.GroupNorm(1, c)), images(), mode="structured")
    assert made.describe()["drift"] == []


def test_another_version_or_file_is_refused(tmp_path):
    path = tmp_path / "summary.json"
    path.write_text(json.dumps({"version": 0}))
    with pytest.raises(ValueError, match="version 0"):
        read_summary(path)
    path.write_text("curve")
    with pytest.raises(ValueError, match="not a summary"):
        read_summary(path)
