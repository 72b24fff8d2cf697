"""Sparse storage: what comes back, in how many bytes, and levels that are one comparison apart."""

import json

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from lightning_lcs import SubspaceModel, Unstructured
from lightning_lcs.export.sparse import load_sparse, pack_sparse, save_sparse, unpack_sparse
from lightning_lcs.functional.sparsity import largest_mask
from tests.helpers import Mlp, scramble

NETWORKS = {"resnet18": {}, "mobilenetv3_small_050": {}, "vit_tiny_patch16_224": {"img_size": 32, "depth": 2}}
LEVELS = (0.0, 0.5, 1.0)


def sparse(sparsity, shape=(64, 200), seed=0):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return weight * largest_mask(weight, sparsity)


def bits_of(tensor):
    return tensor.view(torch.int32)


@given(
    st.lists(st.floats(width=32) | st.just(0.0) | st.just(-0.0), max_size=60),
    st.lists(st.integers(0, 700), max_size=12),
)
def test_every_bit_comes_back(entries, gaps):
    spread = []
    for entry, gap in zip(entries, gaps, strict=False):
        spread += [0.0] * gap + [entry]
    for numbers in (entries, spread):
        tensor = torch.tensor(numbers, dtype=torch.float32)
        # Zeros come back positive: a weight times a mask holds negative ones.
        assert torch.equal(bits_of(unpack_sparse(pack_sparse(tensor))), bits_of(torch.where(tensor == 0, 0.0, tensor)))


