"""One level, reached in several ways: set on the model, materialized, trained; and the line between the endpoints."""

import copy
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from lightning_lcs.model import SubspaceModel
from lightning_lcs.subspace.modes import Structured
from tests.helpers import BATCH_NORM_WARNING, Chain, Joined, Mlp, at_width, relative, scramble

pytestmark = pytest.mark.filterwarnings(BATCH_NORM_WARNING)

# The same ops on equal tensors; their memory may be aligned otherwise, which changes vectorised sums by rounding.
SAME_OPS = 1e-6
# One more rounding per gradient: autograd scales a full-sized gradient, a level its slice. Relative to the largest.
SAME_GRADIENTS = 1e-6
# The traced graph against the network's own code: the same kernels.
GRAPH = 1e-6

ALPHAS = (0.0, 0.2, 0.5, 0.77, 0.95)


def timm_network(name: str, **options: Any) -> tuple[nn.Module, Tensor]:
    return timm.create_model(name, num_classes=10, **options), torch.randn(3, 3, 32, 32)


NETWORKS = {
    "chain": lambda: (Chain(), torch.randn(3, 3, 8, 8)),
    "joined": lambda: (Joined(), torch.randn(3, 3, 8, 8)),
    "mlp with dropout": lambda: (Mlp(dropout=0.5), torch.randn(3, 6)),
    "resnet10t": lambda: timm_network("resnet10t", drop_rate=0.2),
    "resnetv2_50x1_bit": lambda: timm_network("resnetv2_50x1_bit"),
    "regnety_002": lambda: timm_network("regnety_002"),
    "mobilenetv3_small_100": lambda: timm_network("mobilenetv3_small_100"),
    "efficientnet_b0": lambda: timm_network("efficientnet_b0", drop_path_rate=0.2),
    "densenet": lambda: timm_network("densenet121", block_config=(3, 4, 3, 2)),
    "convnext_atto": lambda: timm_network("convnext_atto"),
    "convnextv2_atto": lambda: timm_network("convnextv2_atto"),
    # The head of 4,096 channels and 100 million parameters is made narrower.
    "vgg11": lambda: timm_network("vgg11", mlp_ratio=1 / 64),
}


class Prepared:
    """A network as it was, and a line subspace of it whose endpoints differ everywhere."""

    def __init__(self, name: str) -> None:
        torch.manual_seed(0)
        net, self.x = NETWORKS[name]()
        self.user = scramble(net)
        self.model = SubspaceModel(
            copy.deepcopy(self.user), self.x, subspace="line", line={"parameters": "all", "start": "independent"}
        ).eval()
        with torch.no_grad():
            for w0, _ in self.model.endpoint_pairs():
                if w0.ndim < 2:
                    w0.uniform_(0.5, 1.5)

    def output(self, network: nn.Module) -> Tensor:
        torch.manual_seed(1)
        return network(self.x)

    def buffers(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self.model.named_buffers()}

    def gradients(self) -> dict[str, Tensor]:
        found = {name: p.grad for name, p in self.model.named_parameters() if p.grad is not None}
        self.model.zero_grad()
        return found


@pytest.fixture(scope="module", params=NETWORKS)
def prepared(request: pytest.FixtureRequest) -> Prepared:
    return Prepared(request.param)


