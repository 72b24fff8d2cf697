"""The file of every level: what comes back is what was written, and nothing else gets in."""

import json
import pickle
import subprocess
import sys
from collections import OrderedDict

import pytest
import timm
import torch
from safetensors import safe_open
from torch import nn
from torch.utils._pytree import register_pytree_node

from lightning_lcs import Structured, SubspaceModel
from lightning_lcs.io.graph_json import network_from_data, network_to_data
from lightning_lcs.subspace.curves.curve import CurvePoint
from tests.helpers import Chain, Lambda, Nested, relative, scramble

# The same ops, with batch norms folded into convolutions: relative to the largest value.
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def model() -> SubspaceModel:
    torch.manual_seed(0)
    network = timm.create_model("mobilenetv3_small_050", num_classes=5)
    made = SubspaceModel(network, torch.randn(2, 3, 32, 32), subspace="line", line={"start": "independent"})
    with torch.no_grad():
        for w0, _ in made.endpoint_pairs():
            w0.add_(0.1 * torch.randn_like(w0))
    made.recalibrate([torch.randn(8, 3, 32, 32)], 5)
    return made.eval()


@pytest.fixture(scope="module")
def file(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("lcs") / "model.lcs"
    model.save(path)
    return path


def test_every_level_comes_back(model, file):
    loaded = SubspaceModel.load(file)
    x = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        for alpha in (0.0, 0.3, 0.5, 0.8, 1.0):
            with model.at_alpha(alpha), loaded.at_alpha(alpha):
                assert relative(loaded(x), model(x)) < TOLERANCE
            assert loaded.efficiency(alpha) == model.efficiency(alpha)
    assert loaded.nearest_level(0.3) == model.nearest_level(0.3) == 0.25


def test_a_loaded_file_can_be_saved_again(file, tmp_path):
    loaded = SubspaceModel.load(file)
    loaded.save(tmp_path / "again.lcs")
    again = SubspaceModel.load(tmp_path / "again.lcs")
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad(), loaded.at_alpha(0.25), again.at_alpha(0.25):
        assert relative(loaded(x), again(x)) < TOLERANCE


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


def test_a_network_never_run_cannot_be_saved_and_leaves_no_file(tmp_path):
    with pytest.raises(RuntimeError, match="example_inputs"):
        SubspaceModel(nn.Linear(3, 2), subspace="point").save(tmp_path / "model.lcs")
    assert list(tmp_path.iterdir()) == []


def test_networks_survive_the_round_trip(model):
    network = model.parts[0].network
    program = network.in_mode(False)
    data = json.loads(json.dumps(network_to_data(program, network.plan)))
    again, plan = network_from_data(data, list(program.trace.constants.values()))
    assert again.names == program.names
    assert network_to_data(again, plan) == data
    for width in (0.25, 0.6, 1.0):
        mine, theirs = network.plan.selection(width), plan.selection(width)
        assert all(mine.of(name) == theirs.of(name) for name in program.names)


def test_generated_code_holds_no_text_of_the_file(file):
    network = SubspaceModel.load(file).parts[0].network
    code = network.in_mode(False)._forward.__self__.code
    words = {part for name in network.in_mode(False).names for part in name.split(".")}
    assert not [word for word in words if len(word) > 4 and word not in ("weight",) and word in code]
    names = {node.name for node in network.in_mode(False).trace.graph.nodes if node.op != "output"}
    assert names == {f"n{number}" for number in range(len(names))}


def test_safetensors_reads_the_payload(model, file):
    with safe_open(file, "pt") as opened:
        assert json.loads(opened.metadata()["lightning_lcs"])["version"] == 3
        tensor = opened.get_tensor("parameter.conv_stem.weight")
    assert torch.equal(tensor, model.module.conv_stem.weight)


def test_the_file_holds_no_pickle_and_nothing_loads_one(file, monkeypatch):
    def refused(*args, **kwargs):
        raise AssertionError("unpickled")

    for module, name in ((torch, "load"), (pickle, "load"), (pickle, "loads"), (pickle, "Unpickler")):
        monkeypatch.setattr(module, name, refused)
    SubspaceModel.load(file)


def test_names_classes_and_measurements_come_back(model, tmp_path):
    curve = [
        CurvePoint(**vars(model.efficiency(alpha)), latency_ms=1.0 + alpha, metrics={"val_acc": 0.5 + alpha / 4})
        for alpha in (0.0, 0.5, 1.0)
    ]
    model.save(tmp_path / "m.lcs", levels=curve, class_names=["a", "b", "c", "d", "ü"])
    loaded = SubspaceModel.load(tmp_path / "m.lcs")
    assert [level.name for level in loaded.levels] == ["small", "medium", "full"]
    named = {"name": "", "weights": loaded.runner.fingerprint()}
    assert [vars(level) | {"name": ""} for level in loaded.levels] == [vars(point) | named for point in curve]
    assert loaded.class_names == ("a", "b", "c", "d", "ü")
    assert loaded.set_level("medium").alpha == loaded.alpha == 0.5
    assert loaded.fit_budget(latency_ms=1.2).name == "small"
    assert loaded.fit_budget(accuracy=0.6).name == "medium"
    with pytest.raises(ValueError, match=r"latency_ms <= 0\.5.*'small' with latency_ms=1"):
        loaded.fit_budget(latency_ms=0.5)
    assert loaded.alpha == 0.5
    # A model from a file brings its table to the next file.
    loaded.save(tmp_path / "again.lcs")
    assert SubspaceModel.load(tmp_path / "again.lcs").levels == loaded.levels


def test_a_curve_of_another_model_is_refused_and_no_file_is_left(model, tmp_path):
    point = CurvePoint(**{**vars(model.efficiency(0.5)), "params": 3}, latency_ms=1.0, metrics={})
    with pytest.raises(ValueError, match=r"alpha=0\.5 has params=3"):
        model.save(tmp_path / "m.lcs", levels=[point])
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_old_file_and_no_scratch(file, tmp_path):
    target = tmp_path / "model.lcs"
    target.write_bytes(file.read_bytes())
    before = target.read_bytes()
    code = (
        "import resource, sys; from lightning_lcs import SubspaceModel\n"
        f"net = SubspaceModel.load({str(file)!r})\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        f"try:\n    net.save({str(target)!r})\nexcept OSError as error:\n    sys.exit(7)\n"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 7
    assert target.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["model.lcs"]


def test_a_file_replaced_while_it_is_open_changes_nothing(model, file, tmp_path):
    target = tmp_path / "model.lcs"
    target.write_bytes(file.read_bytes())
    loaded, x = SubspaceModel.load(target), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        before = loaded(x)
        model.save(target, class_names=["other"])
        assert torch.equal(loaded(x), before)


def test_sizes_that_the_graph_does_not_fit_are_refused(tmp_path):
    """The number of pixels is a constant of the graph: another size would give another result in silence."""
    conv = nn.Conv2d(3, 8, 3, padding=1)
    network = Lambda(
        lambda m, x: m.head(m.conv(x).relu().sum((2, 3)) / (x.shape[2] * 0.25)), conv=conv, head=nn.Linear(8, 3)
    )
    SubspaceModel(network, torch.randn(2, 3, 16, 16), subspace="point").save(tmp_path / "m.lcs")
    loaded = SubspaceModel.load(tmp_path / "m.lcs")
    assert loaded(torch.randn(5, 3, 16, 16)).shape == (5, 3)
    with pytest.raises(ValueError, match=r"shape \[1, 3, 20, 16\].*saved for \['batch', 3, 16, 16\]"):
        loaded(torch.randn(1, 3, 20, 16))


def test_channels_chosen_by_scale_come_back(tmp_path):
    network = scramble(Chain(16, 24))
    model = SubspaceModel(network, torch.randn(2, 3, 8, 8), mode=Structured(select="scale"), subspace="point").eval()
    model.recalibrate([torch.randn(8, 3, 8, 8)], 3)
    model.save(tmp_path / "m.lcs")
    loaded, x = SubspaceModel.load(tmp_path / "m.lcs"), torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        for alpha in (0.0, 0.5):
            with model.at_alpha(alpha), loaded.at_alpha(alpha):
                assert relative(loaded(x), model(x)) < 1e-5


@pytest.mark.skipif(
    torch.__version__ < "2.14",
    reason="torch.export 2.9.1 takes no keywords of a forward(*args, **kwargs), as Lambda's is",
)
def test_keyword_arguments_and_nested_results_come_back(tmp_path):
    def forward(module, x, *, scale):
        y = module.a(x).relu()
        return {"logits": module.b(y) * scale, "pair": (y.mean(1), [scale])}

    network = Lambda(forward, a=nn.Linear(6, 16), b=nn.Linear(16, 3))
    model = SubspaceModel(network, subspace="point").eval()
    x, scale = torch.randn(2, 6), torch.randn(2, 1)
    with torch.no_grad(), model.at_alpha(0.3):
        expected = model(x, scale=scale)
        model.save(tmp_path / "m.lcs")
        loaded = SubspaceModel.load(tmp_path / "m.lcs")
        loaded.set_alpha(0.3)
        given = loaded(x, scale=scale)
    assert list(given) == ["logits", "pair"]
    assert isinstance(given["pair"], tuple)
    torch.testing.assert_close(given, expected)
    for made in (model.materialize(0.3), loaded.materialize(0.3)):
        torch.testing.assert_close(made(x, scale=scale), expected)
    with pytest.raises(ValueError, match=r"saved for calls as \('tensor', scale='tensor'\), not \('tensor'\)"):
        loaded(x)


def test_mappings_lists_and_settings_among_the_arguments(tmp_path):
    batch, extra = {"image": torch.randn(3, 3, 8, 8), "table": torch.randn(3, 5)}, [torch.randn(3, 1)]
    reordered = {"table": batch["table"], "image": batch["image"]}
    model = SubspaceModel(Nested(), subspace="point").eval()
    with torch.no_grad(), model.at_alpha(0.3):
        expected = model(batch, extra, squash=True)
        model.save(tmp_path / "m.lcs")
        loaded = SubspaceModel.load(tmp_path / "m.lcs")
        loaded.set_alpha(0.3)
        small = model.materialize(0.3)
        copies = (loaded, loaded.materialize(0.3), small, pickle.loads(pickle.dumps(small)))
        copies += (torch.export.export(small, (batch, extra), {"squash": True}).module(),)
        for run in copies:
            torch.testing.assert_close(run(batch, extra, squash=True), expected)
        for run in copies[:-1]:  # torch.export holds to the order that it saw
            torch.testing.assert_close(run(reordered, extra, squash=True), expected)
        with pytest.raises(ValueError, match="argument 3 is False, and the network was saved with True"):
            loaded(batch, extra, squash=False)
        with pytest.raises(AssertionError, match="traced with squash=True"):
            small(batch, extra, squash=False)
        with pytest.raises(ValueError, match=r"not \({'image': 'tensor'}, \['tensor'\], squash=True\)"):
            loaded({"image": batch["image"]}, extra, squash=True)


def test_a_tensor_is_no_mapping_of_one(tmp_path):
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))

        def forward(self, batch):
            return self.net(batch["x"])

    x = torch.randn(2, 6)
    model = SubspaceModel(Wrapped(), {"x": x}, subspace="point").eval()
    model.save(tmp_path / "m.lcs")
    loaded = SubspaceModel.load(tmp_path / "m.lcs")
    assert relative(loaded({"x": x}), model({"x": x})) < TOLERANCE
    with pytest.raises(ValueError, match=r"saved for calls as \({'x': 'tensor'}\), not \('tensor'\)"):
        loaded(x)


