"""Parameters that several places share: a level compresses them in all of these places, or in none."""

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lightning_lcs import Quantized, SubspaceModel, Unstructured
from lightning_lcs.export import load_bits, load_sparse, save_bits, save_sparse
from lightning_lcs.functional.quantization import fake_quantize
from lightning_lcs.functional.ranges import least_error_range
from tests.helpers import WHOLE_WARNING, relative, rounded
from tests.integration.support import Module, digits, lcs, loader, trainer

pytestmark = pytest.mark.filterwarnings(WHOLE_WARNING)
# The same operations on equal tensors, by another path through the code.
SAME_OPS = 1e-5


def images(count: int = 6) -> Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))


class Symmetric(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return (weight + weight.flip(-1)) / 2


class Words(nn.Module):
    """Looks up an embedding, and multiplies with its transpose in an inner layer."""

    def __init__(self, last: bool = False) -> None:
        super().__init__()
        if last:
            self.inner = nn.Linear(16, 20, bias=False)
        self.words, self.middle = nn.Embedding(20, 16), nn.Linear(16, 16)
        if not last:
            self.inner = nn.Linear(16, 20, bias=False)
        self.inner.weight, self.head = self.words.weight, nn.Linear(20, 10)

    def forward(self, x: Tensor) -> Tensor:
        found = self.words((x.flatten(1) * 5 + 10).long().clamp(0, 19))
        out: Tensor = self.head(self.inner(self.middle(found).relu()).mean(1))
        return out


class Alias(nn.Module):
    """Uses the weight of a layer under a name of its own, too."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.middle, self.inner = nn.Linear(64, 16), nn.Linear(16, 16), nn.Linear(16, 16)
        self.again, self.head = self.inner.weight, nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.middle(self.stem(x.flatten(1)).relu())
        out: Tensor = self.head(self.inner(x).relu() @ self.again)
        return out


class Stack(nn.Module):
    """Two linear layers share their weight: the inner ones, or the last one and an inner one."""

    def __init__(self, tied: str = "b") -> None:
        super().__init__()
        self.stem, self.a, self.b, self.head = nn.Linear(64, 10), *(nn.Linear(10, 10) for _ in range(3))
        self.get_submodule(tied).weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.b(self.a(self.stem(x.flatten(1))).relu()).relu())
        return out


class Autoencoder(nn.Module):
    """A convolution and a transposed one share their weight."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down, self.up = nn.Conv2d(1, 8, 1), nn.Conv2d(8, 8, 2, 2), nn.ConvTranspose2d(8, 8, 2, 2)
        self.up.weight, self.middle, self.head = self.down.weight, nn.Linear(8, 8), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.middle(self.up(self.down(self.stem(x)).relu()).relu().mean((2, 3))))
        return out


def symmetric(net: Callable[[], nn.Module], layer: str) -> nn.Module:
    made = net()
    parametrize.register_parametrization(made.get_submodule(layer), "weight", Symmetric())
    return made


WORDS = "words.weight: not the weight of a convolution"
OPTIONS = "left out by the mode's options"
# The network, the mode, the compressed weights, and why the shared one is whole.
CASES = {
    "embedding": (Words, {}, {"middle"}, f"one parameter with inner.weight; {WORDS}"),
    "embedding, later": (partial(Words, last=True), {}, {"middle"}, f"one parameter with words.weight; {WORDS}"),
    "alias": (Alias, {}, {"stem", "middle"}, "one parameter with inner.weight; again: not the weight"),
    "computed": (lambda: symmetric(Words, "inner"), {}, {"middle"}, f"inner.parametrizations.weight.original; {WORDS}"),
    "computed in one layer": (lambda: symmetric(Stack, "b"), {}, {"stem"}, "b.parametrizations.weight.original; a.w"),
    "two layers": (Stack, {}, {"stem", "a", "b"}, None),
    "last layer": (partial(Stack, "head"), {}, {"stem", "b"}, f"one parameter with head.weight; a.weight: {OPTIONS}"),
    "autoencoder": (Autoencoder, {}, {"down", "up", "middle"}, None),
    "blocks": (
        Autoencoder,
        {"scope": "block"},
        {"middle"},
        "up.weight; down.weight: it holds its inputs in another dimension",
    ),
}


def check(model: SubspaceModel, twin: nn.Module, again: nn.Module, alpha: float) -> None:
    """A level, the materialized level and an exported one are the network that was compressed by hand."""
    with torch.no_grad(), model.at_alpha(alpha):
        for net in (model, model.materialize(alpha).eval(), again):
            assert relative(net(images()), twin(images())) < SAME_OPS


def whole_lines(model: SubspaceModel) -> str:
    return "\n".join(line for line in model.report(0.0).splitlines() if "kept whole" in line)


