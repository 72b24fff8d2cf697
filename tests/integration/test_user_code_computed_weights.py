"""Weights that layers compute from other tensors: levels equal networks compressed by hand."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from lightning_lcs import Quantized, SubspaceModel, Unstructured
from lightning_lcs.export import load_bits, load_sparse, save_bits, save_sparse
from lightning_lcs.functional.quantization import fake_quantize
from tests.helpers import relative, rounded
from tests.integration.compressed_by_hand import SAME_OPS, Recurrent, images
from tests.integration.support import Module, Net, digits, group_norm, lcs, loader, trainer


class Normed(nn.Module):
    def __init__(self, wrap: Callable[[nn.Module], nn.Module]) -> None:
        super().__init__()
        self.stem, self.mid, self.head = nn.Conv2d(1, 8, 3), wrap(nn.Conv2d(8, 8, 3)), wrap(nn.Linear(8, 4))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.mid(self.stem(x).relu()).relu().mean((2, 3)))
        return out


def pruned(layer: nn.Module) -> nn.Module:
    prune.l1_unstructured(layer, "weight", 0.25)
    return layer


class Wide(nn.Module):
    """A user's own parametrization."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight.sinh()


def wide(layer: nn.Module) -> nn.Module:
    parametrize.register_parametrization(layer, "weight", Wide())
    return layer


def remembering(wrap: Callable[..., nn.Module]) -> Callable[[], nn.Module]:
    """A network with an LSTM whose recurrent weight is wrapped, as language models have it."""

    def build() -> nn.Module:
        net = Recurrent(nn.LSTM)
        wrap(net.memory, "weight_hh_l0")
        return net

    return build


COMPUTED = {
    "weight norm": lambda: Normed(parametrizations.weight_norm),
    "spectral norm": lambda: Normed(parametrizations.spectral_norm),
    "orthogonal": lambda: Normed(parametrizations.orthogonal),
    "own": lambda: Normed(wide),
    "old weight norm": lambda: Normed(nn.utils.weight_norm),
    "old spectral norm": lambda: Normed(nn.utils.spectral_norm),
    "pruning": lambda: Normed(pruned),
    "recurrent weight norm": remembering(parametrizations.weight_norm),
    "old recurrent weight norm": remembering(nn.utils.weight_norm),
}
every_computed = pytest.mark.parametrize("kind", COMPUTED)
deprecated = pytest.mark.filterwarnings("ignore:.*nn.utils.weight_norm.* is deprecated")


