"""The file of every level: what comes back is what was written, and nothing else gets in."""

import json
import subprocess
import sys

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from lightning_lcs import SubspaceModel
from lightning_lcs.batchnorm import recalibrate
from lightning_lcs.channels.serial import graph_from_data, graph_to_data

# The loaded network is traced anew: the same ops on contiguous copies of the weights.
TOLERANCE = 1e-6


@pytest.fixture(scope="module")
def model() -> SubspaceModel:
    torch.manual_seed(0)
    network = timm.create_model("mobilenetv3_small_050", num_classes=5)
    made = SubspaceModel(network, torch.randn(2, 3, 32, 32), subspace="line", endpoint_start="independent")
    with torch.no_grad():
        for w0, _ in made.endpoint_pairs():
            w0.add_(0.1 * torch.randn_like(w0))
    recalibrate(made, [torch.randn(8, 3, 32, 32)], 5)
    return made.eval()


@pytest.fixture(scope="module")
def file(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("lcs") / "model.lcs"
    model.save(path)
    return path


def rewritten(file, path, change):
    with safe_open(file, "pt") as opened:
        header = json.loads(opened.metadata()["lightning_lcs"])
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    change(header)
    save_file(tensors, path, metadata={"lightning_lcs": json.dumps(header)})
    return path


def test_every_level_comes_back(model, file):
    loaded = SubspaceModel.load(file)
    x = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        for alpha in (0.0, 0.3, 0.5, 0.8, 1.0):
            with model.at_alpha(alpha), loaded.at_alpha(alpha):
                assert torch.allclose(model(x), loaded(x), rtol=TOLERANCE, atol=TOLERANCE)
            assert loaded.efficiency(alpha) == model.efficiency(alpha)
    assert loaded.nearest_level(0.3) == model.nearest_level(0.3) == 0.25


def test_a_loaded_file_can_be_saved_again(file, tmp_path):
    loaded = SubspaceModel.load(file)
    loaded.save(tmp_path / "again.lcs")
    again = SubspaceModel.load(tmp_path / "again.lcs")
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad(), loaded.at_alpha(0.25), again.at_alpha(0.25):
        assert torch.equal(loaded(x), again(x))


def test_another_image_size_runs(file):
    loaded = SubspaceModel.load(file)
    loaded.set_alpha(0.5)
    assert loaded(torch.randn(1, 3, 48, 64)).shape == (1, 5)


def test_a_new_process_needs_neither_lightning_nor_timm(file):
    code = (
        "import sys, torch; from lightning_lcs import SubspaceModel\n"
        f"net = SubspaceModel.load({str(file)!r}); net.set_alpha(0.35); net(torch.zeros(1, 3, 32, 32))\n"
        "heavy = {'lightning', 'pytorch_lightning', 'timm', 'wandb', 'torchmetrics'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("target", ["aten.load.default", "os.system", "aten.__class__.mro", "python.eval"])
def test_an_op_outside_the_list_is_refused(file, tmp_path, target):
    def change(header):
        next(node for node in header["graph"] if node["op"] == "call_function")["target"] = target

    with pytest.raises(ValueError, match="not allowed"):
        SubspaceModel.load(rewritten(file, tmp_path / "bad.lcs", change))


def test_text_that_is_no_name_is_refused(file, tmp_path):
    def change(header):
        header["graph"][0]["target"] = "x): import os #"

    with pytest.raises(ValueError, match="not allowed"):
        SubspaceModel.load(rewritten(file, tmp_path / "bad.lcs", change))


def test_another_version_is_refused_with_both_versions(file, tmp_path):
    with pytest.raises(ValueError, match=r"format 99.*reads 1"):
        SubspaceModel.load(rewritten(file, tmp_path / "new.lcs", lambda header: header.update(version=99)))


def test_a_damaged_or_foreign_file_is_refused(file, tmp_path):
    short = tmp_path / "short.lcs"
    short.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match="damaged"):
        SubspaceModel.load(short)
    foreign = tmp_path / "foreign.lcs"
    save_file({"a": torch.zeros(1)}, foreign)
    with pytest.raises(ValueError, match="not a lightning-lcs file"):
        SubspaceModel.load(foreign)
    with pytest.raises(FileNotFoundError, match=r"none\.lcs"):
        SubspaceModel.load(tmp_path / "none.lcs")


def test_a_network_never_run_cannot_be_saved_and_leaves_no_file(tmp_path):
    with pytest.raises(RuntimeError, match="example_inputs"):
        SubspaceModel(nn.Linear(3, 2), subspace="point").save(tmp_path / "model.lcs")
    assert list(tmp_path.iterdir()) == []


def test_graphs_survive_the_round_trip(model):
    graph = model.materialize(0.5).graph
    again = graph_from_data(json.loads(json.dumps(graph_to_data(graph))))
    assert [node.target for node in again.nodes] == [node.target for node in graph.nodes]
    assert graph_to_data(again) == graph_to_data(graph)
