from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses import FakeTensor, FakeTensorMode

from lightning_lcs.graph.channels.dims import Structure, concatenated
from lightning_lcs.graph.channels.plan import ChannelPlan, Indices, Kept, Selection, add_selected, select
from lightning_lcs.model import SubspaceModel
from tests.equivalence.masking import Survivors, masked_forward
from tests.helpers import BATCH_NORM_WARNING, WHOLE_WARNING, Chain, Joined, Lambda, at_width, relative, scramble

pytestmark = [pytest.mark.filterwarnings(BATCH_NORM_WARNING), pytest.mark.filterwarnings(WHOLE_WARNING)]

# float64 sums of at most a few hundred products in another order.
SUM_ORDER = 1e-12


@st.composite
def tensors_and_selections(draw: st.DrawFn) -> tuple[Tensor, Selection]:
    shape = draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    selection: list[Kept] = []
    for size in shape:
        indices = st.lists(st.integers(0, size - 1), min_size=1, max_size=size, unique=True).map(sorted).map(Indices)
        selection.append(draw(st.one_of(st.none(), st.integers(1, size), indices)))
    return torch.randn(shape, dtype=torch.float64), tuple(selection)


def by_numpy(tensor: Tensor, selection: Selection) -> Tensor:
    array = tensor.numpy()
    for axis, kept in enumerate(selection):
        if kept is not None:
            array = array.take(range(kept) if isinstance(kept, int) else kept, axis)
    return torch.from_numpy(array.copy())


@given(drawn=tensors_and_selections())
def test_select_takes_what_numpy_takes(drawn: tuple[Tensor, Selection]) -> None:
    tensor, selection = drawn
    assert torch.equal(select(tensor, selection), by_numpy(tensor, selection))


@given(drawn=tensors_and_selections(), scale=st.floats(-2, 2))
def test_add_selected_is_the_transpose_of_select(drawn: tuple[Tensor, Selection], scale: float) -> None:
    x, selection = drawn
    y = torch.randn(select(x, selection).shape, dtype=torch.float64)
    before = torch.randn(x.shape, dtype=torch.float64)
    full = before.clone()
    add_selected(full, selection, y, scale)
    inner_product = (select(x, selection) * y).sum() * scale
    assert (x * (full - before)).sum().item() == pytest.approx(inner_product.item(), abs=SUM_ORDER)


@given(drawn=tensors_and_selections())
def test_add_selected_is_the_gradient_of_select(drawn: tuple[Tensor, Selection]) -> None:
    x, selection = drawn
    x.requires_grad_()
    y = torch.randn(select(x, selection).shape, dtype=torch.float64)
    select(x, selection).backward(y)
    ours = torch.zeros_like(x)
    add_selected(ours.detach(), selection, y)
    assert x.grad is not None
    assert torch.equal(ours, x.grad)


def test_prefixes_give_a_view_and_indices_a_copy() -> None:
    tensor = torch.randn(6, 4, 3)
    view = select(tensor, (3, 2, None))
    assert view.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()
    assert select(tensor, (None, None, None)) is tensor
    copy = select(tensor, (3, Indices([0, 2]), None))
    assert copy.untyped_storage().data_ptr() != tensor.untyped_storage().data_ptr()


def test_a_prefix_found_among_segments_is_kept_as_a_prefix() -> None:
    structure = Structure()
    whole, cut, short = structure.fresh(4, kept_whole="output"), structure.fresh(6), structure.fresh(1)
    plan = ChannelPlan(structure, {"a": [concatenated([whole, cut])], "b": [concatenated([cut, whole])], "c": [short]})
    at = plan.selection(0.5)
    assert at.of("a") == (7,)
    assert at.of("b") == ([0, 1, 2, 6, 7, 8, 9],)
    assert at.of("c") == (None,)
    assert at.of("a tensor that the graph does not read") == ()
    assert at.shape("b") == [7]


def test_selection_at_width_one_keeps_everything() -> None:
    model = SubspaceModel(Joined(), torch.randn(2, 3, 8, 8), subspace="point")
    at = model.plan.selection(1.0)
    for name, parameter in model.module.named_parameters():
        assert at.shape(name) == list(parameter.shape)
        assert torch.equal(select(parameter, at.of(name)), parameter)


@given(width=st.floats(0.05, 1.0))
def test_shapes_are_those_of_what_is_selected(width: float) -> None:
    plan, tensors = joined_plan()
    at = plan.selection(width)
    for name in plan.tensors:
        assert list(select(tensors[name], at.of(name)).shape) == at.shape(name)


