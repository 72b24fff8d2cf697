"""Levels as ONNX and torch.export files: each runs as its level, and one file of several levels holds weights once."""

import json

import numpy as np
import onnx
import pytest
import timm
import torch

from lightning_lcs import SubspaceModel
from lightning_lcs.cli.main import main
from lightning_lcs.export import onnx as deployed
from lightning_lcs.export.base import check_difference
from lightning_lcs.export.onnx import METADATA_KEY, export_onnx, session
from lightning_lcs.export.onnx_levels import LevelGraph, several_levels
from lightning_lcs.export.torch_export import export_torch
from tests.helpers import Chain, Mlp, relative, scramble

# Other kernels, and batch norms folded into convolutions.
TOLERANCE = 1e-4
SIZE = 32
NETWORKS = {
    "resnet10t": {},
    "test_efficientnet": {},  # squeeze and excitation, depthwise convolutions
    "vit_tiny_patch16_224": {"img_size": SIZE, "depth": 2},
}


def subspace(network, example, **options) -> SubspaceModel:
    model = SubspaceModel(scramble(network), example, **{"subspace": "point", **options}).eval()
    if model.runner.has_batch_norm:
        model.recalibrate([torch.randn(8, *example.shape[1:])], [0.0, 0.5])
    return model


def outputs(opened, x, **feed) -> torch.Tensor:
    name = opened.get_inputs()[0].name
    return torch.from_numpy(opened.run(None, {name: x.numpy(), **feed})[0])


def number(k) -> dict:
    return {"level": np.array(k, np.int64)}


@pytest.fixture(scope="module", params=NETWORKS)
def exported(request, tmp_path_factory):
    torch.manual_seed(0)
    network = timm.create_model(request.param, num_classes=10, **NETWORKS[request.param])
    model = subspace(network, torch.randn(2, 3, SIZE, SIZE))
    return model, export_onnx(model, tmp_path_factory.mktemp("onnx"), [1.0, 0.0])


def test_every_file_runs_as_its_level_at_any_batch_size(exported):
    model, files = exported
    assert [file.path.name for file in files] == ["alpha_0.onnx", "alpha_1.onnx", "levels.onnx"]
    assert [file.alphas for file in files] == [(0.0,), (1.0,), (0.0, 1.0)]
    *singles, several = [session(file.path) for file in files]
    for batch in (1, 2, 5):
        x = torch.randn(batch, 3, SIZE, SIZE)
        results = []
        for k, (alpha, single) in enumerate(zip((0.0, 1.0), singles, strict=True)):
            with torch.no_grad(), model.at_alpha(alpha):
                expected = model(x)
            results.append(outputs(several, x, **number(k)))
            assert relative(outputs(single, x), expected) < TOLERANCE
            assert relative(results[-1], expected) < TOLERANCE
        # That the levels differ at all.
        assert relative(results[0], results[1]) > 0.01


def test_weights_of_several_levels_stand_in_the_file_once(exported):
    _, (small, large, several) = exported
    assert small.size_bytes < 0.2 * large.size_bytes
    statistics_and_nodes = 0.12 * small.size_bytes + 130_000
    assert several.size_bytes < large.size_bytes + statistics_and_nodes


def test_a_number_beyond_the_levels_runs_the_nearest_one(exported):
    several = session(exported[1][-1].path)
    x = torch.randn(2, 3, SIZE, SIZE)
    assert torch.equal(outputs(several, x, **number(-3)), outputs(several, x, **number(0)))
    assert torch.equal(outputs(several, x, **number(9)), outputs(several, x, **number(1)))


def test_the_file_says_which_levels_it_holds(exported):
    *_, several = exported[1]
    properties = {entry.key: entry.value for entry in onnx.load(several.path).metadata_props}
    assert json.loads(properties[METADATA_KEY]) == {"alphas": [0.0, 1.0]}


def test_more_levels_than_two_and_levels_between_the_stored_ones(tmp_path):
    model = subspace(Chain(32, 48), torch.randn(2, 3, 8, 8))
    files = export_onnx(model, tmp_path, [0.0, 0.1, 0.45, 0.5, 0.9, 1.0])
    assert files[-1].alphas == (0.0, 0.5, 1.0)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(file.path.name for file in files)


def test_the_largest_level_need_not_be_the_full_one(tmp_path):
    model = subspace(timm.create_model("vit_tiny_patch16_224", img_size=16, depth=1), torch.randn(2, 3, 16, 16))
    small, large, several = export_onnx(model, tmp_path, [0.0, 0.5])
    assert several.size_bytes < large.size_bytes + 0.1 * small.size_bytes + 30_000


def test_a_line_shares_what_does_not_lie_on_it(tmp_path):
    size = {}
    for lies in ("norm", "all"):
        options = {"subspace": "line", "line": {"parameters": lies, "start": "independent"}}
        model = subspace(Chain(64, 96), torch.randn(2, 3, 8, 8), **options)
        *singles, several = export_onnx(model, tmp_path / lies, [0.5, 1.0])
        size[lies] = several.size_bytes, sum(file.size_bytes for file in singles)
    assert size["norm"][0] < 0.8 * size["norm"][1]
    assert size["all"][0] > 0.95 * size["all"][1]


