"""Damaged and hostile files: an error that says what is wrong, or the very same model; never anything else."""

import copy
import json
import struct
import warnings

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lightning_lcs import SubspaceModel
from tests.helpers import Chain
from tests.unit.io.lcs_files import digest, put_together, sections, taken_apart

QUIET = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
FLIPS, CUTS, CHANGES, SWAPS = 900, 250, 900, 100  # 2,150 files in all


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("lcs")


@pytest.fixture(scope="module")
def whole(folder):
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = SubspaceModel(Chain(4, 6, 3), torch.randn(2, 3, 8, 8), subspace="line", line={"start": "independent"})
    model.statistics = {0.5: statistics_at(model, 0.5)}
    model.save(folder / "whole.lcs", levels=[0.5, 1.0], class_names=["cat", "dog", "eel"])
    return folder / "whole.lcs"


def statistics_at(model, alpha):
    at = model.plan.selection(model.mode.width(alpha))
    names = [name for name in at.plan.tensors if name.endswith(("running_mean", "running_var"))]
    return {name: torch.rand(at.shape(name)) + 0.5 for name in names}


X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def outputs(model):
    with torch.no_grad():
        results = []
        for alpha in (0.5, 1.0):
            model.set_alpha(alpha)
            results.append(model(X))
        return results


def model_or_error(content, path):
    path.write_bytes(content)
    try:
        return SubspaceModel.load(path)
    except ValueError as error:
        return str(error)


def refused_or_the_same(content, path, expected):
    found = model_or_error(content, path)
    if isinstance(found, str):
        assert str(path) in found
        assert len(found) > len(str(path)) + 15
        return True
    assert all(map(torch.equal, outputs(found), expected))
    return False


@pytest.fixture(scope="module")
def expected(whole):
    return outputs(SubspaceModel.load(whole))


@given(data=st.data())
@settings(max_examples=FLIPS, deadline=None, suppress_health_check=QUIET, derandomize=True)
def test_a_flipped_bit_in_any_section_is_found(whole, folder, expected, data):
    content = bytearray(whole.read_bytes())
    begin, end = data.draw(st.sampled_from(sorted(sections(content).values())))
    place = data.draw(st.integers(begin, end - 1))
    content[place] ^= 1 << data.draw(st.integers(0, 7))
    refused_or_the_same(bytes(content), folder / "flipped.lcs", expected)


def test_every_tensor_has_a_checksum_of_its_own(whole, folder, expected):
    content = whole.read_bytes()
    places = sections(content)
    assert len(places) > 20
    for name, (begin, end) in places.items():
        for place in (begin, end - 1):
            changed = bytearray(content)
            changed[place] ^= 0x10
            assert refused_or_the_same(bytes(changed), folder / "one.lcs", expected), name


@given(data=st.data())
@settings(max_examples=CUTS, deadline=None, suppress_health_check=QUIET, derandomize=True)
def test_a_file_cut_short_or_grown_is_refused(whole, folder, expected, data):
    content = whole.read_bytes()
    length = data.draw(st.integers(0, len(content) - 1))
    other = content[:length] if data.draw(st.booleans()) else content + content[: length + 1]
    assert refused_or_the_same(other, folder / "cut.lcs", expected)


HOSTILE = st.sampled_from(
    [
        None, True, -1, 0, 1, 3, 10**6, 2**40, 2**63, 10**30, -(10**30), 0.5, -2.5, 1e300, "", "x", "../../etc/passwd",
        "__class__", "a.__init__.b", "x): import os #", "aten.load.default", "aten.add.out", "python.eval", "load",
        "torch.load", "cuda:7", [], {}, [[]], [1, 2, 3], [[[0, 0]]], {"node": 10**9}, {"node": -1}, {"node": 0},
        {"node": "0"}, {"dtype": "load"}, {"dtype": "torch.float32"}, {"device": "cuda"}, {"tuple": 3}, {"dict": {}},
        {"format": "torch.strided"}, {"float": "inf"}, {"op": "call", "target": "python.mul", "args": ["a", 10**9]},
        {"op": "call", "target": "aten.empty.memory_format", "args": [[2**20, 2**20]]},
    ]
)  # fmt: skip


def every_place(value, path=()):
    yield path
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from every_place(item, (*path, key))


def replaced(value, path, new):
    if not path:
        return new
    value[path[0]] = replaced(value[path[0]], path[1:], new)
    return value


