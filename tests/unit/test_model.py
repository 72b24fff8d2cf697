import copy
import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_lcs.graph.tracing.errors import TraceError
from lightning_lcs.model import SubspaceModel
from tests.helpers import BATCH_NORM_WARNING, Chain, Lambda, Mlp, at_width, relative, scramble

pytestmark = pytest.mark.filterwarnings(BATCH_NORM_WARNING)

# The same ops on equal tensors, aligned otherwise in memory.
SAME_OPS = 1e-6

BAD_ALPHAS = [math.nan, -0.1, 1.1, "x"]


def chain(**options: Any) -> tuple[SubspaceModel, Tensor]:
    x = torch.randn(3, 3, 8, 8)
    return SubspaceModel(scramble(Chain()), x, **{"subspace": "line", **options}).eval(), x


# -- the level --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", BAD_ALPHAS)
def test_a_wrong_alpha_is_an_error_and_leaves_the_level(alpha: float) -> None:
    model, _ = chain()
    model.set_alpha(0.3)
    for enter in (model.at_alpha, model.runner.training_level):
        with pytest.raises(ValueError, match=r"x|alpha=.* is not in \[0, 1\]"), enter(alpha):
            pass
    for call in (model.set_alpha, model.nearest_level, model.efficiency, model.materialize):
        with pytest.raises(ValueError, match=r"x|alpha=.* is not in \[0, 1\]"):
            call(alpha)
    assert model.alpha == 0.3


def test_at_alpha_restores_on_any_exit() -> None:
    model, _ = chain()
    model.set_alpha(0.7)

    def fail() -> None:
        with model.at_alpha(0.2):
            with model.at_alpha(0.0) as inner:
                assert inner is model
                assert model.alpha == 0.0
            assert model.alpha == 0.2
            raise KeyError("user")

    with pytest.raises(KeyError):
        fail()
    assert model.alpha == 0.7


def test_an_error_of_the_network_leaves_the_level_usable() -> None:
    model, x = chain()
    with torch.no_grad(), model.at_alpha(0.5):
        expected = model(x)
        with pytest.raises((RuntimeError, TraceError)):
            model(torch.randn(3, 4, 8, 8))
        assert torch.equal(model(x), expected)


def test_nearest_level() -> None:
    model, _ = chain()
    assert model.nearest_level(0.37) == 0.37
    model.statistics = {0.0: {}, 0.25: {}, 0.75: {}}
    asked = [0.0, 0.1, 0.125, 0.13, 0.49, 0.5, 0.51, 0.874, 0.875, 0.9, 1.0]
    assert [model.nearest_level(alpha) for alpha in asked] == [0, 0, 0.25, 0.25, 0.25, 0.75, 0.75, 0.75, 1, 1, 1]


def test_stored_statistics_are_those_that_the_level_runs_with() -> None:
    model, x = chain(subspace="point")
    small = model.materialize(0.4)
    stored = {name: torch.rand_like(value) + 0.5 for name, value in small.named_buffers() if "running" in name}
    model.statistics = {0.4: stored}
    small.load_state_dict({**small.state_dict(), **stored})
    with warnings.catch_warnings(), torch.no_grad(), model.at_alpha(0.45):
        warnings.simplefilter("error")
        assert relative(model(x), small(x)) < SAME_OPS
        assert relative(model.materialize(0.45)(x), small(x)) < SAME_OPS
    assert model.efficiency(0.45).alpha == 0.4


def test_missing_statistics_warn_once_and_say_what_to_do() -> None:
    model, x = chain()
    with model.at_alpha(0.5), pytest.warns(UserWarning, match=r"alpha=0.5 .*recalibrate"):
        model(x)
    with warnings.catch_warnings(), model.at_alpha(0.4):
        warnings.simplefilter("error")
        model(x)


