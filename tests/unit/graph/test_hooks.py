"""Hooks and gradient checkpointing: what a trace keeps of them is right, and what it loses is told once."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.utils.checkpoint import checkpoint

from lightning_lcs.graph.tracing.errors import TraceError
from lightning_lcs.model import SubspaceModel
from tests.helpers import BATCH_NORM_WARNING, Chain, relative, scramble

pytestmark = pytest.mark.filterwarnings(BATCH_NORM_WARNING)
X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
# The traced graph against the network's own code, or one trace against another.
SAME_OPS = 1e-5
WATCH = r"the forward hooks of conv2 only watch, so they run at alpha = 1 only"
SAVES = r"gradient checkpointing \(of conv2\) saves memory at alpha = 1 only"


def subspace(net: nn.Module, x: Tensor = X) -> SubspaceModel:
    return SubspaceModel(net.train(), x, subspace="point")


def told(make: Callable[[], Any]) -> tuple[Any, list[str]]:
    """What is made, and the warnings meanwhile, other than of batch norm."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.filterwarnings("ignore", "running at alpha=")
        made = make()
    return made, [str(each.message) for each in caught]


def equal_at_one(model: SubspaceModel, x: Tensor = X) -> bool:
    model.eval()
    with torch.no_grad():
        return relative(model.materialize(1.0)(x), model.module(x)) < SAME_OPS


# -- hooks that only watch --------------------------------------------------------------------------------------------


def watchers(seen: list[Any]) -> dict[str, Callable[..., None]]:
    return {
        "collects": lambda module, args, result: seen.append(result),
        "logs": lambda module, args, result: seen.append(float(result.detach().mean())),
        "leaves torch": lambda module, args, result: seen.append(result.detach().numpy()),
        "notes": lambda module, args, result: setattr(module, "last", result),
    }


@pytest.mark.parametrize("kind", list(watchers([])))
def test_a_hook_that_only_watches_is_told_once(kind: str) -> None:
    seen: list[Any] = []
    net = scramble(Chain())
    net.conv2.register_forward_hook(watchers(seen)[kind])
    with pytest.warns(UserWarning, match=WATCH) as caught:
        model = subspace(net)
    assert len(caught) == 1
    assert equal_at_one(model)
    # Another form and another size are traced, and nothing is told again.
    net.bn1.train()
    with model.at_alpha(0.5):
        assert model(torch.randn(2, 3, 16, 16)).shape == (2, 5)
    # It never saw a tensor without data.
    assert all(type(value) in (Tensor, float) or "numpy" in str(type(value)) for value in seen)
    with model.at_alpha(0.5):
        model(X)
        count = len(seen)
        model(X)
    assert len(seen) == count or kind == "notes"
    model(X)
    assert len(seen) == count + (kind != "notes")


def test_the_warning_names_the_first_modules_and_counts_the_others() -> None:
    net = Chain()
    for child in net.children():
        child.register_forward_hook(lambda module, args, result: None)
    with pytest.warns(UserWarning, match=r"hooks of conv1, bn1, conv2 and 2 more only watch"):
        subspace(net)


def test_a_hook_that_watches_before_its_module() -> None:
    net = Chain()
    net.conv2.register_forward_pre_hook(lambda module, args, kwargs: None, with_kwargs=True)
    with pytest.warns(UserWarning, match=WATCH):
        subspace(net)


def test_hooks_in_modes_that_run_the_network_itself_are_not_told() -> None:
    net = Chain()
    seen: list[Tensor] = []
    net.conv2.register_forward_hook(lambda module, args, result: seen.append(result))
    model = SubspaceModel(net, mode="unstructured", subspace="point")
    model.set_alpha(0.5)
    model(X)
    assert len(seen) == 1


# -- hooks that count -------------------------------------------------------------------------------------------------


def twice_in_place(module: nn.Module, args: Any, result: Tensor) -> None:
    result.mul_(2)


