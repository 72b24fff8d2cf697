"""Copies, pickles and materialized networks: each lives on its own."""

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from lightning_lcs.graph.materialized import MaterializedModel
from lightning_lcs.model import SubspaceModel
from tests.helpers import BATCH_NORM_WARNING, Chain, Joined, Lambda, Mlp, relative, scramble

pytestmark = pytest.mark.filterwarnings(BATCH_NORM_WARNING)

# The same ops on equal tensors, aligned otherwise in memory.
SAME_OPS = 1e-6
# Eight bits of mantissa, over ten layers.
BFLOAT16 = 0.05

NETWORKS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "chain": lambda: (Chain(), torch.randn(3, 3, 8, 8)),
    "joined": lambda: (Joined(), torch.randn(3, 3, 8, 8)),
    "mlp": lambda: (Mlp(), torch.randn(3, 6)),
    "resnet10t": lambda: (timm.create_model("resnet10t", num_classes=10), torch.randn(3, 3, 32, 32)),
}


def made(name: str, **options: Any) -> tuple[SubspaceModel, Tensor]:
    net, x = NETWORKS[name]()
    return SubspaceModel(scramble(net), x, **{"subspace": "line", **options}).eval(), x


def pickled(thing: Any) -> Any:
    return pickle.loads(pickle.dumps(thing))


def saved(thing: Any) -> Any:
    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = [copy.deepcopy, pickled, saved]


def run(model: SubspaceModel, x: Tensor, alpha: float) -> Tensor:
    with torch.no_grad(), model.at_alpha(alpha):
        return model(x).clone()


def spoil(module: nn.Module) -> None:
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.zero_()


@pytest.mark.parametrize("duplicate", COPIES)
@pytest.mark.parametrize("name", ["chain", "joined", "resnet10t"])
def test_a_copy_runs_as_the_original_and_lives_on_its_own(name: str, duplicate: Callable[[Any], Any]) -> None:
    model, x = made(name, line={"parameters": "all", "start": "independent"})
    model.set_alpha(0.4)
    with torch.no_grad():
        model(x)
    expected = {alpha: run(model, x, alpha) for alpha in (0.0, 0.4, 1.0)}
    twin = duplicate(model)
    assert twin.alpha == 0.4
    assert twin.plan.report(0.4) == model.plan.report(0.4)
    for alpha, output in expected.items():
        assert relative(run(twin, x, alpha), output) < SAME_OPS
    spoil(twin)
    assert all(torch.equal(run(model, x, alpha), output) for alpha, output in expected.items())
    twin = duplicate(model)
    spoil(model)
    assert all(relative(run(twin, x, alpha), output) < SAME_OPS for alpha, output in expected.items())


@pytest.mark.parametrize("duplicate", COPIES)
def test_a_copy_trains_its_own_parameters(duplicate: Callable[[Any], Any]) -> None:
    model, x = made("joined")
    twin = duplicate(model).train()
    with twin.runner.training_level(0.3):
        twin(x).sum().backward()
    assert all(p.grad is None for p in model.parameters())
    assert all(p.grad is not None for p in twin.parameters())
    assert {id(w0) for w0, _ in twin.endpoint_pairs()} <= {id(p) for p in twin.parameters()}


@pytest.mark.parametrize("duplicate", COPIES)
def test_stored_statistics_travel_with_a_copy(duplicate: Callable[[Any], Any]) -> None:
    model, x = made("chain", subspace="point")
    small = model.materialize(0.4).named_buffers()
    model.statistics = {0.4: {name: torch.rand_like(value) + 0.5 for name, value in small if "running" in name}}
    expected = run(model, x, 0.4)
    twin = duplicate(model)
    model.statistics[0.4]["bn1.running_mean"].zero_()
    assert relative(run(twin, x, 0.4), expected) < SAME_OPS


# -- materialized networks --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("train", [False, True])
def test_a_materialized_network_accepts_only_its_own_mode(train: bool) -> None:
    small = made("mlp")[0].materialize(0.5, train=train)
    assert small.training == train
    assert small.train(train) is small
    with pytest.raises(RuntimeError, match=f"materialize\\(alpha, train={not train}\\)"):
        small.train(not train)
    with pytest.raises(RuntimeError, match="was materialized for"):
        (small.eval if train else small.train)()
    assert small.training == train
    for twin in (copy.deepcopy(small), pickled(small)):
        assert twin.training == train
        with pytest.raises(RuntimeError, match="was materialized for"):
            twin.train(not train)


