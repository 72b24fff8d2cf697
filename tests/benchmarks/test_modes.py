"""What a training step, a forward and a change of level cost in each mode, on the paper's kind of network.

cPreResNet with one block per stage, 32 pixels, batch 128, one thread; the default options of each mode. Against a plain
step of the same network.
"""

import importlib.util
import statistics
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from lightning_lcs import LCSCallback, SubspaceModel
from lightning_lcs.subspace.mode import Level
from lightning_lcs.subspace.running.level_weights import LevelWeights
from tests.benchmarks.timing import images, medians

pytestmark = [pytest.mark.benchmark, pytest.mark.filterwarnings("ignore")]
STEP = {"structured": 1.8, "unstructured": 1.15, "quantized": 1.25}
# What torch's own fake quantization and a full selection per step would cost there.
LARGER_STEP = {"unstructured": 1.92, "quantized": 1.46}
# Times copying the weights: when thresholds or ranges must be found, and when the level was set before.
SETTING = {"unstructured": (10.0, 1.5), "quantized": (15.0, 3.0)}
FORWARD = {"structured": 1.06, "unstructured": 1.2, "quantized": 1.6}


def _network() -> nn.Module:
    path = Path(__file__).parents[2] / "examples" / "preresnet.py"
    spec = importlib.util.spec_from_file_location("preresnet", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.PreResNet(blocks=1)


def _subspace(mode: str) -> SubspaceModel:
    return SubspaceModel(_network(), images(2, 3, 32), mode=mode, subspace="point")


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("mode", list(STEP))
def test_a_training_step(mode):
    ratio = step_ratio(_subspace(mode), mode, images(128, 3, 32), 12)
    print(f"\n{mode}: a step / a plain step {ratio:.3f}")
    assert ratio <= STEP[mode]


@pytest.mark.parametrize("mode", list(LARGER_STEP))
def test_a_training_step_of_resnet18(mode):
    """Batch 64, 64 pixels."""
    model = SubspaceModel(timm.create_model("resnet18", num_classes=10), images(2, 3, 64), mode=mode, subspace="point")
    ratio = step_ratio(model, mode, images(64, 3, 64), 6)
    print(f"\n{mode}, resnet18: a step / a plain step {ratio:.3f}")
    assert ratio <= LARGER_STEP[mode]


def step_ratio(model: SubspaceModel, mode: str, x: torch.Tensor, rounds: int) -> float:
    model.train()
    options = LCSCallback(mode).options
    y = torch.arange(len(x)) % 10
    steps = iter(range(10**6))

    def plain() -> None:
        nn.functional.cross_entropy(model.module(x), y).backward()

    def swept() -> None:
        *alphas, last = options.alphas(0, next(steps))
        for alpha in alphas:
            with model.runner.training_level(alpha):
                nn.functional.cross_entropy(model(x), y).backward()
        with model.runner.training_level(last, direct=True):
            loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()

    times = medians({"swept": swept, "plain": plain}, rounds, model.zero_grad)
    return times["swept"] / times["plain"]


@pytest.mark.parametrize("mode", list(FORWARD))
def test_a_forward_with_one_image(mode):
    model = _subspace(mode).eval()
    x = images(1, 3, 32)
    with model.runner.training_level(0.5), torch.no_grad():
        model(x)  # ranges of quantized inputs
    model.set_alpha(0.5)
    native = model.materialize(0.5) if mode == "structured" else model.module

    def level() -> None:
        with torch.inference_mode():
            model(x)

    def plain() -> None:
        with torch.inference_mode():
            native(x)

    ratios = []
    for _ in range(5):
        times = medians({"level": level, "plain": plain}, 60)
        ratios.append(times["level"] / times["plain"])
    ratio = statistics.median(ratios)
    print(
        f"\n{mode}: a forward at a level / {'the narrow' if mode == 'structured' else 'the plain'} network {ratio:.3f}"
    )
    assert ratio <= FORWARD[mode]


@pytest.mark.parametrize("mode", list(SETTING))
def test_setting_a_level(mode):
    """On resnet18, whose weights do not fit a cache; a level anew, and one that was set before."""
    net = timm.create_model("resnet18", num_classes=10)
    model = SubspaceModel(net, images(2, 3, 32), mode=mode, subspace="point", norm="group").eval()
    part = model.parts[0]
    weights = [net.get_parameter(name).detach() for name in part.compressed]
    copies = [torch.empty_like(weight) for weight in weights]
    found: dict[str, Any] = {}

    def level(known: dict[str, Any]) -> None:
        weights_at = LevelWeights(part, Level(model.mode, 0.5), known)
        with torch.inference_mode():
            for name in part.compressed:
                weights_at.tensor(name)

    def copied() -> None:
        for weight, target in zip(weights, copies, strict=True):
            target.copy_(weight)

    times = medians({"new": lambda: level({}), "again": lambda: level(found), "copy": copied}, 20)
    new, again = times["new"] / times["copy"], times["again"] / times["copy"]
    print(f"\n{mode}: setting a level / copying its weights {new:.2f}, set again {again:.2f}")
    assert new <= SETTING[mode][0]
    assert again <= SETTING[mode][1]