@pytest.mark.parametrize("sparsity", [0.0, 0.03, 0.3, 0.6, 0.8, 0.9, 0.95, 0.99, 0.9999])
def test_size_shrinks_with_sparsity_and_the_coding_is_the_smaller_one(sparsity):
    tensor = sparse(sparsity)
    packed = pack_sparse(tensor)
    assert torch.equal(unpack_sparse(packed), tensor)
    entries = tensor.count_nonzero().item()
    assert packed.size_bytes <= min(4 * tensor.numel(), 4 * entries + tensor.numel() // 8)
    assert packed.coding == ("dense" if sparsity < 0.031 else "bitmask" if sparsity < 0.7 else "gap")


@pytest.mark.parametrize(("values", "share"), [("float32", 1 / 16), ("float16", 0.036), ("int8", 0.025)])
def test_share_of_dense_at_95_percent(values, share):
    tensor = sparse(0.95, (256, 512))
    assert pack_sparse(tensor, values).size_bytes <= share * 4 * tensor.numel()


@pytest.mark.parametrize(("values", "error"), [("float16", 2**-11), ("int8", None)])
def test_rounded_values_are_within_half_a_step(values, error):
    tensor = sparse(0.9)
    found = unpack_sparse(pack_sparse(tensor, values))
    step = tensor.abs().max() / 127
    allowed = step / 2 if error is None else error * tensor.abs()
    assert ((found - tensor).abs() <= allowed * 1.0001).all()
    assert torch.equal(found[tensor == 0], tensor[tensor == 0])


def test_other_types_and_dense_tensors_of_a_state_stay_as_they_are():
    state = {
        "count": torch.tensor(7),
        "bias": torch.randn(5),
        "half": torch.zeros(9, dtype=torch.float16),
        "empty": torch.empty(0, 3),
        "weight": sparse(0.9),
    }
    found = unpack_sparse(pack_sparse(state, "int8"))
    assert {name: (value.dtype, value.shape) for name, value in found.items()} == {
        name: (value.dtype, value.shape) for name, value in state.items()
    }
    assert all(torch.equal(found[name], state[name]) for name in ("count", "bias", "half", "empty"))


@pytest.mark.parametrize("values", ["float16", "int8"])
def test_numbers_that_do_not_fit(values):
    tensor = sparse(0.9)
    tensor[0, 0] = float("inf")
    with pytest.raises(ValueError, match="use 'float32'"):
        pack_sparse(tensor, values)


def test_unknown_values_and_parts_that_do_not_fit():
    with pytest.raises(ValueError, match="values='int4' is not known"):
        pack_sparse(sparse(0.9), "int4")
    packed = pack_sparse(sparse(0.99))
    with pytest.raises(ValueError, match="values"):
        unpack_sparse(type(packed)(**{**vars(packed), "values": packed.values[1:]}))


def unstructured(name, dense=("first", "last")):
    network = scramble(timm.create_model(name, num_classes=10, **NETWORKS[name]))
    mode = Unstructured(max_sparsity=0.95, dense=dense)
    model = SubspaceModel(network, mode=mode, subspace="point").eval()
    if model.runner.has_batch_norm:
        model.recalibrate([torch.randn(4, 3, 32, 32)], [0.0, 0.5])
    return model


@pytest.mark.parametrize("name", NETWORKS)
def test_a_file_of_levels_is_every_level_bit_for_bit(tmp_path, name):
    model = unstructured(name)
    file = save_sparse(model, tmp_path / "levels.safetensors", [0.0, 0.5])
    assert file.alphas == (0.0, 0.5)
    again = timm.create_model(name, num_classes=10, **NETWORKS[name]).eval()
    levels = load_sparse(file.path, again)
    assert levels.alpha == 0.5
    for alpha in (0.0, 0.5, 0.0):
        levels.set_alpha(alpha)
        expected, found = model.materialize(alpha).state_dict(), again.state_dict()
        assert expected.keys() == found.keys()
        for key, value in expected.items():
            assert torch.equal(found[key], value), key
    # Another level is another threshold for each weight, and its statistics.
    one = save_sparse(model, tmp_path / "one.safetensors", 0.5)
    assert file.size_bytes < 1.06 * one.size_bytes


def test_a_sparse_file_of_resnet18_is_a_sixteenth_of_a_dense_one(tmp_path):
    model = unstructured("resnet18", dense=())
    file = save_sparse(model, tmp_path / "sparse.safetensors")
    assert file.size_bytes < file.dense_bytes / 16
    assert save_sparse(model, tmp_path / "int8.safetensors", values="int8").size_bytes < file.dense_bytes * 0.026


def test_levels_of_a_line_stand_in_the_file_whole(tmp_path):
    model = SubspaceModel(Mlp(256), mode="unstructured", subspace="line", line={"parameters": "all"})
    with torch.no_grad():
        for w0, _ in model.endpoint_pairs():
            w0.normal_()
    model.eval()
    file = save_sparse(model, tmp_path / "line.safetensors", [0.2, 0.4])
    again = Mlp(256)
    levels = load_sparse(file.path, again)
    for alpha in (0.2, 0.4):
        levels.set_alpha(alpha)
        for key, value in model.materialize(alpha).state_dict().items():
            assert torch.equal(again.state_dict()[key], value)


def test_equal_magnitudes(tmp_path):
    """No threshold says which of equal entries are kept: such a weight stands in the file again."""
    network = Mlp(32)
    with torch.no_grad():
        network.fc1.weight.fill_(0.5)
    model = SubspaceModel(network, mode=Unstructured(dense=()), subspace="point").eval()
    file = save_sparse(model, tmp_path / "ties.safetensors", [0.3, 0.8])
    again = Mlp(32)
    levels = load_sparse(file.path, again)
    levels.set_alpha(0.3)
    assert torch.equal(again.fc1.weight, model.materialize(0.3).fc1.weight)


def test_bad_input_leaves_no_file(tmp_path):
    path = tmp_path / "new" / "a.safetensors"
    with pytest.raises(ValueError, match="unstructured mode"):
        save_sparse(SubspaceModel(Mlp(), torch.randn(2, 6), subspace="point"), path)
    model = SubspaceModel(Mlp(), mode="unstructured", subspace="point")
    for alphas, values, said in (([], "float32", "empty"), (1.5, "float32", "alpha=1.5"), (0.0, "int3", "int3")):
        with pytest.raises(ValueError, match=said):
            save_sparse(model, path, alphas, values)
    assert not list(tmp_path.iterdir())


def test_a_damaged_or_foreign_file_leaves_the_network_as_it_was(tmp_path):
    model = SubspaceModel(Mlp(256), mode="unstructured", subspace="point").eval()
    file = save_sparse(model, tmp_path / "a.safetensors")
    network = Mlp(256)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    short = tmp_path / "short.safetensors"
    short.write_bytes(file.path.read_bytes()[:-100])
    foreign = tmp_path / "foreign.safetensors"
    save_file({"a": torch.zeros(1)}, foreign)
    with safe_open(file.path, "pt") as opened:
        header = json.loads(opened.metadata()["lightning_lcs_sparse"])
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    for number, change in enumerate(({"coding": "x"}, {"shape": [3]}, {"codes": 7}, {"bits": 11})):
        spec = {**header["packed"]["densest/fc1.weight"], **change}
        changed = {**header, "packed": {**header["packed"], "densest/fc1.weight": spec}}
        save_file(
            tensors, tmp_path / f"bad_{number}.safetensors", metadata={"lightning_lcs_sparse": json.dumps(changed)}
        )
    bad = sorted(tmp_path.glob("bad_*"))
    for path in (short, foreign, *bad):
        with pytest.raises(ValueError, match="damaged"):
            load_sparse(path, network)
    with pytest.raises(ValueError, match="another architecture"):
        load_sparse(file.path, Mlp(32))
    with pytest.raises(FileNotFoundError, match="none"):
        load_sparse(tmp_path / "none.safetensors", network)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    with pytest.raises(ValueError, match="is not in the file"):
        load_sparse(file.path, network).set_alpha(0.7)
