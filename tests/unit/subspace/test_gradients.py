"""Sums of gradients at several levels: against adding each at full size, with no memory of where it came from."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lightning_lcs.graph.channels.plan import Indices
from lightning_lcs.subspace.running.gradients import GradientSum

SHAPE = (6, 5)
# Nested per axis, as the selections of one tensor at several widths are: prefixes, and prefixes of two halves.
ROWS = [1, Indices([0, 3]), Indices([0, 1, 3, 4]), None]
COLUMNS = [1, 2, 4, None]


def _parameter() -> nn.Parameter:
    return nn.Parameter(torch.zeros(SHAPE))


def _indices(kept: object, size: int) -> torch.Tensor:
    if isinstance(kept, int):
        return torch.arange(kept)
    return torch.arange(size) if kept is None else torch.tensor(kept)


def _place(selection: tuple[object, object]) -> tuple[torch.Tensor, torch.Tensor]:
    rows, columns = (_indices(kept, size) for kept, size in zip(selection, SHAPE, strict=True))
    return rows[:, None], columns[None, :]


selections = st.tuples(st.sampled_from(ROWS), st.sampled_from(COLUMNS))


@given(
    st.lists(st.tuples(selections, st.sampled_from([1.0, 0.25])), min_size=1, max_size=6),
    st.booleans(),
    st.randoms(use_true_random=False),
)
def test_any_levels_in_any_order_add_up(added, has_gradient, random):
    parameter, expected = _parameter(), torch.zeros(SHAPE)
    if has_gradient:
        parameter.grad = torch.ones(SHAPE)
        expected += 1
    gradients = GradientSum()
    for selection, share in added:
        place = _place(selection)
        gradient = torch.full(expected[place].shape, float(random.randint(1, 8)))
        expected[place] += share * gradient
        gradients.add(parameter, selection, gradient, share)
    with gradients.added():
        pass
    assert torch.equal(parameter.grad, expected)


def test_a_backward_inside_the_block_adds_to_what_it_computes():
    parameter, other, unused = _parameter(), _parameter(), _parameter()
    gradients = GradientSum()
    gradients.add(parameter, (2, 2), torch.ones(2, 2))
    gradients.add(unused, (2, 2), torch.ones(2, 2))
    seen: list[torch.Tensor] = []
    with gradients.added():
        parameter.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.clone()))
        (3 * parameter + other).sum().backward()
    full = torch.full(SHAPE, 3.0)
    full[:2, :2] += 1
    assert torch.equal(seen[0], full)  # complete by the time at which later hooks (data-parallel training) look
    assert torch.equal(parameter.grad, full)
    assert torch.equal(other.grad, torch.ones(SHAPE))
    assert unused.grad.sum() == 4


def test_a_second_backward_adds_nothing_more():
    parameter = _parameter()
    gradients = GradientSum()
    gradients.add(parameter, (), torch.ones(SHAPE))
    with gradients.added():
        parameter.sum().backward()
        parameter.sum().backward()
    parameter.sum().backward()
    assert torch.equal(parameter.grad, torch.full(SHAPE, 4.0))


def test_an_exception_drops_the_sums_and_the_hooks():
    parameter = _parameter()
    gradients = GradientSum()
    gradients.add(parameter, (), torch.ones(SHAPE))
    with pytest.raises(KeyError), gradients.added():
        raise KeyError
    parameter.sum().backward()
    assert torch.equal(parameter.grad, torch.ones(SHAPE))


def test_take_moves_gradients_away_and_back():
    parameter, without = _parameter(), _parameter()
    parameter.grad = torch.ones(SHAPE)
    gradients = GradientSum()
    gradients.take([parameter, without])
    assert parameter.grad is None
    assert without.grad is None
    with gradients.added():
        parameter.sum().backward()
    assert torch.equal(parameter.grad, torch.full(SHAPE, 2.0))
    assert without.grad is None


def test_sums_of_vectors_are_added_on_exit_unless_someone_looks_before():
    """Two levels, of which the second is larger, and one vector with a hook, which sees the whole gradient."""
    free, seen = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(4))
    gradients, told = GradientSum(), []
    for kept in (2, 3):
        for parameter in (free, seen):
            gradients.add(parameter, (kept,), torch.full((kept,), float(kept)))
    seen.register_hook(lambda gradient: told.append(gradient.tolist()))
    with gradients.added(vectors_on_exit=True):
        (free.sum() + seen.sum()).backward()
        assert free.grad.tolist() == [1.0] * 4
    assert free.grad.tolist() == seen.grad.tolist() == [6.0, 6.0, 4.0, 1.0]
    assert told == [[6.0, 6.0, 4.0, 1.0]]


def test_a_vector_that_several_layers_share_gets_all_gradients():
    shared, gradients = nn.Parameter(torch.zeros(3)), GradientSum()
    for gradient in ([1.0, 2.0], [10.0, 20.0], [100.0, 200.0]):
        gradients.add(shared, (2,), torch.tensor(gradient))
    gradients.add(shared, (3,), torch.tensor([1000.0, 2000.0, 3000.0]))
    with gradients.added():
        pass
    assert shared.grad.tolist() == [1111.0, 2222.0, 3000.0]