class Straight(nn.Module):
    """Changes a weight, and passes its gradient on unchanged or through a mask."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.change = change

    def forward(self, weight: Tensor) -> Tensor:
        return self.change(weight)


def straight_through(weight: Tensor) -> Tensor:
    return weight + (rounded(weight.detach(), 3) - weight).detach()


def sparse(weight: Tensor) -> Tensor:
    order = weight.detach().abs().flatten().argsort(stable=True)
    mask = torch.ones(weight.numel()).scatter(0, order[: weight.numel() // 2], 0.0)
    return weight * mask.view_as(weight)


def changed_by_hand(kind: str, model: SubspaceModel, change: Callable[[Tensor], Tensor]) -> nn.Module:
    """The same network, in which each compressed weight is changed after its layer has computed it."""
    twin = COMPUTED[kind]().eval()  # in training, adding a parametrization makes a power iteration
    twin.load_state_dict(model.module.state_dict())
    for name in model.parts[0].compressed:
        path, _, leaf = name.rpartition(".")
        layer = twin.get_submodule(path)
        if leaf in layer._parameters or parametrize.is_parametrized(layer, leaf):
            parametrize.register_parametrization(layer, leaf, Straight(change))
        else:
            layer.register_forward_pre_hook(
                lambda layer, _, leaf=leaf: setattr(layer, leaf, change(getattr(layer, leaf)))
            )
    return twin


@deprecated
@every_computed
def test_weights_that_layers_compute_are_made_sparse_as_by_hand(tmp_path, kind):
    mode = Unstructured(layer_density="uniform", max_sparsity=0.5, dense=())
    model = SubspaceModel(COMPUTED[kind]().eval(), images(), mode=mode, subspace="point").eval()
    twin = changed_by_hand(kind, model, sparse)
    state = {name: value.clone() for name, value in model.module.state_dict().items()}
    with torch.no_grad(), model.at_alpha(0.0):
        expected = twin(images())
        assert relative(model(images()), expected) < SAME_OPS
    small = model.materialize(0.0)
    with torch.no_grad():
        assert relative(small(images()), expected) < SAME_OPS
    # A plain network: it can be pickled, copied and loaded, and half of the entries of its weights are zero.
    again = pickle.loads(pickle.dumps(small))
    again.load_state_dict(copy.deepcopy(small).state_dict())
    weights = [value for value in again.parameters() if value.ndim > 1]
    assert {int(value.count_nonzero()) for value in weights} == {value.numel() // 2 for value in weights}
    counted = model.efficiency(0.0).params - sum(value.numel() for value in again.parameters() if value.ndim == 1)
    assert counted == sum(value.numel() // 2 for value in weights)
    assert model.efficiency(1.0).params == sum(value.numel() for value in model.module.parameters())
    assert "kept whole" not in model.report()
    file, net = save_sparse(model, tmp_path / "levels.safetensors", [0.0, 1.0]), COMPUTED[kind]().eval()
    load_sparse(file.path, net).set_alpha(0.0)
    assert relative(net(images()), expected) < SAME_OPS
    assert all(torch.equal(value, state[name]) for name, value in model.module.state_dict().items())


@deprecated
@every_computed
def test_weights_that_layers_compute_are_quantized_as_by_hand(tmp_path, kind):
    model = SubspaceModel(COMPUTED[kind]().eval(), images(), mode=Quantized(edge_bits=3), subspace="point").eval()
    model.recalibrate([images()], [0.0])
    twin = changed_by_hand(kind, model, straight_through)
    level = model.mode.snap(0.0)
    for name, limits in model.statistics[level].items():
        layer = twin.get_submodule(name.removesuffix(".input_range"))
        layer.register_forward_pre_hook(
            lambda _, args, limits=limits: (fake_quantize(args[0], *limits.unbind(), 3), *args[1:])
        )
    with torch.no_grad(), model.at_alpha(0.0):
        expected = twin(images())
        assert relative(model(images()), expected) < SAME_OPS
        assert relative(model.materialize(0.0)(images()), expected) < SAME_OPS
    file = save_bits(model, tmp_path / "level.safetensors", 0.0)
    loaded = load_bits(file.path, COMPUTED[kind]())
    assert relative(loaded(images()), expected) < SAME_OPS
    loaded.load_state_dict(loaded.state_dict())
    model.save(tmp_path / "model.lcs")
    other = SubspaceModel.load(tmp_path / "model.lcs", COMPUTED[kind]())
    with torch.no_grad(), other.at_alpha(0.0):
        assert relative(other(images()), expected) < SAME_OPS


@deprecated
@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("mode", ["quantized", "unstructured"])
@every_computed
def test_training_reaches_what_a_weight_is_computed_from(kind, mode, direct):
    options = {
        "quantized": Quantized(edge_bits=3),
        "unstructured": Unstructured(layer_density="uniform", max_sparsity=0.5, dense=()),
    }
    model = SubspaceModel(COMPUTED[kind](), images(), mode=options[mode], subspace="point").train()
    change = straight_through if mode == "quantized" else sparse
    twin = changed_by_hand(kind, model, change).train()
    # Inputs are not quantized until the warm-up is over.
    strength = 0.999999 if mode == "quantized" else 1.0
    with model.runner.training_level(0.0, direct=direct, strength=strength):
        for batch in (images(), 2.0 * images()):  # a network that is called twice, such as a discriminator
            model(batch).square().mean().backward()
    for batch in (images(), 2.0 * images()):
        twin(batch).square().mean().backward()
    theirs = dict(twin.named_parameters())
    for name, parameter in model.module.named_parameters():
        other = next(theirs[key] for key in (name, original_of(name)) if key in theirs)
        assert relative(parameter.grad, other.grad) < SAME_OPS
    # One power iteration in each forward, as in the plain network.
    buffers = dict(twin.named_buffers())
    for name, value in model.module.named_buffers():
        assert relative(value, buffers[name]) < SAME_OPS
    copy.deepcopy(model.materialize(0.0))  # a forward with gradients has left nothing that can't be copied


def original_of(name: str) -> str:
    path, _, leaf = name.rpartition(".")
    return f"{path}.parametrizations.{leaf}.original"


@deprecated
@pytest.mark.parametrize("direct", [True, False])
@every_computed
def test_both_ends_of_a_line_of_computed_weights_are_trained(kind, direct):
    mode, alpha = Unstructured(layer_density="uniform", max_sparsity=0.5, dense=()), 0.25
    line = {"parameters": "all", "start": "independent"}
    model = SubspaceModel(COMPUTED[kind](), images(), mode=mode, subspace="line", line=line).eval()
    part = model.parts[0]
    twin = COMPUTED[kind]().eval()
    state = {name: value.clone() for name, value in model.module.state_dict().items()}
    for name, endpoint in part.endpoints.items():
        state[name].lerp_(endpoint.detach(), 1.0 - alpha)
    twin.load_state_dict(state)
    before = {name: value.detach().clone() for name, value in twin.named_parameters()}
    change = SubspaceModel(
        twin, images(), mode=Unstructured(layer_density="uniform", max_sparsity=0.375, dense=()), subspace="point"
    ).eval()
    with model.runner.training_level(alpha, direct=direct), change.runner.training_level(0.0, direct=True):
        for network in (model, change):
            network(images()).square().mean().backward()
    for name, endpoint in part.endpoints.items():
        expected = twin.get_parameter(name).grad
        assert torch.equal(before[name], twin.get_parameter(name))
        assert relative(endpoint.grad, (1.0 - alpha) * expected) < SAME_OPS
        assert relative(model.module.get_parameter(name).grad, alpha * expected) < SAME_OPS
    with torch.no_grad(), model.at_alpha(alpha), change.at_alpha(0.0):
        assert relative(model(images()), change(images())) < SAME_OPS


class Critic(Net):
    """A network of the user's own with spectral norm, which makes a power iteration in each forward of training."""

    def __init__(self) -> None:
        super().__init__(group_norm)
        for layer in (self.conv1, self.conv2, self.head):
            parametrizations.spectral_norm(layer)


@pytest.mark.parametrize(
    ("mode", "sampler"), [("unstructured", "sandwich"), ("unstructured", "uniform_draws"), ("quantized", "sandwich")]
)
def test_spectral_norm_iterates_once_in_each_step(tmp_path, mode, sampler):
    def vectors(*callbacks: Any) -> dict[str, Tensor]:
        torch.manual_seed(0)
        module = Module(Critic(), lr=0.0)
        trainer(tmp_path, *callbacks).fit(module, loader(digits(0, 48)), loader(digits(64, 16)))
        return {name: value for name, value in module.named_buffers() if name.endswith(("_u", "_v"))}

    callback = lcs(mode=mode, subspace="point", sampling={"sampler": sampler, "warmup": 0.0})
    plain, ours = vectors(), vectors(callback)
    assert len(plain) == 6
    for name, value in plain.items():
        assert torch.equal(ours[name], value)