def test_tied_parameters_are_one_again(tmp_path):
    a = nn.Linear(8, 8)
    network = Lambda(lambda m, x: m.c(m.b(m.a(x).relu()).relu()), a=a, b=nn.Linear(8, 8), c=nn.Linear(8, 2))
    network.b.weight = network.a.weight
    model = SubspaceModel(network, torch.randn(2, 8), subspace="line", line={"parameters": "all"}).eval()
    model.save(tmp_path / "m.lcs")
    loaded, x = SubspaceModel.load(tmp_path / "m.lcs"), torch.randn(2, 8)
    with torch.no_grad(), model.at_alpha(0.4), loaded.at_alpha(0.4):
        assert relative(loaded(x), model(x)) < TOLERANCE


def test_a_mapping_of_results_comes_back_as_a_dictionary(tmp_path):
    # What torchvision's segmentation networks return.
    net = Lambda(
        lambda m, x: OrderedDict(out=m.head(m.a(x).relu()), aux=m.a(x).mean((1, 2, 3))),
        a=nn.Conv2d(3, 8, 1), head=nn.Conv2d(8, 2, 1),
    ).eval()  # fmt: skip
    x = torch.randn(2, 3, 4, 4)
    SubspaceModel(net, x, subspace="point").save(tmp_path / "model.lcs")
    found, expected = SubspaceModel.load(tmp_path / "model.lcs")(x), net(x)
    assert list(found) == ["out", "aux"]
    assert all(relative(found[key], expected[key]) < TOLERANCE for key in expected)


