"""Another image size than the one traced: right, or an error that names the size."""

from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_lcs.graph.tracing.errors import TraceError
from lightning_lcs.graph.tracing.trace import Trace, trace
from lightning_lcs.model import SubspaceModel
from tests.helpers import BATCH_NORM_WARNING, Chain, Lambda, relative, scramble

pytestmark = pytest.mark.filterwarnings(BATCH_NORM_WARNING)
# The same operations on the same numbers, but for the rounding of other kernels.
SAME = 1e-5


def image(height: int, width: int) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))


def net_of(middle: Callable[[nn.Module, Tensor], Tensor]) -> nn.Module:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        return m.head(middle(m, m.a(x)).mean((2, 3)))  # type: ignore[operator,return-value]

    return scramble(Lambda(forward, a=nn.Conv2d(3, 8, 3, padding=1), head=nn.Linear(8, 5))).eval()


# Each bakes the size of the image into its trace; most run at another one all the same, and give something else.
SIZED = {
    "pool by size": lambda m, x: F.avg_pool2d(x, x.shape[-1]),
    "resize to size": lambda m, x: F.interpolate(F.max_pool2d(x, 2), size=x.shape[-2:]) ** 2,
    "scale by size": lambda m, x: x * (x.shape[-1] / 8),
    "crop by size": lambda m, x: x[:, :, : x.shape[2] // 2, : x.shape[3] // 2],
    "grid of positions": lambda m, x: x * torch.arange(x.shape[-1], dtype=x.dtype),
    "tokens": lambda m, x: x.flatten(2).transpose(1, 2).reshape(-1, x.shape[2], x.shape[3], 8).permute(0, 3, 1, 2),
}


@pytest.mark.parametrize("kind", list(SIZED))
@torch.no_grad()
def test_a_subspace_model_serves_every_size(kind: str) -> None:
    net = net_of(SIZED[kind])
    model = SubspaceModel(net, image(16, 16), subspace="point").eval()
    for size in ((16, 16), (24, 24), (24, 16), (16, 16)):
        x = image(*size)
        with model.at_alpha(0.5):
            fresh = SubspaceModel(net, x, subspace="point").eval().materialize(0.5)
            assert relative(model(x), fresh(x)) < SAME


@pytest.mark.parametrize("kind", list(SIZED))
@torch.no_grad()
def test_what_was_traced_for_one_size_names_it_at_another(kind: str, tmp_path: Path) -> None:
    model = SubspaceModel(net_of(SIZED[kind]), image(16, 16), subspace="point").eval()
    small = model.materialize(0.5)
    model.save(tmp_path / "model.lcs")
    loaded = SubspaceModel.load(tmp_path / "model.lcs")
    loaded.set_alpha(0.5)
    assert relative(loaded(image(16, 16)), small(image(16, 16))) < SAME
    text = r"was traced for inputs of \(batch, 3, 16, 16\), and its code depends on dimension [23] of \w+: for another"
    with pytest.raises(AssertionError, match=text):
        small(image(24, 24))
    # A file is tried at other sizes when it is written; one that fails there serves its own size only.
    loaded.save(tmp_path / "again.lcs")
    for alpha in (0.5, 1.0):
        for file in (loaded, SubspaceModel.load(tmp_path / "again.lcs")):
            file.set_alpha(alpha)
            with pytest.raises(ValueError, match=r"was saved for \['batch', 3, 16, 16\]"):
                file(image(24, 24))


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes that networks are traced for."""
    shapes: list[tuple[int, ...]] = []

    def counted(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> Trace:
        shapes.append(args[0].shape[1:])
        return trace(module, args, kwargs)

    monkeypatch.setattr("lightning_lcs.graph.traced_network.trace", counted)
    return shapes


@pytest.mark.parametrize("kind", ["resize to size", "grid of positions", "tokens"])
@torch.no_grad()
def test_sizes_taken_from_the_image_are_open_once_two_were_seen(
    kind: str, traces: list[tuple[int, ...]], tmp_path: Path
) -> None:
    net = net_of(SIZED[kind])
    model = SubspaceModel(net, image(16, 16), subspace="point").eval()
    model.set_alpha(0.5)
    model(image(32, 24))
    assert len(traces) == 3  # training, evaluation, and the other size
    small = model.materialize(0.5)
    model.save(tmp_path / "model.lcs")
    loaded = SubspaceModel.load(tmp_path / "model.lcs")
    loaded.set_alpha(0.5)
    for size in ((16, 16), (40, 24), (48, 16)):
        x = image(*size)
        fresh = SubspaceModel(net, x, subspace="point").eval().materialize(0.5)(x)
        assert all(relative(run(x), fresh) < SAME for run in (model, small, loaded))
    assert len(traces) == 3 + 3 * 2  # those of the fresh models


@torch.no_grad()
def test_a_batch_may_be_as_long_as_a_table_by_chance(traces: list[tuple[int, ...]]) -> None:
    net = Lambda(lambda m, x, table: m.head(m.a(x).relu()) @ table.T, a=nn.Linear(6, 16), head=nn.Linear(16, 5)).eval()
    x, table = torch.randn(4, 6), torch.randn(4, 5)
    model = SubspaceModel(net, (x[:3], table), subspace="point").eval()
    made = len(traces)
    model.set_alpha(0.5)
    assert relative(model(x, table)[:3], model(x[:3], table)) < SAME
    assert len(traces) == made
    assert model(x, torch.randn(7, 5)).shape == (4, 7)


def test_training_at_many_sizes_traces_once(traces: list[tuple[int, ...]]) -> None:
    net = scramble(Chain())
    model = SubspaceModel(net, subspace="point").train()
    for size in ((32, 32), (48, 32), (17, 40)):
        x, found = image(*size), []
        for run in (model, SubspaceModel(net, x, subspace="point").train()):
            net.zero_grad()
            with run.runner.training_level(0.5):
                run(x).square().sum().backward()
            found.append(net.conv1.weight.grad.clone())
        assert relative(*found) < SAME
    assert traces.count((3, 32, 32)) == 4  # both forms of both models
    assert len(traces) == 4 + 2 * 2


@torch.no_grad()
def test_sizes_without_end_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_lcs.graph.traced_network.MAX_FORMS", 6)
    net = net_of(SIZED["scale by size"])
    model = SubspaceModel(net, image(16, 16), subspace="point").eval()
    model.set_alpha(0.5)
    found = [model(image(16, width)) for width in (*range(8, 20), 8)]
    assert len(model.parts[0].network._programs) <= 6
    assert relative(found[0], found[-1]) < SAME
    assert relative(model(image(16, 16)), model.materialize(0.5)(image(16, 16))) < SAME


@torch.no_grad()
def test_a_check_is_missing_for_no_size_that_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    # Without it these run, and are wrong: the test above can fail.
    monkeypatch.setattr("lightning_lcs.graph.traced_network.fixed_sizes", lambda *_: [])
    wrong = 0
    for kind in ("pool by size", "resize to size", "scale by size", "crop by size"):
        net = net_of(SIZED[kind])
        small = SubspaceModel(net, image(16, 16), subspace="point").eval().materialize(1.0)
        wrong += relative(small(image(24, 24)), net(image(24, 24))) > 1e-3
    assert wrong == 4


@pytest.mark.parametrize(
    "make",
    [
        lambda: scramble(Chain()),
        lambda: scramble(timm.create_model("mobilenetv3_small_050", num_classes=5)),
    ],
    ids=["chain", "mobilenetv3"],
)
@torch.no_grad()
def test_what_does_not_depend_on_the_size_serves_every_size(
    make: Callable[[], nn.Module], traces: list[tuple[int, ...]], tmp_path: Path
) -> None:
    net = make().eval()
    model = SubspaceModel(net, image(64, 64), subspace="point").eval()
    full, small = model.materialize(1.0), model.materialize(0.5)
    model.save(tmp_path / "model.lcs")
    loaded = SubspaceModel.load(tmp_path / "model.lcs")
    made = len(traces)
    for size in ((96, 96), (64, 128), (40, 33)):
        x = image(*size)
        assert relative(full(x), net(x)) < SAME
        with model.at_alpha(0.5), loaded.at_alpha(0.5):
            assert relative(small(x), model(x)) < SAME
            assert relative(loaded(x), model(x)) < SAME
    assert len(traces) == made
    with pytest.raises(AssertionError, match=r"\(batch, 3, 64, 64\), and its code depends on dimension 1 of x"):
        small(torch.randn(2, 4, 64, 64))


@torch.no_grad()
def test_a_network_that_takes_one_size_says_so_in_its_own_words() -> None:
    net = timm.create_model("test_vit", num_classes=5, img_size=64, dynamic_img_size=False)
    model = SubspaceModel(net, image(64, 64), subspace="point").eval()
    text = (
        r"Input height \(96\) doesn't match model \(64\).*timm/layers/patch_embed\.py:\d+: .*batch, 3, 64, 64\) before"
    )
    with model.at_alpha(0.5), pytest.raises(TraceError, match=text):
        model(image(96, 96))
    with pytest.raises(AssertionError, match=r"traced for inputs of \(batch, 3, 64, 64\)"):
        model.materialize(0.5)(image(96, 96))
