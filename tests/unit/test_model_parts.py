"""What a subspace model leaves of the user's network, ties, endpoints, and several networks in one."""

import copy

import pytest
import torch
from torch import Tensor, nn

from lightning_lcs.functional.subspace import endpoint_cosine
from lightning_lcs.model import SubspaceModel
from lightning_lcs.subspace.mode import Level
from lightning_lcs.subspace.weights.line import Line
from tests.helpers import BATCH_NORM_WARNING, Chain, Joined, Lambda, Mlp, at_width, relative, scramble

pytestmark = pytest.mark.filterwarnings(BATCH_NORM_WARNING)

# The same ops on equal tensors, aligned otherwise in memory.
SAME_OPS = 1e-6


# -- options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["mode", "subspace", "parameters", "start"])
def test_an_unknown_option_is_an_error_that_names_it_and_leaves_the_network(option: str) -> None:
    net, given = Mlp(), {option: "no such thing"}
    with pytest.raises(ValueError, match=rf"{option}='no such thing'\)? is not known; choose one of"):
        SubspaceModel(net, **given if option in ("mode", "subspace") else {"line": given})  # type: ignore[arg-type]
    assert [name for name, _ in net.named_modules() if "lcs" in name] == []


def test_a_line_of_norms_needs_a_norm() -> None:
    with pytest.raises(ValueError, match=r"finds no normalisation layer.*Line\(parameters='all'\)"):
        SubspaceModel(nn.Linear(3, 4), subspace="line")


@pytest.mark.parametrize(
    ("mode", "expected"), [("structured", "point"), ("unstructured", "point"), ("quantized", "point")]
)
def test_the_subspace_by_default_is_that_of_the_mode(mode: str, expected: str) -> None:
    assert SubspaceModel(Mlp(), mode=mode).subspace == expected
    bare = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    assert SubspaceModel(bare, mode=mode).subspace == "point"
    everything = SubspaceModel(bare, mode=mode, line=Line(parameters="all"))
    assert (everything.subspace, bool(everything.endpoint_pairs())) == (expected, expected == "line")


def test_no_network_is_an_error() -> None:
    with pytest.raises(ValueError, match="module is empty"):
        SubspaceModel({})


def test_cost_and_plan_need_a_call_or_an_example() -> None:
    model = SubspaceModel(Mlp())
    for ask in (lambda: model.efficiency(0.5), lambda: model.plan, lambda: model.materialize(0.5)):
        with pytest.raises(RuntimeError, match="example_inputs"):
            ask()
    with model.at_alpha(0.5):
        model(torch.randn(3, 6))
    assert model.efficiency(0.5).macs > 0


# -- the user's network stays the user's ------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["norm", "all"])
def test_state_dict_of_the_network_is_the_users_own(which: str) -> None:
    plain = scramble(Chain())
    net = copy.deepcopy(plain)
    model = SubspaceModel(net, torch.randn(2, 3, 8, 8), subspace="line", line=Line(parameters=which))
    assert list(net.state_dict()) == list(plain.state_dict())
    assert not any("lcs" in name for name in (*net.state_dict(), *model.state_dict()))
    assert net.load_state_dict(scramble(Chain()).state_dict(), strict=True).missing_keys == []
    assert plain.load_state_dict(net.state_dict(), strict=True).unexpected_keys == []


def test_endpoints_sit_beside_their_partners_and_reach_any_optimizer() -> None:
    net = Chain()
    model = SubspaceModel(net, subspace="line", line=Line(parameters="all", start="independent"))
    pairs = model.endpoint_pairs()
    found = {id(p) for group in (net.conv1, net.bn1, net.conv2, net.bn2, net.head) for p in group.parameters()}
    assert all(id(w0) in found and id(w1) in found for w0, w1 in pairs)
    for w0, w1 in pairs:
        assert w0.shape == w1.shape
        assert torch.equal(w0, w1) == (w0.ndim < 2)
    names = dict(net.named_parameters())
    assert names["conv1.lcs_endpoint_0.weight"] is model.parts[0].endpoints["conv1.weight"]


def test_only_norms_are_on_the_line_by_default() -> None:
    model = SubspaceModel(Joined(), subspace="line")
    assert set(model.parts[0].endpoints) == {"norm.weight", "norm.bias"}
    assert all(torch.equal(w0, w1) for w0, w1 in model.endpoint_pairs())
    assert SubspaceModel(Mlp(), subspace="point").endpoint_pairs() == []


