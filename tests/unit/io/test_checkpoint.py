import copy
import io
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from lightning_lcs.graph.tracing import example_inputs
from lightning_lcs.model import SubspaceModel
from lightning_lcs.subspace.modes import Structured
from tests.helpers import BATCH_NORM_WARNING, Chain, Joined, Mlp, relative, scramble

pytestmark = pytest.mark.filterwarnings(BATCH_NORM_WARNING)

# The same ops on equal tensors, aligned otherwise in memory.
SAME_OPS = 1e-6


def trained(net: nn.Module, x: Tensor, **options: Any) -> SubspaceModel:
    """A subspace with endpoints of its own and statistics of two levels."""
    model = SubspaceModel(scramble(net), x, **{"subspace": "line", **options}).eval()
    with torch.no_grad():
        for w0, _ in model.endpoint_pairs():
            w0.add_(0.1 * torch.randn_like(w0))
    small = {alpha: model.materialize(alpha).named_buffers() for alpha in (0.0, 0.5)}
    model.statistics = {
        alpha: {name: torch.rand_like(value) + 0.5 for name, value in buffers if "running" in name}
        for alpha, buffers in small.items()
    }
    return model


def outputs(model: SubspaceModel, x: Tensor) -> list[Tensor]:
    found = []
    for alpha in (0.0, 0.3, 0.6, 1.0):
        with torch.no_grad(), model.at_alpha(alpha):
            found.append(model(x).clone())
    return found


def assert_same(ours: list[Tensor], expected: list[Tensor]) -> None:
    assert all(relative(a, b) < SAME_OPS for a, b in zip(ours, expected, strict=True))


def through_file(state: Any) -> Any:
    """What a checkpoint written with torch.save gives back, read the safe way."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


CASES = [
    pytest.param(lambda: (Chain(), torch.randn(3, 3, 8, 8)), {}, id="line"),
    pytest.param(
        lambda: (Joined(), torch.randn(3, 3, 8, 8)),
        {"line": {"parameters": "all", "start": "independent"}, "mode": Structured(min_width=0.5)},
        id="line of all",
    ),
    pytest.param(lambda: (Chain(), torch.randn(3, 3, 8, 8)), {"subspace": "point"}, id="point"),
    pytest.param(
        lambda: (timm.create_model("resnet10t", num_classes=10), torch.randn(3, 3, 32, 32)), {}, id="resnet10t"
    ),
]


@pytest.mark.parametrize(("make", "options"), CASES)
def test_state_round_trip(make: Any, options: dict[str, Any]) -> None:
    net, x = make()
    model = trained(net, x, **options)
    other = SubspaceModel(make()[0], x, **{"subspace": "line", **options}).eval()
    other.module.load_state_dict(model.module.state_dict())
    other.load_subspace_state(through_file(model.subspace_state()))
    assert_same(outputs(other, x), outputs(model, x))
    assert list(other.statistics) == [0.0, 0.5]
    ours, expected = other.subspace_state(), model.subspace_state()
    assert {key: ours[key] for key in ours if key not in ("endpoint_0", "statistics")} == {
        key: expected[key] for key in expected if key not in ("endpoint_0", "statistics")
    }
    assert all(torch.equal(ours["endpoint_0"][name], value) for name, value in expected["endpoint_0"].items())


def test_state_is_a_snapshot() -> None:
    model = trained(Chain(), torch.randn(3, 3, 8, 8))
    state = model.subspace_state()
    before = copy.deepcopy(state)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
        for tensors in model.statistics.values():
            for value in tensors.values():
                value.zero_()
    assert all(torch.equal(state["endpoint_0"][name], value) for name, value in before["endpoint_0"].items())
    for ours, theirs in zip(state["statistics"], before["statistics"], strict=True):
        assert all(torch.equal(ours["tensors"][name], value) for name, value in theirs["tensors"].items())


def test_state_of_several_networks_round_trip() -> None:
    def make() -> SubspaceModel:
        return SubspaceModel({"a": Chain(), "b.c": Joined()}, subspace="line")

    model, other = make(), make()
    with torch.no_grad():
        for w0, _ in model.endpoint_pairs():
            w0.add_(torch.randn_like(w0))
    state = through_file(model.subspace_state())
    assert state["targets"] == ["a", "b.c"]
    other.load_subspace_state(state)
    for (ours, _), (theirs, _) in zip(other.endpoint_pairs(), model.endpoint_pairs(), strict=True):
        assert torch.equal(ours, theirs)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "mode": ({"mode": {"name": "structured", "min_width": 0.5}}, "mode=.*0.5.*built with mode=.*0.25"),
    "subspace": ({"subspace": "point"}, "subspace='point'.*built with subspace='line'"),
    "line_parameters": ({"line_parameters": "all"}, "line.parameters='all'.*built with line.parameters='norm'"),
    "version": ({"version": 99}, "format 99.*reads 1"),
    "no version": ({"version": None}, "format None.*reads 1"),
    "architecture": ({"shapes": {"conv1.weight": [9, 3, 3, 3]}}, "another architecture: conv1.weight has shape"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_state_that_does_not_fit_is_an_error_and_changes_nothing(kind: str) -> None:
    changes, message = WRONG[kind]
    x = torch.randn(3, 3, 8, 8)
    model = trained(Chain(), x)
    before, weights = outputs(model, x), copy.deepcopy(model.module.state_dict())
    state = {**trained(Chain(), x).subspace_state(), **changes}
    with pytest.raises(ValueError, match=message):
        model.load_subspace_state(state)
    assert_same(outputs(model, x), before)
    assert all(torch.equal(value, weights[name]) for name, value in model.module.state_dict().items())
    assert list(model.statistics) == [0.0, 0.5]


def test_a_state_of_another_network_is_an_error_that_names_the_first_difference() -> None:
    model = SubspaceModel(Chain(8, 12), subspace="line")
    with pytest.raises(ValueError, match=r"conv1\.weight has shape \[8, 3, 3, 3\] here and \[4, 3, 3, 3\]"):
        model.load_subspace_state(SubspaceModel(Chain(4, 12), subspace="line").subspace_state())
    with pytest.raises(ValueError, match="another architecture"):
        model.load_subspace_state(SubspaceModel(Mlp(), subspace="line").subspace_state())


@pytest.mark.parametrize("missing", ["mode", "shapes", "endpoint_0", "statistics"])
def test_a_state_that_lacks_a_part_is_an_error_and_changes_nothing(missing: str) -> None:
    x = torch.randn(3, 3, 8, 8)
    model = trained(Chain(), x)
    before = outputs(model, x)
    state = trained(Chain(), x).subspace_state()
    del state[missing]
    with pytest.raises((ValueError, KeyError), match=missing) as error:
        model.load_subspace_state(state)
    assert_same(outputs(model, x), before)
    assert type(error.value) is ValueError


# -- Lightning checkpoints, without Lightning -------------------------------------------------------------------------


class Holder(nn.Module):
    """As a LightningModule holds its network."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def write(path: Path, module: nn.Module, state: dict[str, Any], **more: Any) -> Path:
    torch.save({"state_dict": module.state_dict(), "lightning_lcs": state, "epoch": 3, **more}, path)
    return path