# -- calls ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("traced", [1, 2, 5])
def test_any_batch_size_serves_whatever_was_traced(traced: int) -> None:
    net = scramble(Chain()).eval()
    model = at_width(net, torch.randn(traced, 3, 8, 8), 0.5)
    x = torch.randn(6, 3, 8, 8)
    with torch.no_grad(), model.at_alpha(0.0):
        whole = model(x)
        for size in (1, 2, 3, 6):
            assert relative(torch.cat([model(part) for part in x.split(size)]), whole) < SAME_OPS


def test_another_resolution_serves() -> None:
    model, _ = chain()
    with torch.no_grad(), model.at_alpha(0.5):
        for size in (8, 12, 7, 8):
            x = torch.randn(2, 3, size, size + 1)
            small = SubspaceModel(copy.deepcopy(model.module), x, subspace="point").eval().materialize(0.5)
            assert relative(model(x), small(x)) < SAME_OPS


def test_arguments_by_name_and_by_default() -> None:
    model, x = SubspaceModel(Mlp(), subspace="point").eval(), torch.randn(3, 6)
    with torch.no_grad(), model.at_alpha(0.5):
        once = model(x)
        assert torch.equal(model(x=x), once)
        for call in (lambda: model(x, 2.0), lambda: model(x, scale=2.0), lambda: model(scale=2.0, x=x)):
            assert relative(call(), 2.0 * once) < SAME_OPS


def test_nested_arguments_and_results() -> None:
    net = Lambda(
        lambda m, images, extra=None: {"sum": m.a(images["x"]) + m.a(images["y"]), "same": images["x"], "none": extra},
        a=Mlp(),
    )
    model = SubspaceModel(net, subspace="point").eval()
    x, y = torch.randn(3, 6), torch.randn(3, 6)
    with torch.no_grad(), model.at_alpha(0.5):
        result = model({"x": x, "y": y})
        assert list(result) == ["sum", "same", "none"]
        assert result["none"] is None
        assert torch.equal(result["same"], x)
        assert torch.equal(result["sum"], model({"y": x, "x": y})["sum"])


@pytest.mark.parametrize("train", [False, True])
def test_tracing_leaves_no_trace(train: bool) -> None:
    net = scramble(Mlp(dropout=0.5)).train(train)
    net.norm.eval()
    flags = {name: child.training for name, child in net.named_modules()}
    state = {name: value.clone() for name, value in net.state_dict().items()}
    generator = torch.get_rng_state()
    SubspaceModel(net, torch.randn(3, 6, generator=torch.Generator()), subspace="point")
    assert torch.equal(torch.get_rng_state(), generator)
    assert {name: child.training for name, child in net.named_modules()} == flags
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())


class Undecided(nn.Module):
    """Its path depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Mlp()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) if x.sum() > 0 else -self.body(x)


def test_a_network_that_cannot_be_traced_is_an_error_that_names_its_class() -> None:
    x = torch.ones(3, 6)
    with pytest.raises(TraceError, match="Undecided can't be traced"):
        SubspaceModel(Undecided(), x)
    model = SubspaceModel(Undecided())
    assert model(x).shape == (3, 4)
    with model.at_alpha(0.5), pytest.raises(TraceError, match="Undecided can't be traced"):
        model(x)
    assert model(x).shape == (3, 4)


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: torch.stack([m.a(row) for row in x]),
        lambda m, x: m.a(x) / len(x),
        lambda m, x: m.a(x) * int(x.shape[0]),
        lambda m, x: m.a(x).view(int(x.shape[0]), -1),
        lambda m, x: m.a(x.reshape(11, 6)),
    ],
    ids=["loop over rows", "len", "int", "view", "stored size"],
)
def test_a_forward_that_fixes_the_batch_size_is_an_error_that_names_its_class(forward: Callable[..., Tensor]) -> None:
    with pytest.raises(TraceError, match="Lambda fixes the batch size"):
        SubspaceModel(Lambda(forward, a=Mlp()), torch.randn(11, 6))