@given(data=st.data())
@settings(max_examples=CHANGES, deadline=None, suppress_health_check=QUIET, derandomize=True)
def test_a_header_changed_on_purpose_and_sealed_again_is_refused_or_loads(whole, folder, data):
    outer, header, payload = taken_apart(whole)
    # A key first, so that long lists of nodes don't take all places.
    key = data.draw(st.sampled_from(sorted(header)))
    path = data.draw(st.sampled_from(list(every_place(header[key]))))
    change = data.draw(st.sampled_from(["replace", "delete", "double"]))
    if change == "replace" or not path:
        header[key] = replaced(header[key], path, data.draw(HOSTILE))
    else:
        holder = header[key]
        for step in path[:-1]:
            holder = holder[step]
        if change == "delete":
            del holder[path[-1]]
        elif isinstance(holder, list):
            holder.insert(path[-1], copy.deepcopy(holder[path[-1]]))
        else:
            holder[f"{path[-1]}x"] = copy.deepcopy(holder[path[-1]])
    found = model_or_error(put_together(outer, header, payload), folder / "changed.lcs")
    if isinstance(found, str):
        assert "changed.lcs" in found
    else:
        # Some changes make another file that is as good: a class of another name, say. It is whole, then.
        found.runner.evaluation.warns = False
        found.set_alpha(0.5)
        assert found.alpha == 0.5


@given(data=st.data())
@settings(max_examples=SWAPS, deadline=None, suppress_health_check=QUIET, derandomize=True)
def test_a_list_of_tensors_changed_on_purpose_is_refused(whole, folder, expected, data):
    outer, header, payload = taken_apart(whole)
    name = data.draw(st.sampled_from(sorted(outer)))
    path = data.draw(st.sampled_from([p for p in every_place(outer[name]) if p]))
    outer[name] = replaced(outer[name], path, data.draw(HOSTILE))
    # The same thing said twice: the section's own entry agrees with the list.
    if path[0] in ("dtype", "shape"):
        header["sections"][name][path[0]] = outer[name][path[0]]
    refused_or_the_same(put_together(outer, header, payload), folder / "listed.lcs", expected)


def load_changed(whole, folder, change):
    outer, header, payload = taken_apart(whole)
    change(header)
    (folder / "hostile.lcs").write_bytes(put_together(outer, header, payload))
    return SubspaceModel.load(folder / "hostile.lcs")


def call(header):
    return next(node for node in header["network"]["nodes"] if node["op"] == "call")


def add(header, target, *args):
    header["network"]["nodes"].append({"op": "call", "target": target, "args": list(args)})


def arguments(args, kwargs):
    return {"tuple": [{"tuple": args}, {"dict": kwargs}]}


@pytest.mark.parametrize("target", ["aten.load.default", "os.system", "aten.__class__.mro", "python.eval", "aten.relu",
                                    "aten.relu.__class__", "aten.add.out", "aten.relu.default.x", 3, None])  # fmt: skip
