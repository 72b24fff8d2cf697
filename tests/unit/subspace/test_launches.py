"""Operations that a training step launches, which bound its time on an accelerator, in multiples of a plain step."""

from collections.abc import Sequence

import pytest
import timm
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_lcs import Structured, SubspaceModel
from lightning_lcs.subspace.mode import Mode
from lightning_lcs.subspace.running.gradients import GradientSum

# Operations that only look at tensors or take memory.
FREE = {
    *("view", "_unsafe_view", "expand", "slice", "select", "split", "split_with_sizes", "unbind", "t", "transpose"),
    *("permute", "unsqueeze", "squeeze", "as_strided", "alias", "detach"),
    *("empty", "empty_like", "empty_strided", "new_empty"),
}


class Operations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket.__name__ not in FREE
        return func(*args, **(kwargs or {}))


def network(name: str, device: str) -> tuple[nn.Module, torch.Tensor]:
    return timm.create_model(name, num_classes=10).to(device).train(), torch.zeros(4, 3, 32, 32, device=device)


def plain(name: str, device: str) -> int:
    net, images = network(name, device)
    with Operations() as operations:
        net(images).sum().backward()
    return operations.count


def step(model: SubspaceModel, images: torch.Tensor, alphas: Sequence[float]) -> None:
    gradients = GradientSum()
    for alpha in alphas[:-1]:
        with model.runner.training_level(alpha, gradients):
            model(images).sum().backward()
    with model.runner.training_level(alphas[-1]):
        loss = model(images).sum()
        with gradients.added(vectors_on_exit=True):
            loss.backward()


def ratio(name: str, mode: str | Mode, alphas: Sequence[float], device: str) -> float:
    net, images = network(name, device)
    model = SubspaceModel(net, mode=mode).train()
    step(model, images, alphas)
    model.zero_grad()
    with Operations() as operations:
        step(model, images, alphas)
    found = operations.count / plain(name, device)
    print(f"\n{name}, {mode}, {len(alphas)} levels: {found:.2f} times the operations of a plain step")
    return found


# On a CUDA device inputs are rounded in one operation instead of four.
@pytest.mark.parametrize(
    ("name", "mode", "most"),
    [
        ("resnet18", "quantized", 3.6),
        ("mobilenetv3_small_050", "quantized", 3.0),
        ("resnet18", "unstructured", 1.25),
        ("mobilenetv3_small_050", "unstructured", 1.15),
    ],
)
def test_one_level_on_an_accelerator(name, mode, most):
    # On the device "meta" the code of accelerators runs, which finds the ranges of all layers together.
    assert ratio(name, mode, [0.5], "meta") <= most


@pytest.mark.parametrize(("alphas", "most"), [([0.0, 1.0], 2.2), ([0.0, 0.5, 1.0], 3.35)])
@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050"])
def test_widths_launch_their_networks_and_add_their_gradients(name, alphas, most):
    # Beside each network there are one copy of each cut weight and one addition for each; vectors are added together.
    assert ratio(name, Structured(), alphas, "cpu") <= most
