"""Layers of other kinds than plain convolutions and linear layers: levels equal networks compressed by hand."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize, prune

from lightning_lcs import Quantized, SubspaceModel, Unstructured
from lightning_lcs.export import export_int8, int8_network, load_bits, load_sparse, save_bits, save_sparse
from lightning_lcs.functional.quantization import fake_quantize, value_range
from tests.helpers import relative
from tests.integration.support import Module, Net, digits, group_norm, lcs, loader, trainer

# The same operations on equal tensors, aligned otherwise in memory, by another path through the code.
SAME_OPS = 1e-5
# Small networks are not faster with integers.
STORAGE_ONLY = pytest.mark.filterwarnings("ignore:.*they save storage only")


def images(count: int = 6) -> Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))


class Upsampling(nn.Module):
    def __init__(self, groups: int) -> None:
        super().__init__()
        self.stem, self.up = nn.Conv2d(1, 8, 3), nn.ConvTranspose2d(8, 12, 2, 2, groups=groups)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.up(self.stem(x).relu()).relu().mean((2, 3)))
        return out


# -- transposed convolutions ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_each_output_channel_of_a_transposed_convolution_has_a_range(tmp_path, groups):
    net = Upsampling(groups).eval()
    # Outputs of very different size: a range along the inputs would lose the small ones.
    with torch.no_grad():
        net.up.weight.mul_(torch.logspace(-2, 0, 12 // groups).view(1, -1, 1, 1))
    model = SubspaceModel(net, images(), mode=Quantized(per_channel=True), subspace="point").eval()
    model.recalibrate([images()], [0.0, 1.0])
    own, inputs, outputs = net.up.weight.detach(), 8 // groups, 12 // groups
    for alpha, bits in ((0.0, 3), (1.0, 8)):
        expected = own.clone()
        for group in range(groups):
            for output in range(outputs):
                kernel = own[group * inputs : (group + 1) * inputs, output]
                low, high = kernel.min(), kernel.max()
                expected[group * inputs : (group + 1) * inputs, output] = fake_quantize(kernel, low, high, bits)
        assert torch.equal(model.materialize(alpha).up.weight, expected)
        again = load_bits(save_bits(model, tmp_path / "level.safetensors", alpha).path, Upsampling(groups))
        assert torch.equal(again.up.weight, expected)
    file = save_bits(model, tmp_path / "level.safetensors", 0.0)
    assert file.bits == {"stem": 8, "up": 3, "head": 8}
    # A scale and a zero point for each of the 8 + 12 + 4 outputs.
    integers = net.stem.weight.numel() + net.head.weight.numel() + -(-own.numel() * 3 // 8)
    assert model.efficiency(0.0).size_bytes == integers + 5 * 24 + 4 * 24


def test_training_quantizes_a_transposed_convolution_per_output_channel():
    model = SubspaceModel(Upsampling(2), images(), mode=Quantized(per_channel=True), subspace="point").train()
    with model.runner.training_level(0.0, strength=0.5):
        loss = model(images()).square().mean()
        loss.backward()
    twin = copy.deepcopy(model.module)
    twin.zero_grad()
    with torch.no_grad():
        for layer, bits in ((twin.stem, 8), (twin.head, 8)):
            layer.weight.copy_(fake_quantize(layer.weight, *value_range(layer.weight, per_channel=True), bits))
        for output in range(12):
            group, own = divmod(output, 6)
            kernel = twin.up.weight[4 * group : 4 * group + 4, own]
            kernel.copy_(fake_quantize(kernel, kernel.min(), kernel.max(), 3))
    twin(images()).square().mean().backward()
    for ours, theirs in zip(model.module.parameters(), twin.parameters(), strict=True):
        assert relative(ours.grad, theirs.grad) < SAME_OPS


def test_blocks_of_a_transposed_convolution_lie_along_its_inputs():
    net = Upsampling(2)
    model = SubspaceModel(net, images(), mode=Unstructured(max_sparsity=0.5, scope="block"), subspace="point").eval()
    assert model.parts[0].compressed == ("up.weight",)  # four inputs for each output
    kept = model.materialize(0.0).up.weight.ne(0.0).unflatten(0, (2, 4)).sum(1)
    assert torch.equal(kept, torch.full_like(kept, 2))
    odd = nn.Sequential(nn.Conv2d(1, 8, 1), nn.ConvTranspose2d(8, 16, 2, groups=4), nn.Conv2d(16, 4, 1))
    with pytest.warns(UserWarning, match="56% of the parameters"):
        report = SubspaceModel(odd, mode=Unstructured(max_sparsity=0.5, scope="block"), subspace="point").report()
    assert "kept whole: 1.weight, 128 parameters (its 2 inputs are not a multiple of 4)" in report


# -- torch's attention ------------------------------------------------------------------------------------------------


class Encoder(nn.Module):
    """A transformer of torch, whose functional attention never calls its output projection."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 16, 2, 2)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.layer(self.patches(x).flatten(2).transpose(1, 2)).mean(1))
        return out