@pytest.mark.parametrize("name", NETWORKS)
def test_state_dict_of_a_materialized_network_has_the_users_names(name: str) -> None:
    model, _ = made(name, line={"parameters": "all"})
    user, smaller = model.module.state_dict(), 0
    small = model.materialize(0.0)
    assert isinstance(small, MaterializedModel)
    for key, value in small.state_dict().items():
        assert value.ndim == user[key].ndim
        assert all(ours <= theirs for ours, theirs in zip(value.shape, user[key].shape, strict=True))
        smaller += value.numel() < user[key].numel()
    assert smaller > 0
    unread = {key for key in user if key.endswith("num_batches_tracked")}
    assert set(user) - set(small.state_dict()) == unread
    assert {key for key, _ in small.named_parameters()} == {
        key for key, _ in model.module.named_parameters() if "lcs" not in key
    }


def test_what_the_user_does_not_save_a_materialized_network_does_not_save() -> None:
    net = Mlp()
    net.register_buffer("table", torch.rand(16), persistent=False)
    outer = Lambda(lambda m, x: m.net.fc2(m.net.fc1(x) * m.net.table) + torch.tensor([1.0, 2.0, 3.0, 4.0]), net=net)
    small = SubspaceModel(outer, torch.randn(3, 6), subspace="point").eval().materialize(0.5)
    assert set(small.state_dict()) <= set(outer.state_dict())


@pytest.mark.parametrize("duplicate", COPIES)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_materialized_network_can_be_copied_and_lives_on_its_own(name: str, duplicate: Callable[[Any], Any]) -> None:
    model, x = made(name)
    small = model.materialize(0.3)
    with torch.no_grad():
        expected = small(x)
        spoil(model)
        assert torch.equal(small(x), expected)
        twin = duplicate(small)
        assert isinstance(twin, MaterializedModel)
        assert twin.state_dict().keys() == small.state_dict().keys()
        spoil(small)
        assert relative(twin(x), expected) < SAME_OPS


@pytest.mark.parametrize("name", ["joined", "resnet10t"])
def test_a_materialized_network_can_be_exported_again(name: str) -> None:
    model, x = made(name)
    small = model.materialize(0.3)
    batch = {0: torch.export.Dim("batch", min=2, max=64)}
    program = torch.export.export(small, (x,), dynamic_shapes=(batch,), strict=False)
    with torch.no_grad():
        larger = torch.cat([x, x])
        assert relative(program.module()(larger), small(larger)) < SAME_OPS


@pytest.mark.parametrize("name", NETWORKS)
def test_a_materialized_network_runs_in_other_precisions(name: str) -> None:
    model, x = made(name)
    small = model.materialize(0.3)
    with torch.no_grad():
        expected = small(x)
        assert relative(copy.deepcopy(small).double()(x.double()).float(), expected) < SAME_OPS
        half = copy.deepcopy(small).to(torch.bfloat16)(x.to(torch.bfloat16))
        assert half.dtype == torch.bfloat16
        assert relative(half.float(), expected) < BFLOAT16


@pytest.mark.filterwarnings("ignore:.*stay whole at every level.*was never trained:UserWarning")
def test_a_materialized_network_trains() -> None:
    net, x = NETWORKS["chain"]()
    net.conv1.requires_grad_(False)
    small = SubspaceModel(net, x).materialize(0.5, train=True)
    assert {name for name, p in small.named_parameters() if not p.requires_grad} == {"conv1.weight"}
    before = {name: value.clone() for name, value in small.state_dict().items()}
    user = {name: value.clone() for name, value in net.state_dict().items()}
    optimizer = torch.optim.SGD(small.parameters(), lr=0.1)
    small(x).square().sum().backward()
    optimizer.step()
    unchanged = {name for name, value in small.state_dict().items() if torch.equal(value, before[name])}
    # A bias before a batch norm has no gradient but rounding.
    assert {"conv1.weight"} <= unchanged <= {"conv1.weight", "conv2.bias"}
    assert small.state_dict()["bn1.num_batches_tracked"].item() == 1
    assert all(torch.equal(value, user[name]) for name, value in net.state_dict().items())


def test_a_materialized_network_gives_the_users_structure_of_results() -> None:
    net = Lambda(lambda m, x: {"logits": m.a(x), "pair": (x, None)}, a=Mlp())
    model, x = SubspaceModel(net, torch.randn(3, 6), subspace="point").eval(), torch.randn(3, 6)
    result = model.materialize(0.5)(x)
    assert list(result) == ["logits", "pair"]
    assert result["pair"][1] is None
    assert torch.equal(result["pair"][0], x)
