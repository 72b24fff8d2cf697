"""Time of one training step over four widths, against four networks natively built at those widths."""

from collections.abc import Callable

import pytest
import timm
import torch
from torch import nn

from lightning_lcs import SubspaceModel
from lightning_lcs.subspace.running.gradients import GradientSum
from tests.benchmarks.timing import ALPHAS, WIDTHS, images, medians, resnet10t, resnet10t_at

pytestmark = pytest.mark.benchmark
# The limits: a little over the sum of native steps, for slicing weights and adding gradients.
LIMIT = {"point": 1.08, "line": 1.15}


def _plain_step(network: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
    nn.functional.cross_entropy(network(x), y).backward()


def _swept_step(model: SubspaceModel, x: torch.Tensor, y: torch.Tensor) -> None:
    gradients = GradientSum()
    for alpha in ALPHAS[:-1]:
        with model.runner.training_level(alpha, gradients):
            nn.functional.cross_entropy(model(x), y).backward()
    with gradients.added():
        nn.functional.cross_entropy(model(x), y).backward()


def _resnet10t_setting() -> tuple[Callable[[], nn.Module], Callable[[float], nn.Module], torch.Tensor, int]:
    return resnet10t, resnet10t_at, images(128, 1, 32), 12


def _resnet18_setting() -> tuple[Callable[[], nn.Module], Callable[[float], nn.Module], torch.Tensor, int]:
    def build() -> nn.Module:
        return timm.create_model("resnet18", num_classes=10)

    x = images(16, 3, 64)
    source = SubspaceModel(build(), x, subspace="point")

    def native(width: float) -> nn.Module:
        # timm can't build a resnet18 with a narrower stem: a materialized network has the same layers and sizes.
        return source.materialize((width - 0.25) / 0.75, train=True)

    return build, native, x, 30


@pytest.mark.parametrize("subspace", ["point", "line"])
@pytest.mark.parametrize("setting", [_resnet10t_setting, _resnet18_setting], ids=["resnet10t-128", "resnet18-16"])
def test_sweep_costs_little_more_than_native_networks(setting, subspace):
    build, native, x, rounds = setting()
    y = torch.arange(len(x)) % 10
    model = SubspaceModel(build(), x, subspace=subspace).train()
    networks = [native(width).train() for width in WIDTHS]

    def native_steps() -> None:
        for network in networks:
            _plain_step(network, x, y)

    def clear_gradients() -> None:
        # Of all contenders: held by one, they would take from the other the memory that it used the last time.
        for network in (model, *networks):
            network.zero_grad()

    times = medians({"swept": lambda: _swept_step(model, x, y), "native": native_steps}, rounds, clear_gradients)
    ratio = times["swept"] / times["native"]
    print(f"\n{subspace}, batch {len(x)}: swept {times['swept']:.3f} s / native {times['native']:.3f} s = {ratio:.3f}")
    assert ratio <= LIMIT[subspace]
