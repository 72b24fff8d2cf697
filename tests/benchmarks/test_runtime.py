"""A loaded file: its forward against the natively narrow network, a switch in copies of its result and in forwards.

All of it is interleaved, and quoted as a ratio of medians: forward, copy and switch of a round meet the same machine.
The goal in copies holds for levels of 8 MB and more. Below, calls and the reading of scattered rows take longer than
the copy does, and what counts is that a switch is short against a forward; the ratio is printed all the same.
"""

import warnings

import pytest
import timm
import torch

from lightning_lcs import SubspaceModel
from lightning_lcs.runtime.memory_format import layout_of
from tests.benchmarks.timing import medians

pytestmark = pytest.mark.benchmark
# Pixels, and the goal for a forward in multiples of the natively narrow network's: batch norms are folded, and
# convolution weights lie as this machine likes it.
NETWORKS = {
    "resnet18": (224, 0.65),
    "mobilenetv3_small_100": (224, 0.85),
    "vit_tiny_patch16_224": (224, 0.90),
    "resnet10t": (32, 1.03),
}
# Goals in multiples of a copy of the level's tensors, and of one forward.
SWITCH, PART_OF_FORWARD = {"point": 2.0, "line": 4.0}, 1 / 3
LARGE = 8e6  # bytes


def loaded(folder, name, subspace):
    size, _ = NETWORKS[name]
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=10)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lines = {"line": {"parameters": "backbone"}} if subspace == "line" else {}
        model = SubspaceModel(network, torch.randn(2, 3, size, size), subspace=subspace, **lines).eval()
        model.recalibrate([torch.randn(4, 3, size, size)], [0.0, 1 / 3])
        model.save(folder / "model.lcs", levels=[0.0, 1 / 3, 1.0])
    return SubspaceModel.load(folder / "model.lcs"), torch.randn(1, 3, size, size)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_forward_after_a_switch_against_the_narrow_network(tmp_path, threads, name, count):
    threads(count)
    size, goal = NETWORKS[name]
    model, _ = loaded(tmp_path, name, "point")
    ratios = {}
    for alpha in (0.0, 1 / 3, 1.0):
        narrow = model.materialize(alpha)
        model.set_alpha(alpha)
        for batch in (1, 8):
            x = torch.randn(batch, 3, size, size)
            with torch.inference_mode():
                contenders = {"runtime": lambda x=x: model(x), "narrow": lambda x=x, narrow=narrow: narrow(x)}
                times = medians(contenders, rounds=60 if batch == 1 else 20)
            ratios[alpha, batch] = times["runtime"] / times["narrow"]
            print(f"\n{name}, {count} threads, {layout_of(model.parts[0])}, width {0.25 + 0.75 * alpha:g}, ", end="")
            print(f"batch {batch}: {1e3 * times['runtime']:.2f} ms, {ratios[alpha, batch]:.3f} of the narrow network")
    assert max(ratios.values()) <= goal


@pytest.mark.parametrize("alpha", [0.0, 1 / 3])
@pytest.mark.parametrize("subspace", ["point", "line"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_switch_costs_a_few_copies_of_its_result(tmp_path, name, subspace, alpha):
    model, x = loaded(tmp_path, name, subspace)
    # Of all the tensors of the level, those too that are used where they lie.
    count = model.efficiency(alpha).size_bytes // 4
    source, target = torch.randn(count), torch.empty(count)
    model.set_alpha(alpha)
    with torch.inference_mode():
        calls = {
            "forward": lambda: model(x),
            "away": lambda: model.set_alpha(1.0),
            "switch": lambda: model.set_alpha(alpha),
            "copy": lambda: target.copy_(source),
        }
        times = medians(calls, rounds=80)
    copies, part = times["switch"] / times["copy"], times["switch"] / times["forward"]
    print(f"\n{name}, {subspace}, width {0.25 + 0.75 * alpha:g}: a switch takes {1e3 * times['switch']:.2f} ms")
    print(f"= {copies:.2f} copies of {4e-6 * count:.2f} MB = {part:.3f} forwards")
    assert copies <= SWITCH[subspace] or 4 * count < LARGE
    assert part <= PART_OF_FORWARD