def largest_difference(ours: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    assert ours.keys() == expected.keys()
    scale = max(gradient.abs().max().item() for gradient in expected.values())
    return max((ours[name] - expected[name]).abs().max().item() for name in expected) / scale


def test_evaluation_at_a_level_is_its_materialized_network(prepared: Prepared) -> None:
    model = prepared.model.eval()
    for alpha in ALPHAS:
        small = model.materialize(alpha)
        with torch.no_grad(), model.at_alpha(alpha):
            assert relative(prepared.output(small), prepared.output(model)) < SAME_OPS


def test_training_at_a_level_is_its_network_materialized_for_training(prepared: Prepared) -> None:
    model = prepared.model.train()
    for alpha in ALPHAS[::2]:
        small = model.materialize(alpha, train=True)
        with torch.no_grad(), model.at_alpha(alpha):
            assert relative(prepared.output(small), prepared.output(model)) < SAME_OPS


@pytest.mark.parametrize("train", [False, True])
def test_alpha_one_is_the_users_network_bitwise(prepared: Prepared, train: bool) -> None:
    user, model = copy.deepcopy(prepared.user).train(train), copy.deepcopy(prepared.model).train(train)
    assert model.alpha == 1.0
    with torch.no_grad():
        assert torch.equal(prepared.output(model), prepared.output(user))
    for name, buffer in user.named_buffers():
        assert torch.equal(model.module.get_buffer(name), buffer)


@pytest.mark.parametrize("train", [False, True])
def test_the_graph_at_full_width_is_the_users_network(prepared: Prepared, train: bool) -> None:
    user = copy.deepcopy(prepared.user).train(train)
    with torch.no_grad():
        ours = prepared.output(prepared.model.materialize(1.0, train=train))
        assert relative(ours, prepared.output(user)) < GRAPH


@pytest.mark.parametrize("alpha", [0.0, 0.6])
def test_gradients_of_a_training_level_are_those_of_autograd(prepared: Prepared, alpha: float) -> None:
    model = prepared.model.train()
    before = prepared.buffers()
    with model.runner.training_level(alpha):
        ours_output = prepared.output(model)
        ours_output.square().sum().backward()
    ours = prepared.gradients()
    with model.at_alpha(alpha):
        expected_output = prepared.output(model)
        expected_output.square().sum().backward()
    assert relative(ours_output.detach(), expected_output.detach()) < SAME_OPS
    assert largest_difference(ours, prepared.gradients()) < SAME_GRADIENTS
    assert {name for name, value in prepared.buffers().items() if not torch.equal(value, before[name])} == set()


# -- several levels in one step ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("subspace", ["line", "point"])
@pytest.mark.parametrize("name", ["chain", "joined", "mlp with dropout"])
def test_levels_one_after_another_are_the_sum_of_their_losses(name: str, subspace: str) -> None:
    net, x = NETWORKS[name]()
    model = SubspaceModel(scramble(net), x, subspace=subspace).train()
    for _, p in model.named_parameters():
        p.grad = torch.ones_like(p)
    alphas = (0.0, 0.3, 0.8, 1.0)
    for k, alpha in enumerate(alphas):
        torch.manual_seed(k)
        with model.runner.training_level(alpha):
            model(x).square().sum().backward()
    ours = {key: p.grad.clone() - 1 for key, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    losses = []
    for k, alpha in enumerate(alphas):
        torch.manual_seed(k)
        with model.at_alpha(alpha):
            losses.append(model(x).square().sum())
    torch.stack(losses).sum().backward()
    expected = {key: torch.zeros_like(p) if p.grad is None else p.grad for key, p in model.named_parameters()}
    assert largest_difference(ours, expected) < SAME_GRADIENTS


def test_two_calls_within_a_level_add_up() -> None:
    net, x = NETWORKS["joined"]()
    model = SubspaceModel(net, x, subspace="line").train()

    def step() -> dict[str, Tensor]:
        model.zero_grad()
        (model(x).square().sum() + model(2 * x).square().sum()).backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    with model.at_alpha(0.3):
        expected = step()
    model.zero_grad()
    with model.runner.training_level(0.3):
        assert step() == {}
    ours = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert largest_difference(ours, expected) < SAME_GRADIENTS


@pytest.mark.filterwarnings("ignore:.*stay whole at every level.*was never trained:UserWarning")
def test_a_frozen_parameter_gets_no_gradient() -> None:
    net, x = NETWORKS["chain"]()
    net.conv2.requires_grad_(False)
    model = SubspaceModel(net, x, subspace="line", line={"parameters": "all"}).train()
    with model.runner.training_level(0.3):
        model(x).sum().backward()
    without = {name for name, p in model.module.named_parameters() if p.grad is None}
    assert without == {f"conv2.{end}weight" for end in ("", "lcs_endpoint_0.")} | {
        f"conv2.{end}bias" for end in ("", "lcs_endpoint_0.")
    }


def test_an_error_inside_a_training_level_leaves_no_gradient_and_no_level() -> None:
    net, x = NETWORKS["chain"]()
    model = SubspaceModel(net, x, subspace="line").train()

    def fail() -> None:
        with model.runner.training_level(0.3):
            model(x).sum().backward()
            raise KeyError("user")

    with pytest.raises(KeyError):
        fail()
    assert all(p.grad is None for p in model.parameters())
    with torch.no_grad():
        assert torch.equal(copy.deepcopy(model)(x), model.module(x))


# -- the line ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["norm", "all"])
@pytest.mark.parametrize("name", ["chain", "joined", "resnet10t", "convnext_atto"])
def test_ends_and_middle_of_the_line_at_full_width(name: str, which: str) -> None:
    net, x = NETWORKS[name]()
    user = scramble(net).eval()
    model = SubspaceModel(
        copy.deepcopy(user),
        x,
        mode=Structured(min_width=1.0),
        subspace="line",
        line={"parameters": which, "start": "independent"},
    ).eval()
    with torch.no_grad():
        for w0, w1 in model.endpoint_pairs():
            w0.copy_(w1 + 0.1 * torch.randn_like(w1))
    on_the_line = model.parts[0].endpoints
    assert which == "norm" or on_the_line.keys() == dict(user.named_parameters()).keys()
    for alpha in (0.0, 0.5, 1.0):
        mixed = copy.deepcopy(user)
        with torch.no_grad():
            for parameter_name, w0 in on_the_line.items():
                parameter = mixed.get_parameter(parameter_name)
                parameter.copy_((1 - alpha) * w0 + alpha * parameter)
            with model.at_alpha(alpha):
                assert relative(model(x), mixed(x)) < GRAPH


def test_a_point_is_the_line_with_equal_endpoints() -> None:
    net, x = scramble(Joined()).eval(), torch.randn(3, 3, 8, 8)
    line = SubspaceModel(copy.deepcopy(net), x, subspace="line", line={"parameters": "all", "start": "copy"}).eval()
    point = SubspaceModel(net, x, subspace="point").eval()
    for alpha in ALPHAS:
        with torch.no_grad(), line.at_alpha(alpha), point.at_alpha(alpha):
            assert relative(line(x), point(x)) < SAME_OPS


# -- running statistics -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "norm",
    [nn.BatchNorm2d, lambda n: nn.InstanceNorm2d(n, affine=True, track_running_stats=True)],
    ids=["batch", "instance"],
)
def test_training_below_one_writes_no_running_statistics(norm: Any) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), norm(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4))
    model, x = at_width(net, torch.randn(3, 3, 8, 8), 0.5).train(), torch.randn(3, 3, 8, 8)
    before = {name: value.clone() for name, value in net.named_buffers()}
    with model.at_alpha(0.0):
        model(x)
    with model.runner.training_level(0.0):
        model(x).sum().backward()
    assert [name for name, value in net.named_buffers() if not torch.equal(value, before[name])] == []


def test_a_buffer_that_the_network_updates_itself_is_left_alone_below_one() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(6, 8), nn.Linear(8, 4)
            self.register_buffer("calls", torch.zeros(()))
            self.register_buffer("average", torch.zeros(8))

        def forward(self, x: Tensor) -> Tensor:
            self.calls.add_(1)
            x = self.fc1(x)
            self.average.mul_(0.9).add_(x.detach().mean(0), alpha=0.1)
            return self.fc2(x - self.average)

    model, x = at_width(Counting(), torch.randn(3, 6), 0.5), torch.randn(3, 6)
    with model.at_alpha(0.0), torch.no_grad():
        assert torch.equal(model(x), model(x))
    assert model.module.calls.item() == 0
    assert model.module.average.abs().max().item() == 0
    model(x)
    assert model.module.calls.item() == 1