@pytest.mark.parametrize("case", CASES)
def test_a_shared_parameter_is_sparse_everywhere_or_nowhere(tmp_path, case):
    build, options, layers, why = CASES[case]
    mode = Unstructured(layer_density="uniform", max_sparsity=0.75, **options)
    model = SubspaceModel(build().eval(), images(), mode=mode, subspace="point").eval()
    assert {name.removesuffix(".weight") for name in model.parts[0].compressed} == layers
    assert (why is None) == ("one parameter with" not in whole_lines(model))
    assert why is None or why in whole_lines(model)
    twin = copy.deepcopy(model.module)
    for weight in {twin.get_submodule(name).weight for name in layers}:
        rows = weight.data.view(-1, 4) if case == "blocks" else weight.data.view(1, -1)
        rows.scatter_(1, rows.abs().argsort(1)[:, : rows.shape[1] * 3 // 4], 0.0)
    again = build().eval()
    load_sparse(save_sparse(model, tmp_path / "levels.safetensors", [0.0, 1.0]).path, again).set_alpha(0.0)
    check(model, twin, again, 0.0)


@pytest.mark.parametrize("case", [case for case in CASES if case != "blocks"])
def test_a_shared_parameter_is_quantized_everywhere_or_nowhere(tmp_path, case):
    build = CASES[case][0]
    model = SubspaceModel(build().eval(), images(), mode=Quantized(), subspace="point").eval()
    model.recalibrate([images()], [0.0])
    part, twin = model.parts[0], copy.deepcopy(model.module)
    done = set()
    for name in part.compressed:
        layer, bits = twin.get_submodule(name.removesuffix(".weight")), int(part.pinned.get(name, 3))
        if id(layer.weight) not in done:
            done.add(id(layer.weight))
            whole = case == "autoencoder" and name == "down.weight"
            own = layer.weight.detach()
            layer.weight.data = fake_quantize(own, *least_error_range(own, bits), bits) if whole else rounded(own, bits)
        low, high = model.statistics[model.mode.snap(0.0)][name.replace("weight", "input_range")].unbind()
        layer.register_forward_pre_hook(lambda _, args, grid=(low, high, bits): (fake_quantize(args[0], *grid),))
    check(model, twin, load_bits(save_bits(model, tmp_path / "l.safetensors", 0.0).path, build()).eval(), 0.0)


@pytest.mark.parametrize(
    ("options", "bits"),
    [({}, 8), ({"edge_bits": 5}, 5), ({"layer_bits": {"a": 4}}, 4), ({"layer_bits": {"a": 4, "head": 6}}, 6)],
    ids=str,
)
def test_layers_with_one_weight_have_the_same_bits(options, bits):
    model = SubspaceModel(Stack("head").eval(), images(), mode=Quantized(**options), subspace="point").eval()
    model.recalibrate([images()], [0.0])
    assert [model.parts[0].pinned[name] for name in ("a.weight", "head.weight")] == [bits, bits]
    own, small = model.module.a.weight.detach(), model.materialize(0.0)
    assert torch.equal(small.a.weight, rounded(own, bits))
    with torch.no_grad(), model.at_alpha(0.0):
        assert relative(small(images()), model(images())) < SAME_OPS
    full = SubspaceModel(Stack("head"), mode=Quantized(layer_bits={"head": 32}), subspace="point")
    assert full.parts[0].compressed == ("stem.weight", "b.weight")


def test_a_weight_that_layers_hold_in_different_orders_has_one_range():
    model = SubspaceModel(Autoencoder().eval(), images(), mode="quantized", subspace="point").eval()
    model.recalibrate([images()], [0.0])
    own, small = model.module.down.weight.detach(), model.materialize(0.0)
    assert torch.equal(small.down.weight, fake_quantize(own, *least_error_range(own, 3), 3))
    weights = [parameter for name, parameter in model.module.named_parameters() if "weight" in name]
    size = sum(-(-weight.numel() * (3 if weight.shape[:2] == (8, 8) else 8) // 8) for weight in weights)
    others = sum(value.numel() for name, value in model.module.named_parameters() if "bias" in name)
    # Five bytes for each of the ranges of the stem, the shared weight, the middle and the head.
    assert model.efficiency(0.0).size_bytes == size + 5 * (8 + 1 + 8 + 10) + 4 * others


def test_a_network_of_which_all_is_tied_to_an_embedding_is_refused():
    net = Words()
    net.middle = nn.Identity()
    with pytest.raises(ValueError, match=r"has no layer.*; inner\.weight is one parameter with a tensor.*: untie it"):
        SubspaceModel(net, mode="unstructured", subspace="point")


def test_both_layers_with_one_sparse_weight_multiply_by_fewer_entries():
    model = SubspaceModel(
        Stack(), images(), mode=Unstructured(layer_density="uniform", max_sparsity=0.75), subspace="point"
    )
    assert model.efficiency(0.0).macs == (640 + 100 + 100) // 4 + 100
    assert model.efficiency(0.0).params == (640 + 100) // 4 + 100 + 40


@pytest.mark.parametrize("mode", ["unstructured", "quantized"])
@pytest.mark.parametrize("subspace", ["point", "line"])
def test_a_tied_embedding_trains_at_the_levels_that_are_measured(tmp_path, mode, subspace):
    options = {"line": {"parameters": "all"}} if subspace == "line" else {}
    callback = lcs(mode=mode, subspace=subspace, alphas=[0.0, 1.0], **options)
    fit = trainer(tmp_path, callback)
    fit.fit(Module(Words()), loader(digits(0, 64)), loader(digits(64, 32)))
    fit.save_checkpoint(tmp_path / "last.ckpt")
    model = SubspaceModel.from_checkpoint(tmp_path / "last.ckpt", Module(Words())).eval()
    x, y = (torch.cat(parts) for parts in zip(*loader(digits(64, 32)), strict=True))
    for point in callback.curve:
        with torch.no_grad(), model.at_alpha(point.alpha):
            losses = [nn.functional.cross_entropy(net(x), y) for net in (model, model.materialize(point.alpha).eval())]
        for loss in losses:
            assert loss.item() == pytest.approx(point.metrics["val_loss"], rel=1e-4)