def whole(tmp_path: Path, x: Tensor) -> tuple[SubspaceModel, Path]:
    """The module itself is the network."""
    model = trained(Chain(), x)
    return model, write(tmp_path / "whole.ckpt", model.module, model.subspace_state())


def targeted(tmp_path: Path, x: Tensor) -> tuple[SubspaceModel, Path]:
    """The network is a part of the module, named in the state as LCSCallback(target="net") does."""
    model = trained(Chain(), x)
    state = {**model.subspace_state(), "targets": ["net"]}
    return model, write(tmp_path / "held.ckpt", Holder(model.module), state)


def test_a_module_that_is_the_network_is_opened(tmp_path: Path) -> None:
    x = torch.randn(3, 3, 8, 8)
    model, path = whole(tmp_path, x)
    opened = SubspaceModel.from_checkpoint(path, Chain())
    assert not opened.training
    assert_same(outputs(opened, x), outputs(model, x))
    assert opened.mode == model.mode


@pytest.mark.parametrize("as_text", [False, True])
@pytest.mark.parametrize("make", [lambda: Holder(Chain()), Chain])
def test_a_network_held_by_a_module_is_opened_with_either(tmp_path: Path, make: Any, as_text: bool) -> None:
    x = torch.randn(3, 3, 8, 8)
    model, path = targeted(tmp_path, x)
    module = make()
    opened = SubspaceModel.from_checkpoint(str(path) if as_text else path, module)
    assert_same(outputs(opened, x), outputs(model, x))
    assert opened.module is getattr(module, "net", module)