def joined_plan(cache: list[tuple[ChannelPlan, dict[str, Tensor]]] = []) -> tuple[ChannelPlan, dict[str, Tensor]]:  # noqa: B006
    if not cache:
        net = Joined()
        cache.append((SubspaceModel(net, torch.randn(2, 3, 8, 8), subspace="point").plan, dict(net.named_parameters())))
    return cache[0]


# -- what is kept whole is right, and reported ------------------------------------------------------------------------


def behind(op: Callable[[Tensor], Tensor]) -> nn.Module:
    """Two convolutions; an op without a rule on the channels of the second."""
    return Lambda(
        lambda m, x: m.head(op(m.b(m.a(x).relu())).mean((2, 3))),
        a=nn.Conv2d(3, 8, 3), b=nn.Conv2d(8, 8, 1), head=nn.Linear(8, 5),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("op", "name"),
    [
        (lambda x: torch.cumsum(x, 1), "cumsum"),
        (lambda x: torch.fft.fft(x, dim=1).real, "fft_fft"),
        (lambda x: x.flip(1), "flip"),
        (lambda x: x.roll(1, 1), "roll"),
        (lambda x: x.sort(1).values, "sort"),
    ],
)
def test_an_op_without_a_rule_keeps_its_channels_whole_and_is_named(op: Callable[[Tensor], Tensor], name: str) -> None:
    net, x = behind(op).eval().double(), torch.randn(3, 3, 8, 8, dtype=torch.float64)
    model = at_width(net, x, 0.5)
    small = model.materialize(0.0)
    assert small.state_dict()["a.weight"].shape == (4, 3, 3, 3)
    assert small.state_dict()["b.weight"].shape == (8, 4, 1, 1)
    with torch.no_grad():
        assert relative(model.materialize(1.0)(x), net(x)) < SUM_ORDER
        masks = Survivors(net, x, mode={"min_width": 0.5}).masks(0.0)
        assert relative(small(x), masked_forward(net, masks, x)) < SUM_ORDER
    report = model.plan.report()
    assert f"kept whole: b.weight, dimension 0 ({name})" in report
    assert "a.weight" not in report
    assert {tensor for tensor, _ in model.plan.dimensions_kept_whole().items()} == {"b.weight", "b.bias", "head.weight"}


def test_report_counts_what_is_left() -> None:
    net = scramble(Chain(8, 12))
    model = at_width(net, torch.randn(2, 3, 8, 8), 0.5)
    full_state, small = net.state_dict(), model.materialize(0.0).state_dict()
    full = sum(value.numel() for value in full_state.values())
    kept = sum(small.get(name, value).numel() for name, value in full_state.items())
    first = model.plan.report(0.5).splitlines()[0]
    assert f"at width 0.5 they hold {kept:,} of {full:,} numbers ({kept / full:.1%})" in first
    assert "kept whole" not in model.plan.report(0.5)
    sliced = [name for name, cut in model.plan.sliced().items() if cut]
    assert sorted(sliced) == sorted(name for name, value in small.items() if value.shape != full_state[name].shape)


def test_inputs_and_outputs_are_not_reported_as_kept_whole() -> None:
    model = at_width(nn.Conv2d(3, 8, 3), torch.randn(2, 3, 8, 8), 0.5)
    assert model.plan.dimensions_kept_whole() == {}
    assert model.plan.report().startswith("0 of 2 parameters and buffers are sliced")


@pytest.mark.xfail(strict=True, reason="'spatial' is taken for an expected reason wherever it stands")
def test_channels_kept_whole_by_an_op_over_them_as_a_line_are_reported() -> None:
    def attention(m: nn.Module, x: Tensor) -> Tensor:
        x = m.a(x)  # type: ignore[operator]
        x = x * m.c(x.mean((2, 3)).unsqueeze(1)).sigmoid().view(-1, 8, 1, 1)  # type: ignore[operator]
        return m.head(x.mean((2, 3)))  # type: ignore[operator,return-value]

    net = Lambda(attention, a=nn.Conv2d(3, 8, 3), c=nn.Conv1d(1, 1, 3, padding=1), head=nn.Linear(8, 5))
    model = at_width(net, torch.randn(2, 3, 8, 8), 0.5)
    assert model.materialize(0.0).state_dict()["a.weight"].shape[0] == 8
    assert "kept whole: a.weight, dimension 0 (conv1d" in model.plan.report()


def test_indices_reach_a_device_once() -> None:
    indices, device = Indices([0, 2]), torch.device("cpu")
    with torch.inference_mode():
        found = indices.on(device)
    assert indices.on(device) is found
    assert not found.is_inference()


def test_a_tracer_s_indices_are_not_kept() -> None:
    indices, device = Indices([0, 2]), torch.device("cpu")
    with FakeTensorMode():
        assert type(indices.on(device)) is FakeTensor
    assert type(indices.on(device)) is Tensor