@pytest.mark.parametrize("mode", ["unstructured", "quantized"])
def test_the_other_modes(tmp_path, mode):
    model = SubspaceModel(Mlp(96), mode=mode, subspace="point").eval()
    x = torch.randn(4, 6)
    model.recalibrate([x], [0.0, 0.5, 1.0])
    with model.runner.training_level(1.0), model.runner.training_level(0.0), torch.no_grad():
        model(x)
    files = export_onnx(model, tmp_path, [0.0, 0.5])
    several = session(files[-1].path)
    for k, alpha in enumerate(files[-1].alphas):
        with torch.no_grad(), model.at_alpha(alpha):
            assert relative(outputs(several, x, **number(k)), model(x)) < TOLERANCE


def test_sparse_levels_of_a_point_share_their_weights(tmp_path):
    network = timm.create_model("resnet10t", num_classes=10)
    model = SubspaceModel(network, torch.randn(2, 3, SIZE, SIZE), mode="unstructured", subspace="point").eval()
    model.parts[0].network.remember((torch.randn(2, 3, SIZE, SIZE),), {})
    model.runner.evaluation.warns = False
    *singles, several = export_onnx(model, tmp_path, [0.0, 1.0])
    assert several.size_bytes < 0.55 * sum(file.size_bytes for file in singles)


@pytest.mark.parametrize("name", ["resnet10t", "vit_tiny_patch16_224"])
def test_torch_programs(tmp_path, name):
    model = subspace(timm.create_model(name, num_classes=10, **NETWORKS[name]), torch.randn(2, 3, SIZE, SIZE))
    files = export_torch(model, tmp_path, [0.0, 1.0])
    assert [file.path.name for file in files] == ["alpha_0.pt2", "alpha_1.pt2"]
    for file in files:
        program = torch.export.load(file.path).module()
        for batch in (1, 4):
            x = torch.randn(batch, 3, SIZE, SIZE)
            with torch.no_grad(), model.at_alpha(file.alphas[0]):
                assert relative(program(x), model(x)) < TOLERANCE


def test_a_file_that_computes_something_else_is_an_error_and_nothing_stays(tmp_path, monkeypatch):
    model = subspace(Chain(), torch.randn(2, 3, 8, 8))
    whole = deployed.onnx_of

    def of_another_level(model, network):
        return whole(model, model.materialize(0.5))

    monkeypatch.setattr(deployed, "onnx_of", of_another_level)
    with pytest.raises(RuntimeError, match="differs from the level"):
        export_onnx(model, tmp_path / "new", [0.5, 1.0])
    assert not list(tmp_path.iterdir())


def test_control_flow_of_a_network_s_own_is_named():
    graph = onnx.helper.make_graph([], "empty", [], [])
    choice = onnx.helper.make_node("If", ["x"], ["y"], then_branch=graph, else_branch=graph)
    level = LevelGraph(onnx.helper.make_model(onnx.helper.make_graph([choice], "level", [], [])), {})
    with pytest.raises(ValueError, match=r"control flow of its own \(If\).*several=False"):
        several_levels([level, level])


def test_not_a_number_is_a_difference():
    with pytest.raises(RuntimeError, match="differs"):
        check_difference(float("nan"), "a file")


@pytest.mark.parametrize("export", [export_onnx, export_torch])
@pytest.mark.parametrize(("alphas", "said"), [([], "alphas is empty"), ([0.5, 1.5], r"alpha=1\.5 is not in \[0, 1\]")])
def test_bad_levels(tmp_path, export, alphas, said):
    with pytest.raises(ValueError, match=said):
        export(subspace(Chain(), torch.randn(2, 3, 8, 8)), tmp_path / "new", alphas)
    assert not list(tmp_path.iterdir())


def test_a_network_never_run_is_an_error(tmp_path):
    with pytest.raises(RuntimeError, match="example_inputs"):
        export_onnx(SubspaceModel(Mlp(), subspace="point").eval(), tmp_path / "new", [0.5])
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", ["onnx", "torch"])
def test_the_command(tmp_path, capsys, kind):
    subspace(Chain(16, 24), torch.randn(2, 3, 8, 8)).save(tmp_path / "model.lcs")
    given = ["--format", kind, "--output", str(tmp_path / "out"), "--alphas", "[0, 1]"]
    main(["export", str(tmp_path / "model.lcs"), *given])
    said = capsys.readouterr().out
    for path in (tmp_path / "out").iterdir():
        assert str(path) in said
    assert len(list((tmp_path / "out").iterdir())) == (3 if kind == "onnx" else 2)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_command_without_a_file(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["export", str(tmp_path / "none.lcs")])
    assert "none.lcs does not exist" in capsys.readouterr().err