class Result(OrderedDict):
    """What networks of Hugging Face's kind return: a mapping with attributes."""

    __getattr__ = OrderedDict.__getitem__


register_pytree_node(
    Result, lambda r: (list(r.values()), list(r)), lambda values, keys: Result(zip(keys, values, strict=True))
)


class LossInside(nn.Module):
    """Computes its loss when it is given labels; a mask of two others is among its ops."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3)), nn.Linear(16, 4)

    def forward(self, pixels, labels=None):
        seen = self.body(pixels).masked_fill((pixels[:, :1, 2:-2, 2:-2] > 2) & (pixels[:, 1:2, 2:-2, 2:-2] > 2), 0.0)
        logits = self.head(seen.mean((2, 3)))
        loss = {} if labels is None else {"loss": nn.functional.cross_entropy(logits, labels)}
        return Result(**loss, logits=logits)


def test_a_network_with_its_loss_inside_is_saved_for_calls_without_labels(tmp_path):
    x, labels = torch.randn(3, 3, 8, 8), torch.tensor([0, 1, 2])
    model = SubspaceModel(LossInside(), subspace="point").train()
    with model.at_alpha(0.3):
        model(pixels=x, labels=labels).loss.backward()
    model.eval().set_alpha(0.3)
    with pytest.raises(ValueError, match=r"cross_entropy_loss.*set_example_inputs"):
        model.save(tmp_path / "m.lcs")
    model.set_example_inputs(pixels=x[:1])
    model.save(tmp_path / "m.lcs")
    loaded = SubspaceModel.load(tmp_path / "m.lcs")
    loaded.set_alpha(0.3)
    with torch.no_grad():
        expected = model(pixels=x).logits
        assert relative(loaded(pixels=x)["logits"], expected) < TOLERANCE
        assert relative(model.materialize(0.3)(pixels=x)["logits"], expected) < TOLERANCE
    with pytest.raises(ValueError, match=r"saved for calls as \(pixels='tensor'\)"):
        loaded.set_example_inputs(pixels=x, labels=labels)
    assert list(loaded(pixels=x)) == ["logits"]


def test_example_inputs_of_modes_that_trace_nothing():
    x = torch.randn(3, 3, 8, 8)
    model = SubspaceModel(LossInside(), mode="unstructured", subspace="point").eval()
    model(pixels=x, labels=torch.tensor([0, 1, 2]))
    with_loss = model.efficiency(1.0)
    model.set_example_inputs(pixels=x)
    assert model.efficiency(1.0) == with_loss
    assert [(args, list(kwargs)) for args, kwargs in [model.parts[0].network.example_inputs()]] == [((), ["pixels"])]