def test_independent_endpoints_depend_on_the_seed_alone() -> None:
    def drawn(seed: int) -> list[Tensor]:
        options = {"subspace": "line", "line": Line(parameters="all", start="independent"), "seed": seed}
        return [w0 for w0, _ in SubspaceModel(copy.deepcopy(net), **options).endpoint_pairs()]  # type: ignore[arg-type]

    net = Mlp()
    first = drawn(1)
    torch.manual_seed(99)
    assert all(torch.equal(a, b) for a, b in zip(first, drawn(1), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, drawn(2), strict=True))


def test_endpoint_cosine_is_that_of_the_pairs() -> None:
    """Of weights; scales and shifts, which start alike, count where nothing else lies on the line."""
    model = SubspaceModel(scramble(Chain()), subspace="line", line=Line(parameters="all", start="independent"))
    weights = [pair for pair in model.endpoint_pairs() if pair[0].ndim > 1]
    assert 0 < len(weights) < len(model.endpoint_pairs())
    assert relative(model.endpoint_cosine(), endpoint_cosine(weights)) < SAME_OPS
    norms = SubspaceModel(scramble(Chain()), subspace="line", line=Line(parameters="norm"))
    assert all(w0.ndim == 1 for w0, _ in norms.endpoint_pairs())
    assert relative(norms.endpoint_cosine(), endpoint_cosine(norms.endpoint_pairs())) < SAME_OPS


def test_the_head_is_not_on_the_line_of_the_backbone() -> None:
    model = SubspaceModel(scramble(Chain()), subspace="line", line=Line(parameters="backbone"))
    everything = SubspaceModel(scramble(Chain()), subspace="line", line=Line(parameters="all"))
    missing = set(everything.parts[0].endpoints) - set(model.parts[0].endpoints)
    head = next(name for name, child in reversed(list(Chain().named_modules())) if isinstance(child, nn.Linear))
    assert missing == {f"{head}.weight", f"{head}.bias"}
    with pytest.raises(ValueError, match=r"Line\(parameters='backbone'\) finds no parameter outside the head"):
        SubspaceModel(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), subspace="line", line=Line(parameters="backbone"))


def test_endpoint_cosine_of_copies_is_one() -> None:
    copied = SubspaceModel(scramble(Chain()), subspace="line", line=Line(parameters="all"))
    assert copied.endpoint_cosine().item() == pytest.approx(1.0, abs=SAME_OPS)


# -- tied weights -----------------------------------------------------------------------------------------------------


