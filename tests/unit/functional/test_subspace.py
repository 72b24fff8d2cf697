import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lightning_lcs.functional.subspace import endpoint_cosine, endpoint_distance, interpolate, redraw

# float64 sums of at most a few hundred products, in another order than numpy's.
SUM_ORDER = 1e-12
# torch.lerp adds a scaled difference, the formula two scaled ends: a few units in the last place.
LERP = 1e-14
# Central differences of step 1e-6 in float64: truncation and cancellation both near 1e-10.
FINITE_DIFFERENCE = 1e-7

shapes = st.lists(st.integers(1, 4), min_size=0, max_size=4)


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_ends_of_the_line_are_the_endpoints_bitwise(dtype: torch.dtype) -> None:
    w0, w1 = torch.randn(5, 3).to(dtype), torch.randn(5, 3).to(dtype)
    assert torch.equal(interpolate(w0, w1, 0.0), w0)
    assert torch.equal(interpolate(w0, w1, 1.0), w1)


@given(shape=shapes, alpha=st.floats(0, 1), seed=st.integers(0, 100))
def test_interpolate_is_the_formula(shape: list[int], alpha: float, seed: int) -> None:
    w0, w1 = draw(seed, *shape), draw(seed + 1000, *shape)
    expected = (1 - alpha) * w0.numpy() + alpha * w1.numpy()
    np.testing.assert_allclose(interpolate(w0, w1, alpha).numpy(), expected, rtol=0, atol=LERP * 10)


def test_interpolate_sends_each_endpoint_its_share_of_the_gradient() -> None:
    w0, w1 = draw(0, 4).requires_grad_(), draw(1, 4).requires_grad_()
    interpolate(w0, w1, 0.25).sum().backward()
    assert w0.grad is not None
    assert w1.grad is not None
    assert torch.equal(w0.grad, torch.full_like(w0, 0.75))
    assert torch.equal(w1.grad, torch.full_like(w1, 0.25))


def numpy_cosine(pairs: list[tuple[Tensor, Tensor]]) -> float:
    w0 = np.concatenate([a.detach().numpy().ravel() for a, _ in pairs])
    w1 = np.concatenate([b.detach().numpy().ravel() for _, b in pairs])
    return float(w0 @ w1 / (np.linalg.norm(w0) * np.linalg.norm(w1)))


@given(shapes=st.lists(shapes, min_size=1, max_size=4), seed=st.integers(0, 100))
def test_cosine_is_that_of_all_parameters_joined(shapes: list[list[int]], seed: int) -> None:
    pairs = [(draw(seed + 2 * i, *shape), draw(seed + 2 * i + 1, *shape)) for i, shape in enumerate(shapes)]
    assert endpoint_cosine(pairs).item() == pytest.approx(numpy_cosine(pairs), abs=SUM_ORDER)


def test_gradient_of_the_diversity_term_is_that_of_finite_differences() -> None:
    pairs = [(draw(0, 2, 3), draw(1, 2, 3)), (draw(2, 4), draw(3, 4))]
    leaves = [tensor.requires_grad_() for pair in pairs for tensor in pair]
    (endpoint_cosine(pairs) ** 2).backward()
    step = 1e-6
    for leaf in leaves:
        assert leaf.grad is not None
        for index in np.ndindex(*leaf.shape):
            values = []
            for sign in (1, -1):
                with torch.no_grad():
                    leaf[index] += sign * step
                    values.append(numpy_cosine(pairs) ** 2)
                    leaf[index] -= sign * step
            assert leaf.grad[index].item() == pytest.approx((values[0] - values[1]) / (2 * step), abs=FINITE_DIFFERENCE)


@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_parallel_endpoints_have_cosine_one_and_are_not_pushed_apart(factor: float) -> None:
    w0 = draw(0, 3, 4).requires_grad_()
    w1 = (factor * w0.detach()).requires_grad_()
    cosine = endpoint_cosine([(w0, w1)])
    assert cosine.item() == pytest.approx(1.0, abs=SUM_ORDER)
    (cosine**2).backward()
    for leaf in (w0, w1):
        assert leaf.grad is not None
        assert leaf.grad.abs().max().item() < SUM_ORDER


