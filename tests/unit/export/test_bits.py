"""Files of a quantized level: the level that was trained, bit for bit, in as many bits as its weights have."""

import json

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from lightning_lcs import Quantized, SubspaceModel
from lightning_lcs.export.bits import load_bits, save_bits
from tests.helpers import Chain, Mlp, relative, scramble

# The same operations on equal tensors, aligned otherwise in memory, by another path through the code.
SAME_OPS = 1e-5
NETWORKS = {"resnet18": {}, "mobilenetv3_small_050": {}, "vit_tiny_patch16_224": {"img_size": 32, "depth": 2}}


def build(name):
    return timm.create_model(name, num_classes=10, **NETWORKS[name])


def quantized(network, shape=(4, 3, 32, 32), subspace="point", norm="keep", **options):
    lines = {"line": {"parameters": "all", "start": "independent"}} if subspace == "line" else {}
    model = SubspaceModel(scramble(network), mode=Quantized(**options), subspace=subspace, norm=norm, **lines).eval()
    model.recalibrate([torch.randn(shape)], [model.mode.alpha(bits) for bits in (3, 8)])
    return model


@pytest.mark.parametrize(("options", "alpha"), [({}, 0.0), ({"per_channel": True, "edge_bits": 32}, 0.0), ({}, 1.0)])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_file_is_its_level_bit_for_bit(tmp_path, name, options, alpha):
    model, x = quantized(build(name), **options), torch.randn(2, 3, 32, 32)
    file = save_bits(model, tmp_path / "level.safetensors", alpha)
    again = load_bits(file.path, build(name))
    expected = model.materialize(alpha)
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in expected.state_dict().items())
    with torch.no_grad():
        assert relative(again(x), expected(x)) < SAME_OPS


def test_a_level_of_a_line(tmp_path):
    model, x = quantized(Mlp(32), (4, 6), "line"), torch.randn(2, 6)
    file = save_bits(model, tmp_path / "level.safetensors", model.mode.alpha(3))
    assert relative(load_bits(file.path, Mlp(32))(x), model.materialize(file.alpha)(x)) < SAME_OPS


def test_size_shrinks_with_the_bits(tmp_path):
    model = quantized(build("resnet18"))
    few, many = (save_bits(model, tmp_path / "level.safetensors", alpha) for alpha in (0.0, 1.0))
    assert few.bits["layer1.0.conv1"] == 3
    assert few.bits["fc"] == many.bits["layer1.0.conv1"] == 8
    # 44.8 MB of weights; statistics, shifts and the list of tensors come to 0.2 MB.
    assert few.size_bytes < (3 / 32 + 0.006) * few.dense_bytes
    assert many.size_bytes < (8 / 32 + 0.006) * many.dense_bytes


def test_bad_input_leaves_no_file(tmp_path):
    path = tmp_path / "new" / "a.safetensors"
    with pytest.raises(ValueError, match="quantized mode"):
        save_bits(SubspaceModel(Mlp(), mode="unstructured", subspace="point"), path)
    model = SubspaceModel(Mlp(), mode="quantized", subspace="point").eval()
    with pytest.raises(ValueError, match=r"alpha=1\.5"):
        save_bits(model, path, 1.5)
    with pytest.raises(RuntimeError, match="never observed at alpha=0"):
        save_bits(model, path)
    assert not list(tmp_path.iterdir())


def test_a_damaged_or_foreign_file_leaves_the_network_as_it_was(tmp_path):
    file = save_bits(quantized(Mlp(32), (4, 6)), tmp_path / "a.safetensors")
    with safe_open(file.path, "pt") as opened:
        header = json.loads(opened.metadata()["lightning_lcs_bits"])
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    (tmp_path / "bad_short").write_bytes(file.path.read_bytes()[:-40])
    save_file({"a": torch.zeros(1)}, tmp_path / "bad_foreign")
    for number, change in enumerate(({"bits": 11}, {"bits": 4}, {"shape": [3, 5]}, {"shape": None})):
        changed = {
            **header,
            "weights": {**header["weights"], "fc1.weight": {**header["weights"]["fc1.weight"], **change}},
        }
        save_file(tensors, tmp_path / f"bad_{number}", metadata={"lightning_lcs_bits": json.dumps(changed)})
    network = Mlp(32)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    bad = sorted(tmp_path.glob("bad_*"))
    assert len(bad) == 6
    for path in bad:
        with pytest.raises(ValueError, match="damaged"):
            load_bits(path, network)
    with pytest.raises(ValueError, match=r"another architecture: fc1\.bias"):
        load_bits(file.path, Mlp(16))
    with pytest.raises(FileNotFoundError, match="none"):
        load_bits(tmp_path / "none", network)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert not network.fc1._forward_pre_hooks


def test_a_network_with_its_own_batch_norms_is_refused_where_they_were_replaced(tmp_path):
    model, x = quantized(Chain(8, 8), (4, 3, 8, 8), norm="group"), torch.randn(2, 3, 8, 8)
    file = save_bits(model, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="norm='group'"):
        load_bits(file.path, Chain(8, 8))
    converted = SubspaceModel(Chain(8, 8), mode="quantized", subspace="point", norm="group").module
    with torch.no_grad():
        assert relative(load_bits(file.path, converted)(x), model.materialize(0.0)(x)) < SAME_OPS