class Tied(nn.Module):
    """Two layers share their weight; one module is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.middle, self.tied = nn.Linear(6, 12), nn.Linear(12, 12), nn.Linear(12, 12)
        self.tied.weight = self.middle.weight
        self.norm, self.head = nn.LayerNorm(12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.into(x))
        return self.head(self.norm(self.tied(self.middle(x).relu())))


def test_tied_weights_share_one_endpoint() -> None:
    model = SubspaceModel(Tied(), torch.randn(3, 6), subspace="line", line=Line(parameters="all", start="independent"))
    endpoints = model.parts[0].endpoints
    assert endpoints["middle.weight"] is endpoints["tied.weight"]
    assert endpoints["middle.bias"] is not endpoints["tied.bias"]
    assert len(model.endpoint_pairs()) == len({id(p) for p in endpoints.values()}) == 9
    x = torch.randn(3, 6)
    with model.at_alpha(0.5):
        model(x).sum().backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    with model.runner.training_level(0.5):
        model(x).sum().backward()
    for name, p in model.named_parameters():
        assert p.grad is not None
        assert relative(p.grad, expected[name]) < SAME_OPS


def test_tied_weights_at_a_level_and_materialized() -> None:
    model, x = at_width(scramble(Tied()), torch.randn(3, 6), 0.5), torch.randn(3, 6)
    small = model.materialize(0.0)
    with torch.no_grad(), model.at_alpha(0.0):
        assert relative(small(x), model(x)) < SAME_OPS
    assert set(small.state_dict()) <= set(model.module.state_dict())


# -- several networks -------------------------------------------------------------------------------------------------


def two() -> tuple[SubspaceModel, nn.Module, nn.Module]:
    a, b = scramble(Chain()).eval(), scramble(Joined()).eval()
    return SubspaceModel({"encoder": a, "heads.b": b}, subspace="point").eval(), a, b


def test_parts_run_each_at_the_level() -> None:
    model, a, b = two()
    x = torch.randn(3, 3, 8, 8)
    for part, net in zip(model.parts, (a, b), strict=True):
        alone = SubspaceModel(copy.deepcopy(net), x, subspace="point").eval()
        with torch.no_grad():
            assert torch.equal(model.runner.run(part, net, (x,), {}), net(x))
            with model.at_alpha(0.5), alone.at_alpha(0.5):
                assert relative(model.runner.run(part, net, (x,), {}), alone(x)) < SAME_OPS
        assert part.calls == 2
    small = model.materialize(0.5)
    assert isinstance(small, nn.ModuleDict)
    assert list(small) == ["encoder", "heads_b"]
    with torch.no_grad():
        assert small["heads_b"](x).shape == (3, 4)


def test_asking_several_networks_for_one_is_an_error_that_names_them() -> None:
    model, _, _ = two()
    for ask in (lambda: model(torch.randn(3, 3, 8, 8)), lambda: model.plan):
        with pytest.raises(RuntimeError, match=r"several: 'encoder', 'heads\.b'"):
            ask()
    with pytest.raises(RuntimeError, match="example_inputs"):
        SubspaceModel({"a": Chain(), "b": Chain()}, torch.randn(2, 3, 8, 8))


def test_parts_train_together() -> None:
    x = torch.randn(3, 3, 8, 8)
    model = SubspaceModel({"a": Chain(classes=4), "b": Joined()}, subspace="line").train()
    with model.runner.training_level(0.5):
        sum(model.runner.run(part, part.network.module, (x,), {}).sum() for part in model.parts).backward()
    ours = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    with model.at_alpha(0.5):
        sum(model.runner.run(part, part.network.module, (x,), {}).sum() for part in model.parts).backward()
    assert ours.keys() == {name for name, p in model.named_parameters() if p.grad is not None}
    scale = max(gradient.abs().max().item() for gradient in ours.values())
    for name, gradient in ours.items():
        expected = model.get_parameter(name).grad
        assert expected is not None
        assert (gradient - expected).abs().max().item() < SAME_OPS * scale


def test_a_module_in_two_parts_has_one_endpoint() -> None:
    shared = nn.LayerNorm(8)
    parts = {name: nn.Sequential(nn.Linear(6, 8), shared, nn.Linear(8, 4)) for name in "ab"}
    model = SubspaceModel(parts, subspace="line")
    assert len(model.endpoint_pairs()) == 2
    assert {id(w0) for w0, _ in model.endpoint_pairs()} <= {id(p) for p in model.parameters()}


def test_a_part_without_norms_is_the_same_at_both_ends_of_a_line() -> None:
    """A head beside a backbone; a line without any norm is refused, and leaves nothing behind."""
    model = SubspaceModel({"backbone": Mlp(), "head": nn.Linear(4, 3)}, subspace="line")
    assert [len(part.endpoints) for part in model.parts] == [2, 0]
    parts = {"a": nn.Linear(3, 4), "b": nn.Linear(4, 4)}
    with pytest.raises(ValueError, match="no normalisation layer"):
        SubspaceModel(parts, subspace="line")
    assert [name for part in parts.values() for name, _ in part.named_parameters() if "lcs" in name] == []


@pytest.mark.parametrize("mode", ["unstructured", "quantized"])
def test_a_part_without_layers_to_compress_stays_whole(mode) -> None:
    model = SubspaceModel({"backbone": Mlp(), "act": nn.BatchNorm1d(4)}, mode=mode, subspace="point")
    assert [bool(part.compressed) for part in model.parts] == [True, False]
    with pytest.raises(ValueError, match=f"no layer that {mode.capitalize()} compresses"):
        SubspaceModel({"a": nn.BatchNorm1d(4), "b": nn.LayerNorm(4)}, mode=mode, subspace="point")


def test_the_report_has_all_parts() -> None:
    model = SubspaceModel({"backbone": Mlp(), "head": nn.Linear(4, 3)}, subspace="point").eval()
    with torch.no_grad(), model.at_alpha(0.5):
        for part, x in zip(model.parts, (torch.randn(3, 6), torch.randn(3, 4)), strict=True):
            model.mode.execution(part, Level(model.mode, 0.5), (x,), {})
    text = model.report()
    assert text.startswith("backbone: ")
    assert "\nhead: 0 of 2 parameters and buffers are sliced" in text
    with pytest.raises(RuntimeError, match=r"plan needs a single network.*target='self'"):
        _ = model.plan


def test_a_network_without_parameters_that_shrink_runs_at_every_level() -> None:
    model = at_width(Lambda(lambda m, x: m.a(x).softmax(-1), a=nn.Linear(6, 4)), torch.randn(3, 6), 0.25)
    x = torch.randn(3, 6)
    with torch.no_grad(), model.at_alpha(0.0):
        assert relative(model(x), model.module(x)) < SAME_OPS