def test_cosine_of_opposite_and_orthogonal_endpoints() -> None:
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0])
    assert endpoint_cosine([(a, -a)]).item() == pytest.approx(-1.0)
    assert endpoint_cosine([(a, b)]).item() == 0.0


def test_a_zero_endpoint_gives_zero_and_a_finite_gradient() -> None:
    w0, w1 = torch.zeros(3, requires_grad=True), torch.ones(3, requires_grad=True)
    cosine = endpoint_cosine([(w0, w1)])
    assert cosine.item() == 0.0
    (cosine**2).backward()
    assert w0.grad is not None
    assert torch.isfinite(w0.grad).all()


def test_cosine_without_pairs_is_an_error_that_names_the_argument() -> None:
    with pytest.raises(ValueError, match="pairs is empty"):
        endpoint_cosine([])


@pytest.mark.parametrize(
    ("value", "count", "dtype"),
    [
        pytest.param(1e-10, 8, torch.float32, id="small"),
        pytest.param(1e10, 8, torch.float32, id="large"),
        pytest.param(1.0, 300, torch.float16, id="half"),
    ],
)
def test_cosine_does_not_depend_on_the_scale_of_the_weights(value: float, count: int, dtype: torch.dtype) -> None:
    w = torch.full((count,), value, dtype=dtype)
    assert endpoint_cosine([(w, w)]).item() == pytest.approx(1.0, abs=1e-3)


def test_redraw_keeps_mean_and_deviation_and_forgets_the_weights() -> None:
    weight = 0.7 + 0.2 * torch.randn(200, 100)
    drawn = redraw(weight, torch.Generator().manual_seed(1))
    # 20,000 draws: standard errors of mean, deviation and correlation are .2/141, .2/200 and 1/141; five of them.
    assert drawn.mean().item() == pytest.approx(weight.mean().item(), abs=5 * 0.2 / 141)
    assert drawn.std().item() == pytest.approx(weight.std().item(), abs=5 * 0.2 / 200)
    correlation = np.corrcoef(weight.flatten().numpy(), drawn.flatten().numpy())[0, 1]
    assert abs(correlation) < 5 / 141


def test_redraw_depends_on_the_generator_alone() -> None:
    weight = torch.randn(4, 3)
    first = redraw(weight, torch.Generator().manual_seed(1))
    torch.manual_seed(99)
    assert torch.equal(first, redraw(weight, torch.Generator().manual_seed(1)))
    assert not torch.equal(first, redraw(weight, torch.Generator().manual_seed(2)))


@pytest.mark.parametrize("shape", [(), (7,)])
def test_redraw_copies_what_has_fewer_than_two_dimensions(shape: tuple[int, ...]) -> None:
    weight = torch.nn.Parameter(torch.randn(shape))
    drawn = redraw(weight, torch.Generator())
    assert torch.equal(drawn, weight)
    assert drawn.data_ptr() != weight.data_ptr()
    assert not drawn.requires_grad


def test_redraw_of_a_single_number_is_a_number() -> None:
    assert torch.isfinite(redraw(torch.ones(1, 1), torch.Generator().manual_seed(0))).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_redraw_keeps_the_dtype(dtype: torch.dtype) -> None:
    assert redraw(torch.randn(4, 3).to(dtype), torch.Generator()).dtype == dtype


def test_distance_of_endpoints_is_relative_to_endpoint_1_and_over_all_tensors():
    pairs = [(torch.zeros(3), torch.full((3,), 2.0)), (torch.ones(4), torch.ones(4))]
    assert float(endpoint_distance(pairs)) == pytest.approx((12.0 / 16.0) ** 0.5)
    assert float(endpoint_distance([(w1, w1) for _, w1 in pairs])) == 0.0
    with pytest.raises(ValueError, match="pairs is empty"):
        endpoint_distance([])