PROJECTIONS = ("layer.self_attn.out_proj.weight", "layer.self_attn.in_proj_weight")


CALLED = {"patches", "layer.linear1", "layer.linear2", "head"}


def quantized_by_hand(model: SubspaceModel, alpha: float) -> nn.Module:
    """The network with every compressed weight rounded, and the inputs of the layers that have ranges."""
    twin, level, part = copy.deepcopy(model.module), model.mode.snap(alpha), model.parts[0]
    for name in part.compressed:
        weight = twin.get_parameter(name)
        bits = int(part.pinned.get(name, model.mode.bit_width(alpha)))
        with torch.no_grad():
            weight.copy_(fake_quantize(weight, *value_range(weight), bits))
        path = name.rpartition(".")[0]
        if f"{path}.input_range" in model.statistics[level]:
            low, high = model.statistics[level][f"{path}.input_range"].unbind()
            twin.get_submodule(path).register_forward_pre_hook(
                lambda _, args, grid=(low, high, bits): (fake_quantize(args[0], *grid), *args[1:])
            )
    return twin


def test_torchs_attention_is_quantized_with_its_projections(tmp_path):
    model = SubspaceModel(Encoder().eval(), images(), mode=Quantized(), subspace="point").eval()
    model.recalibrate([images()], [0.0, 1.0])
    assert set(PROJECTIONS) < set(model.parts[0].compressed)
    assert not [line for line in model.report().splitlines() if "kept whole" in line]
    for name in PROJECTIONS:
        assert f"quantized, with inputs that stay float: {name}" in model.report()
    for alpha in (0.0, 1.0):
        with torch.no_grad(), model.at_alpha(alpha):
            expected = quantized_by_hand(model, alpha)(images())
            assert relative(model(images()), expected) < SAME_OPS
            assert relative(model.materialize(alpha)(images()), expected) < SAME_OPS
            file = save_bits(model, tmp_path / "level.safetensors", alpha)
            assert relative(load_bits(file.path, Encoder())(images()), expected) < SAME_OPS
    assert file.bits["layer.self_attn"] == file.bits["layer.self_attn.out_proj"] == 8
    assert set(model.statistics[1.0]) == {f"{layer}.input_range" for layer in CALLED}


@STORAGE_ONLY
def test_exports_with_integers_say_that_torchs_attention_stays_float(tmp_path):
    model = SubspaceModel(Encoder().eval(), images(), mode=Quantized(), subspace="point").eval()
    with pytest.raises(RuntimeError, match="the inputs of patches were never observed at 8 bits"):
        export_int8(model, tmp_path / "level.onnx", images())
    model.recalibrate([images()], [1.0])
    with pytest.warns(UserWarning, match="2 of 6 quantized weights stay float: layer.self_attn.out_proj.weight"):
        file = export_int8(model, tmp_path / "level.onnx", images(), min_agreement=0.5)
    assert set(file.kept_float) == set(PROJECTIONS)
    with pytest.warns(UserWarning, match="2 of 6 quantized weights stay float: layer.self_attn.out_proj.weight"):
        network = int8_network(model, images(), min_agreement=0.5)
    assert set(network.kept_float) == set(PROJECTIONS)
    assert set(network.trained) == CALLED


