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
from lightning_lcs.batchnorm import recalibrate
from tests.benchmarks.timing import medians

pytestmark = pytest.mark.benchmark
NETWORKS = {"resnet18": 224, "mobilenetv3_small_100": 224, "vit_tiny_patch16_224": 224}
# Goals, in multiples of the natively narrow network's time, of a copy of the level's tensors, and of one forward.
FORWARD, SWITCH, PART_OF_FORWARD = 1.03, {"point": 2.0, "line": 4.0}, 1 / 3
LARGE = 8e6  # bytes


def loaded(folder, name, subspace):
    size = NETWORKS[name]
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=10)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lines = {"line_parameters": "backbone"} if subspace == "line" else {}
        model = SubspaceModel(network, torch.randn(2, 3, size, size), subspace=subspace, **lines).eval()
        recalibrate(model, [torch.randn(4, 3, size, size)], [0.0, 1 / 3])
        model.save(folder / "model.lcs", levels=[0.0, 1 / 3, 1.0])
    return SubspaceModel.load(folder / "model.lcs"), torch.randn(1, 3, size, size)


@pytest.mark.parametrize("alpha", [0.0, 1 / 3])
@pytest.mark.parametrize("name", NETWORKS)
def test_forward_after_a_switch_is_as_fast_as_the_narrow_network(tmp_path, name, alpha):
    model, x = loaded(tmp_path, name, "point")
    narrow = model.materialize(alpha)
    model.set_alpha(1.0)
    model.set_alpha(alpha)
    with torch.inference_mode():
        times = medians({"runtime": lambda: model(x), "narrow": lambda: narrow(x)}, rounds=120)
    ratio = times["runtime"] / times["narrow"]
    print(
        f"\n{name}, width {0.25 + 0.75 * alpha:g}: {1e3 * times['runtime']:.2f} ms, {ratio:.3f} of the narrow network"
    )
    assert ratio <= FORWARD


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