def test_an_op_outside_the_list_is_refused(whole, folder, target):
    with pytest.raises(ValueError, match=r"at node \d+: the op .* is not allowed in a file"):
        load_changed(whole, folder, lambda header: call(header).update(target=target))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: call(h)["args"].extend([1] * 9), "does not take"),
        (lambda h: call(h)["args"].clear(), "lacks"),
        (lambda h: call(h).update(kwargs={"x=1): import os; f(y": 1}), "does not take"),
        (lambda h: call(h)["args"].__setitem__(0, {"node": 10**6}), "nodes before it"),
        (lambda h: call(h)["args"].__setitem__(0, {"node": h["network"]["nodes"].index(call(h))}), "nodes before it"),
        (lambda h: call(h)["args"].__setitem__(0, {"node": -1}), "nodes before it"),
        (lambda h: call(h)["args"].__setitem__(0, {"dtype": "load"}), "not allowed"),
        (lambda h: call(h)["args"].__setitem__(0, {"device": "cuda:9"}), "not allowed"),
        (lambda h: call(h)["args"].__setitem__(0, "x'); import os #"), "text"),
        (lambda h: call(h)["args"].__setitem__(0, "tanh"), "can't run"),
        (lambda h: call(h)["args"].__setitem__(4, [2**30, 2**30]), "can't run"),
        (lambda h: h["network"]["nodes"][0].update(name="a.__class__"), "not allowed"),
        (lambda h: h["network"]["nodes"][0].update(name="x): import os #"), "not allowed"),
        (lambda h: h["network"]["nodes"][0].update(name="/etc/passwd"), "not allowed"),
        (lambda h: h["network"]["inputs"][0].update(dtype="torch.load"), "input of type"),
        (lambda h: h["network"]["inputs"][0].update(shape=[None, 3, -1, 8]), "not in 0"),
        (lambda h: h["network"]["inputs"][0].update(shape=[None, 3, 2**20, 2**20]), "input of type"),
        (lambda h: h["network"]["inputs"][0].update(shape=[None, 3, 2**16, 2**16]), "tensor of shape"),
        (lambda h: h["network"]["inputs"].__setitem__(0, {"value": 3}), "inputs or tensors"),
        (lambda h: h["network"].update(arguments={"tuple": [0, 0]}), "malformed"),
        (lambda h: h["network"].update(arguments=0), "malformed"),
        (lambda h: h["network"].update(arguments=arguments([1], {})), "do not fit its arguments"),
        (lambda h: h["network"].update(arguments=arguments([], {"self": 0})), "not all names of arguments"),
        (lambda h: h["network"].update(arguments=arguments([], {"x): import os #": 0})), "not allowed"),
        (lambda h: add(h, "aten.linspace.default", 0, 1, 2**45), "too large|tensor of shape|can't run"),
        (lambda h: h["network"]["sizes"].append([0, [0], 0]), "malformed"),
        (lambda h: h["network"]["plan"]["atoms"][0].__setitem__(0, 2**39), "has shape|too large"),
        (lambda h: h["aliases"].update({"parameter.more.weight": "parameter.nowhere"}), "stands for"),
        (lambda h: h["aliases"].update({"buffer.x": "parameter.conv1.weight"}), "stands for"),
        (lambda h: h["aliases"].update({"parameter.a": "parameter.b", "parameter.b": "parameter.a"}), "stands for"),
        (lambda h: h.update(mode={"name": "structured", "min_width": -3.0}), "min_width"),
        (lambda h: h.update(mode={"name": "structured", "rm": 1}), "rm"),
        (lambda h: h.update(mode={"name": "unstructured"}), "keys"),
        (lambda h: h.update(version=99), r"format 99.*reads 3"),
        (lambda h: h.pop("version"), r"format None"),
        (lambda h: h.update(statistics=[]), "can't be loaded"),
        (lambda h: h.update(statistics=[7.0]), "alpha"),
        (lambda h: h["level_table"][0].update(name="full"), "two levels"),
        (lambda h: h["level_table"][0].update(macs=-1), "counts"),
        (lambda h: h.update(classes=[{"a": 1}]), "names"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(whole, folder, change, message):
    with pytest.raises(ValueError, match=message):
        load_changed(whole, folder, change)


def test_sizes_that_grow_without_end_are_refused(whole, folder):
    def change(header):
        nodes = header["network"]["nodes"]
        image = next(i for i, node in enumerate(nodes) if node["op"] == "input")
        nodes.append({"op": "call", "target": "aten.sym_size.int", "args": [{"node": image}, 3]})
        for _ in range(60):
            last = {"node": len(nodes) - 1}
            nodes.append({"op": "call", "target": "python.mul", "args": [last, last]})

    with pytest.raises(ValueError, match="makes a number of 64 bits or more"):
        load_changed(whole, folder, change)


@pytest.mark.parametrize("length", [0, 1, 2**20, 2**40, 2**63, 2**64 - 1])
def test_any_length_of_the_header_allocates_nothing(whole, folder, length):
    (folder / "long.lcs").write_bytes(struct.pack("<Q", length) + whole.read_bytes()[8:])
    with pytest.raises(ValueError, match=r"bytes|JSON"):
        SubspaceModel.load(folder / "long.lcs")


def test_json_that_is_nested_without_end_is_refused(whole, folder):
    outer, _, payload = taken_apart(whole)
    text = '{"version":' + "[" * 100_000 + "]" * 100_000 + "}"
    outer = {"__metadata__": {"lightning_lcs": text, "lightning_lcs_blake2b": digest(text.encode())}, **outer}
    head = json.dumps(outer).encode()
    (folder / "deep.lcs").write_bytes(struct.pack("<Q", len(head)) + head + payload)
    with pytest.raises(ValueError, match="nested too deeply"):
        SubspaceModel.load(folder / "deep.lcs")


def test_a_key_twice_and_not_a_number_are_refused(whole, folder):
    content = whole.read_bytes()
    twice = content.replace(b'"parameter.conv1.weight":{', b'"parameter.conv2.weight":{', 1)
    assert twice != content
    (folder / "twice.lcs").write_bytes(twice)
    with pytest.raises(ValueError, match=r"twice|different tensors"):
        SubspaceModel.load(folder / "twice.lcs")
    with pytest.raises(ValueError, match="NaN"):
        load_changed(whole, folder, lambda header: header.update(version=float("nan")))


def test_foreign_files_and_folders_are_refused(folder):
    for content in (b"", b"{}", b"PK\x03\x04" + b"\0" * 100, bytes(range(256)) * 10):
        (folder / "foreign.lcs").write_bytes(content)
        with pytest.raises(ValueError, match="not a lightning-lcs file"):
            SubspaceModel.load(folder / "foreign.lcs")
    with pytest.raises((ValueError, OSError)):
        SubspaceModel.load(folder)
    with pytest.raises(FileNotFoundError, match=r"none\.lcs"):
        SubspaceModel.load(folder / "none.lcs")


def test_a_whole_file_is_the_control(whole, folder, expected):
    """The checks above can tell: an untouched copy loads."""
    assert not refused_or_the_same(whole.read_bytes(), folder / "copy.lcs", expected)
    outer, header, payload = taken_apart(whole)
    assert not refused_or_the_same(put_together(outer, header, payload), folder / "sealed.lcs", expected)


def test_a_checkpoint_is_told_from_a_file(tmp_path):
    torch.save({"state_dict": Chain(4, 6, 3).state_dict()}, tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match=r"last.ckpt .* zip archive.* SubspaceModel.from_checkpoint\(path, module\)"):
        SubspaceModel.load(tmp_path / "last.ckpt")