@pytest.mark.parametrize(
    "register",
    [
        lambda conv: conv.register_forward_hook(lambda module, args, result: 2 * result),
        lambda conv: conv.register_forward_hook(twice_in_place),
        lambda conv: conv.register_forward_pre_hook(lambda module, args: (2 * args[0],)),
    ],
    ids=["result", "in place", "argument"],
)
def test_a_hook_that_changes_values_is_traced_and_not_told(register: Callable[[nn.Module], Any]) -> None:
    net = scramble(Chain())
    register(net.conv2)
    model, messages = told(lambda: subspace(net))
    assert messages == []
    assert equal_at_one(model)
    plain = Chain().eval()
    plain.load_state_dict(net.state_dict())
    with torch.no_grad():
        assert relative(model.materialize(1.0)(X), plain(X)) > 100 * SAME_OPS


# torch 2.9.1 refuses to trace a forward that leaves a tensor in an attribute of its own; 2.14 warns.
REFUSED_BEFORE = pytest.mark.skipif(torch.__version__ < "2.14", reason="this torch.export refuses it, and we say so")


class Taps(Chain):
    """Its forward uses what a hook has put aside."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.taps: dict[str, Tensor] = {}
        self.kind = kind
        self.bn1.register_forward_hook(self.tap)
        self.conv1.register_forward_hook(lambda module, args, result: None)

    def tap(self, module: nn.Module, args: Any, result: Tensor) -> None:
        if self.kind == "attribute":
            module.tapped = result
        else:
            self.taps["bn1"] = result

    def forward(self, x: Tensor) -> Tensor:
        last = super().forward(x)
        tapped = self.bn1.tapped if self.kind == "attribute" else self.taps["bn1"]
        if self.kind == "emptied":
            self.taps.clear()
        return last * tapped.mean((1, 2, 3))[:, None]


@pytest.mark.filterwarnings("ignore:The tensor attribute self.*tap.* was assigned:UserWarning")
@pytest.mark.parametrize("kind", [pytest.param("kept", marks=REFUSED_BEFORE), "emptied", "attribute"])
def test_a_hook_that_collects_what_the_forward_needs_is_traced_and_not_told(kind: str) -> None:
    with pytest.warns(UserWarning, match=r"hooks of conv1 only watch"):
        model = subspace(scramble(Taps(kind)))
    assert equal_at_one(model)
    assert equal_at_one(model, torch.randn(2, 3, 8, 8))


def test_the_hooks_of_timm_s_feature_extractors_are_traced() -> None:
    net = timm.create_model("resnet10t", features_only=True, feature_cls="hook").train()
    x = torch.randn(2, 3, 32, 32)
    model, messages = told(lambda: SubspaceModel(net, x, subspace="point"))
    assert messages == []
    model.eval()
    with torch.no_grad(), model.at_alpha(0.5):
        sizes = [feature.shape[1] for feature in model(x)]
    # What a network returns is whole.
    assert sizes == [feature.shape[1] for feature in net(x)]


@pytest.mark.filterwarnings("ignore:The tensor attribute self.conv2.weight was assigned:UserWarning")
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize(
    "wrap",
    [
        torch.nn.utils.weight_norm,
        torch.nn.utils.spectral_norm,
        lambda conv: prune.l1_unstructured(conv, "weight", amount=0.5),
    ],
    ids=["weight norm", "spectral norm", "pruning"],
)
def test_weights_that_torch_computes_in_hooks_stay_trained(wrap: Callable[[nn.Module], Any]) -> None:
    net = Chain()
    wrap(net.conv2)
    model = subspace(net)
    with model.runner.training_level(0.5):
        model(X).square().sum().backward()
    behind = [name for name, p in net.named_parameters() if name.startswith("conv2") and p.grad is not None]
    assert len(behind) == sum(name.startswith("conv2") for name, _ in net.named_parameters())


@pytest.mark.filterwarnings("ignore:The tensor attribute self.conv2.weight was assigned:UserWarning")
def test_weights_that_a_hook_of_the_user_computes_stay_trained() -> None:
    net = Chain()
    weight = nn.Parameter(net.conv2.weight.detach().clone())
    del net.conv2.weight
    net.conv2.register_parameter("own", weight)
    net.conv2.register_forward_pre_hook(lambda module, args: setattr(module, "weight", 2 * module.own))
    model, messages = told(lambda: subspace(net))
    assert not any("only watch" in message for message in messages)
    with model.runner.training_level(0.5):
        model(X).square().sum().backward()
    assert weight.grad is not None


def test_hooks_that_come_later_are_seen() -> None:
    net = scramble(Chain())
    model = subspace(net).eval()
    with torch.no_grad(), model.at_alpha(0.5):
        before = model(X)
        net.conv2.register_forward_hook(lambda module, args, result: None)
        with pytest.warns(UserWarning, match=WATCH):
            assert relative(model(X), before) < SAME_OPS
        handle = net.conv2.register_forward_hook(lambda module, args, result: 3 * result)
        changed = model(X)
        assert relative(changed, before) > 100 * SAME_OPS
        handle.remove()
        assert relative(model(X), before) < SAME_OPS


def test_a_hook_of_the_network_itself_that_changes_values_is_an_error() -> None:
    # It would not run below alpha = 1: there is no module around the trace that it could belong to.
    net = Chain()
    net.register_forward_hook(lambda module, args, result: 3 * result)
    with pytest.raises(TraceError, match="another result than the network itself"):
        subspace(net)


def test_hooks_around_an_adopted_network_are_none_of_it() -> None:
    net = scramble(Chain()).eval()
    net.register_forward_hook(lambda module, args, result: 3 * result)
    with torch.no_grad():
        expected = net(X)
        model = SubspaceModel(net, subspace="point").eval()
        part = model.parts[0]
        own = net.forward
        net.forward = lambda *args: model.runner.run(part, own, args, {})  # type: ignore[method-assign]
        model.set_alpha(1e-9 + 1 - 1e-3)  # every channel is kept, and the trace runs
        assert relative(net(X), expected) < SAME_OPS
        model.set_alpha(0.0)
        assert torch.equal(net(X), 3 * net.forward(X))


# -- gradient checkpointing -------------------------------------------------------------------------------------------


class Checkpointed(Chain):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x)).relu()
        x = checkpoint(lambda y: self.bn2(self.conv2(y)).relu(), x, use_reentrant=self.reentrant)
        return self.head(x.mean((2, 3)))


def test_gradient_checkpointing_is_told_once() -> None:
    net = Checkpointed(reentrant=False)
    with pytest.warns(UserWarning, match=SAVES) as caught:
        model = subspace(net)
    assert len(caught) == 1
    net.bn1.eval()
    with model.runner.training_level(0.0):
        model(X).sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    # At alpha = 1 it is still there.
    calls = []
    net.conv2.register_forward_pre_hook(lambda module, args: calls.append(1))
    net(X).sum().backward()
    assert len(calls) == 2


def test_checkpointing_that_hides_gradients_is_an_error() -> None:
    net = Checkpointed(reentrant=True)
    with pytest.raises(
        TraceError, match=r"Checkpointed uses the older kind of gradient checkpointing.*reentrant=False"
    ):
        subspace(net)
    assert all(p.grad is None for p in net.parameters())
    assert all(not child._forward_pre_hooks for child in net.modules())


def test_timm_s_gradient_checkpointing_is_told() -> None:
    net = timm.create_model("resnet10t", num_classes=5).train()
    x = torch.randn(2, 3, 32, 32)
    assert told(lambda: SubspaceModel(net, x, subspace="point"))[1] == []
    net.set_grad_checkpointing()
    with pytest.warns(UserWarning, match=r"gradient checkpointing \(of \w+\.\d+.*\) saves memory at alpha = 1 only"):
        SubspaceModel(net, x, subspace="point")
