"""Tensors prepared for a level never outlive a change of what they were made from."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_lcs.model import SubspaceModel
from tests.helpers import BATCH_NORM_WARNING, Chain, Joined, relative, scramble

pytestmark = pytest.mark.filterwarnings(BATCH_NORM_WARNING)

# The same ops on equal tensors, aligned otherwise in memory.
SAME_OPS = 1e-6


def chain(**options: Any) -> tuple[SubspaceModel, Tensor]:
    x = torch.randn(3, 3, 8, 8)
    return SubspaceModel(scramble(Chain()), x, **{"subspace": "line", **options}).eval(), x


def train_step(model: SubspaceModel) -> None:
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    torch.optim.SGD(model.parameters(), lr=0.1).step()


def load_other(model: SubspaceModel) -> None:
    model.module.load_state_dict(scramble(Chain()).state_dict())


def copy_in_place(model: SubspaceModel) -> None:
    with torch.no_grad():
        model.module.get_parameter("conv1.weight").copy_(torch.randn(8, 3, 3, 3))


def replace_data(model: SubspaceModel) -> None:
    model.module.get_parameter("conv1.weight").data = torch.randn(8, 3, 3, 3)


def replace_parameter(model: SubspaceModel) -> None:
    model.module.get_submodule("conv1").weight = nn.Parameter(torch.randn(8, 3, 3, 3))


def move_endpoint(model: SubspaceModel) -> None:
    with torch.no_grad():
        model.endpoint_pairs()[0][0].add_(1.0)


def track_statistics(model: SubspaceModel) -> None:
    with model.at_alpha(1.0):
        model.train()(3 + torch.randn(3, 3, 8, 8))
    model.eval()


CHANGES = [train_step, load_other, copy_in_place, replace_data, replace_parameter, move_endpoint, track_statistics]


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_weights_is_seen_at_once(change: Callable[[SubspaceModel], None], grad: bool) -> None:
    model, x = chain()
    model.set_alpha(0.5)
    with torch.set_grad_enabled(grad):
        before = model(x)
        assert torch.equal(model(x), before)
        change(model)
        after = model(x)
        assert not torch.equal(after, before)
        # A model that never prepared anything before the change.
        assert relative(after, copy.deepcopy(model)(x)) < SAME_OPS


def test_a_change_of_dtype_is_seen_at_once() -> None:
    model, x = chain()
    with torch.no_grad(), model.at_alpha(0.5):
        single = model(x)
        double = model.double()(x.double())
        assert double.dtype == torch.float64
        assert relative(single, double.float()) < SAME_OPS


def test_writing_through_data_is_seen_when_a_level_is_entered_again() -> None:
    # ``p.data.copy_()`` leaves no mark on ``p`` (neither its version nor its address changes): within a level it may go
    # unnoticed, and entering a level prepares its tensors anew.
    model, x = chain()
    with torch.no_grad(), model.at_alpha(0.5):
        before = model(x)
        model.module.get_parameter("conv2.weight").data.copy_(torch.randn(12, 8, 3, 3))
    with torch.no_grad(), model.at_alpha(0.5):
        after = model(x)
        assert not torch.equal(after, before)
        assert relative(after, copy.deepcopy(model)(x)) < SAME_OPS


def test_loading_statistics_is_seen_at_once() -> None:
    model, x = chain(subspace="point")
    small = model.materialize(0.5).named_buffers()
    tensors = {name: torch.rand_like(value) + 0.5 for name, value in small if "running" in name}
    state = {**model.subspace_state(), "statistics": [{"alpha": 0.5, "tensors": tensors}]}
    model.set_alpha(0.5)
    with torch.no_grad():
        before = model(x)
        model.load_subspace_state(state)
        assert not torch.equal(model(x), before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_stored_statistics_follow_the_dtype_of_the_network(dtype: torch.dtype) -> None:
    model, x = chain(subspace="point")
    small = model.materialize(0.5).named_buffers()
    model.statistics = {0.5: {name: value.clone() for name, value in small if "running" in name}}
    model.to(dtype)
    with torch.no_grad(), model.at_alpha(0.5):
        assert model(x.to(dtype)).dtype == dtype


@pytest.mark.parametrize("make", [Chain, Joined], ids=["prefixes", "indices"])
def test_two_backward_passes_within_a_level_without_a_change_of_weights(make: Callable[[], nn.Module]) -> None:
    x = torch.randn(3, 3, 8, 8)
    model = SubspaceModel(make(), x, subspace="point").train()
    with model.at_alpha(0.5):
        for _ in range(2):
            model(x).sum().backward()


def test_weights_of_inference_mode_are_read_anew_in_each_forward():
    """They have no version, which would show that they were written to."""
    with torch.inference_mode():
        network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        x = torch.randn(3, 4)
        model = SubspaceModel(network, mode="unstructured", subspace="point").eval()
        model.set_alpha(0.5)
        before = model(x)
        network[0].weight.mul_(2.0)
        network[2].bias.add_(1.0)
        after, materialized = model(x), model.materialize(0.5)(x)
    assert not torch.allclose(before, after)
    assert torch.allclose(after, materialized)