class Read(nn.Module):
    """A linear layer whose weight is read, and which is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mid, self.head = nn.Conv2d(1, 8, 3), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.linear(self.stem(x).mean((2, 3)), self.mid.weight, self.mid.bias)
        out: Tensor = self.head(x)
        return out


@STORAGE_ONLY
def test_a_layer_that_is_never_called_has_a_quantized_weight_and_a_float_input(tmp_path):
    model = SubspaceModel(Read().eval(), images(), mode=Quantized(), subspace="point").eval()
    with pytest.raises(RuntimeError, match="the inputs of stem were never observed"):
        save_bits(model, tmp_path / "level.safetensors", 1.0)
    model.recalibrate([images()], [1.0])
    assert torch.equal(model.materialize(1.0)(images()), quantized_by_hand(model, 1.0)(images()))
    file = save_bits(model, tmp_path / "level.safetensors", 1.0)
    assert torch.equal(load_bits(file.path, Read())(images()), model.materialize(1.0)(images()))
    with pytest.warns(UserWarning, match="1 of 3 quantized weights stay float: mid.weight"):
        file = export_int8(model, tmp_path / "level.onnx", images(), min_agreement=0.5)
    assert file.kept_float == ("mid.weight",)
    # Ranges that training moved at some level count for all layers that are called.
    assert model.runner.needs_data([1.0])
    with model.runner.training_level(1.0):
        model(images())
    assert not model.runner.needs_data([1.0])


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(1, 8, 3), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(input=self.stem(input=x).mean((2, 3)))
        return out


def test_layers_that_get_their_input_by_name_have_it_quantized():
    model = SubspaceModel(Named().eval(), images(), mode=Quantized(edge_bits=8, layer_bits={"*": 4}), subspace="point")
    model.eval().recalibrate([images()], [1.0])
    twin = copy.deepcopy(model.module)
    with torch.no_grad():
        for layer in (twin.stem, twin.head):
            layer.weight.copy_(fake_quantize(layer.weight, *value_range(layer.weight), 4))
        ranges = {name: value.unbind() for name, value in model.statistics[1.0].items()}
        x = twin.stem(fake_quantize(images(), *ranges["stem.input_range"], 4)).mean((2, 3))
        expected = twin.head(fake_quantize(x, *ranges["head.input_range"], 4))
        assert relative(model(images()), expected) < SAME_OPS
        assert relative(pickle.loads(pickle.dumps(model.materialize(1.0)))(images()), expected) < SAME_OPS


# -- recurrent layers -------------------------------------------------------------------------------------------------


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], **options: Any) -> None:
        super().__init__()
        self.stem, self.memory = nn.Conv2d(1, 8, 2, 2), kind(8, 16, batch_first=True, **options)
        outputs = (options.get("proj_size") or 16) * (2 if options.get("bidirectional") else 1)
        self.head = nn.Linear(outputs, 4)

    def forward(self, x: Tensor) -> Tensor:
        steps = self.stem(x).flatten(2).transpose(1, 2)
        out: Tensor = self.head(self.memory(steps)[0][:, -1])
        return out


class Cells(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.memory, self.head = nn.Conv2d(1, 8, 2, 2), nn.GRUCell(8, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for step in self.stem(x).flatten(2).unbind(2):
            state = self.memory(step, state)
        out: Tensor = self.head(state)
        return out


RECURRENT = {
    "lstm": lambda: Recurrent(nn.LSTM),
    "gru": lambda: Recurrent(nn.GRU, num_layers=2, bias=False),
    "rnn": lambda: Recurrent(nn.RNN, bidirectional=True),
    "projected": lambda: Recurrent(nn.LSTM, num_layers=2, proj_size=8, bidirectional=True),
    "cell": Cells,
}


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("kind", RECURRENT)
def test_a_recurrent_layer_is_quantized_as_by_hand(tmp_path, kind):
    model = SubspaceModel(RECURRENT[kind]().eval(), images(), mode=Quantized(), subspace="point").eval()
    model.recalibrate([images()], [0.0, 1.0])
    weights = {f"memory.{name}" for name, value in model.module.memory.named_parameters() if value.ndim == 2}
    assert weights == set(model.parts[0].compressed) - {"stem.weight", "head.weight"}
    for alpha in (0.0, 1.0):
        with torch.no_grad(), model.at_alpha(alpha):
            expected = quantized_by_hand(model, alpha)(images())
            assert relative(model(images()), expected) < SAME_OPS
            assert relative(model.materialize(alpha)(images()), expected) < SAME_OPS
            file = save_bits(model, tmp_path / "level.safetensors", alpha)
            assert relative(load_bits(file.path, RECURRENT[kind]())(images()), expected) < SAME_OPS
    with torch.no_grad():  # the network's own weights are as they were
        assert relative(model.module(images()), expected) > SAME_OPS


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("kind", RECURRENT)
def test_a_recurrent_layer_is_made_sparse_as_by_hand(tmp_path, kind):
    mode = Unstructured(max_sparsity=0.75)
    model = SubspaceModel(RECURRENT[kind]().eval(), images(), mode=mode, subspace="point").eval()
    twin = copy.deepcopy(model.module)
    for name in model.parts[0].compressed:
        weight = twin.get_parameter(name)
        with torch.no_grad():
            weight.mul_(weight.abs() > weight.abs().flatten().sort().values[weight.numel() * 3 // 4 - 1])
    with torch.no_grad(), model.at_alpha(0.0):
        assert relative(model(images()), twin(images())) < SAME_OPS
        assert relative(model.materialize(0.0)(images()), twin(images())) < SAME_OPS
    file, small = save_sparse(model, tmp_path / "levels.safetensors", [0.0, 1.0]), RECURRENT[kind]().eval()
    load_sparse(file.path, small).set_alpha(0.0)
    assert relative(small(images()), twin(images())) < SAME_OPS
    # Three quarters of the multiplications of the recurrent layer, and nothing else.
    stem, head = 16 * 4 * 8, model.module.head.weight.numel()
    full, least = model.efficiency(1.0).macs, model.efficiency(0.0).macs
    assert least - stem - head == pytest.approx((full - stem - head) / 4, abs=1)


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("kind", RECURRENT)
def test_training_reaches_the_weights_of_a_recurrent_layer(kind, direct):
    model = SubspaceModel(RECURRENT[kind](), images(), mode=Quantized(edge_bits=32), subspace="point").train()
    twin = copy.deepcopy(model.module)
    with model.runner.training_level(0.0, direct=direct):
        loss = model(images()).square().mean()
        loss.backward()
    for name in model.parts[0].compressed:
        weight = twin.get_parameter(name)
        with torch.no_grad():
            weight.copy_(fake_quantize(weight, *value_range(weight), 3))
    twin(images()).square().mean().backward()
    for ours, theirs in zip(model.module.parameters(), twin.parameters(), strict=True):
        assert relative(ours.grad, theirs.grad) < SAME_OPS
    copy.deepcopy(model.module)(images())  # no tensor of the level is left behind


# -- weights that layers compute --------------------------------------------------------------------------------------


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


def rounded(weight: Tensor) -> Tensor:
    return weight + (fake_quantize(weight.detach(), *value_range(weight), 3) - weight).detach()


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
    mode = Unstructured(max_sparsity=0.5, dense=())
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
    twin = changed_by_hand(kind, model, rounded)
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
    options = {"quantized": Quantized(edge_bits=3), "unstructured": Unstructured(max_sparsity=0.5, dense=())}
    model = SubspaceModel(COMPUTED[kind](), images(), mode=options[mode], subspace="point").train()
    change = rounded if mode == "quantized" else sparse
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
    mode, alpha = Unstructured(max_sparsity=0.5, dense=()), 0.25
    line = {"parameters": "all", "start": "independent"}
    model = SubspaceModel(COMPUTED[kind](), images(), mode=mode, subspace="line", line=line).eval()
    part = model.parts[0]
    twin = COMPUTED[kind]().eval()
    state = {name: value.clone() for name, value in model.module.state_dict().items()}
    for name, endpoint in part.endpoints.items():
        state[name].lerp_(endpoint.detach(), 1.0 - alpha)
    twin.load_state_dict(state)
    before = {name: value.detach().clone() for name, value in twin.named_parameters()}
    change = SubspaceModel(twin, images(), mode=Unstructured(max_sparsity=0.375, dense=()), subspace="point").eval()
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