@pytest.mark.filterwarnings("ignore:.*holds no batch-norm statistics of its levels")
def test_several_networks_held_by_a_module_are_opened(tmp_path: Path) -> None:
    def holder() -> nn.Module:
        return nn.ModuleDict({"a": Chain(), "b": Joined()})

    held = holder()
    model = SubspaceModel(dict(held.items()), subspace="line")
    with torch.no_grad():
        for w0, _ in model.endpoint_pairs():
            w0.add_(torch.randn_like(w0))
    opened = SubspaceModel.from_checkpoint(write(tmp_path / "x.ckpt", held, model.subspace_state()), holder())
    for (ours, ours1), (theirs, theirs1) in zip(opened.endpoint_pairs(), model.endpoint_pairs(), strict=True):
        assert torch.equal(ours, theirs)
        assert torch.equal(ours1, theirs1)


@pytest.mark.filterwarnings("ignore:.*holds no batch-norm statistics of its levels")
@pytest.mark.parametrize("make", [lambda: Holder(Chain()), Chain])
def test_a_single_network_given_by_name_is_opened(tmp_path: Path, make: Any) -> None:
    held = Holder(scramble(Chain()))
    state = SubspaceModel({"net": held.net}, subspace="line").subspace_state()
    assert state["targets"] == ["net"]
    SubspaceModel.from_checkpoint(write(tmp_path / "x.ckpt", held, state), make())


def test_a_checkpoint_without_a_subspace_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    torch.save({"state_dict": Chain().state_dict()}, tmp_path / "plain.ckpt")
    with pytest.raises(ValueError, match=r"plain\.ckpt holds no compressible subspace"):
        SubspaceModel.from_checkpoint(tmp_path / "plain.ckpt", Chain())
    torch.save(torch.zeros(3), tmp_path / "tensor.ckpt")
    with pytest.raises(ValueError, match=r"tensor\.ckpt holds no compressible subspace"):
        SubspaceModel.from_checkpoint(tmp_path / "tensor.ckpt", Chain())


@pytest.mark.parametrize("other", [lambda: Chain(8, 10), Mlp, lambda: Holder(Chain(8, 10)), lambda: Holder(Mlp())])
@pytest.mark.parametrize("written", [whole, targeted])
def test_another_architecture_is_an_error_and_leaves_the_module(tmp_path: Path, written: Any, other: Any) -> None:
    _, path = written(tmp_path, torch.randn(3, 3, 8, 8))
    module = other()
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(ValueError, match="another architecture"):
        SubspaceModel.from_checkpoint(path, module)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert not any("lcs" in name for name, _ in module.named_modules())


def test_another_version_is_an_error_and_leaves_the_module(tmp_path: Path) -> None:
    model, _ = whole(tmp_path, torch.randn(3, 3, 8, 8))
    path = write(tmp_path / "new.ckpt", model.module, {**model.subspace_state(), "version": 2})
    module = Chain()
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(ValueError, match="format 2"):
        SubspaceModel.from_checkpoint(path, module)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_a_checkpoint_knows_its_input():
    """Opened in a new process it can be measured and cut without a call; no pixel of the training data is in it."""
    images = torch.rand(2, 3, 8, 8) + 7.0
    trained = SubspaceModel(Chain(), images, subspace="point").eval()
    state = trained.subspace_state()
    assert state["inputs"] == [{"list": [{"tuple": [{"shape": [2, 3, 8, 8], "dtype": "float32"}]}, {"dict": {}}]}]
    opened = SubspaceModel(Chain(), subspace="point").eval()
    opened.load_subspace_state(state)
    assert opened.efficiency(0.5) == trained.efficiency(0.5)
    older = {key: value for key, value in state.items() if key != "inputs"}
    opened = SubspaceModel(Chain(), subspace="point")
    opened.load_subspace_state(older)
    with pytest.raises(RuntimeError, match="or call it once"):
        opened.efficiency(0.5)
    opened(images)  # at alpha = 1
    assert opened.efficiency(0.5) == trained.efficiency(0.5)


@pytest.mark.parametrize(
    ("arguments", "kept"),
    [
        (((torch.zeros(2, 3),), {"mask": None, "scale": 2.0}), True),
        ((([torch.zeros(2, 3), torch.zeros(2, dtype=torch.long)],), {}), True),
        (((object(),), {}), False),
    ],
)
def test_arguments_as_plain_data(arguments, kept):
    data = example_inputs.to_data(arguments)
    again = example_inputs.from_data(data)
    if not kept:
        assert data is None
        assert again is None
        return
    theirs, mine = (pytree.tree_flatten(value) for value in (arguments, again))
    assert theirs[1] == mine[1]
    for a, b in zip(theirs[0], mine[0], strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype) if isinstance(a, torch.Tensor) else a == b
