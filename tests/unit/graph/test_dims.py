import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lightning_lcs.graph.channels.dims import ONE, Dim, Structure, concatenated, kept_channels

WIDTHS = (0.05, 0.25, 0.4, 0.5, 0.75, 0.9, 1.0)
widths = st.floats(0.01, 1.0)


def oracle(structure: Structure, dim: Dim, width: float) -> list[int]:
    """Kept indices by brute force: every term as an array of marks, cut axis by axis, then flattened and joined."""
    marks = []
    for term in structure.resolve(dim):
        kept = np.ones([structure.sizes[atom] for atom in term], dtype=bool)
        for axis, atom in enumerate(term):
            if atom not in structure.kept_whole:
                channels = max(1, round(structure.sizes[atom] * width))
                np.moveaxis(kept, axis, 0)[channels:] = False
        marks.append(kept.reshape(-1))
    return np.flatnonzero(np.concatenate(marks)).tolist()


@st.composite
def dims(draw: st.DrawFn, structure: Structure, size: int, depth: int = 2) -> Dim:
    """A dimension of a given size: an atom, a concatenation or a product."""
    kind = draw(st.sampled_from(["atom", "whole", "sum", "product"])) if depth else "atom"
    if kind == "sum" and size > 1:
        first = draw(st.integers(1, size - 1))
        return concatenated([draw(dims(structure, n, depth - 1)) for n in (first, size - first)])
    divisors = [n for n in range(2, size) if size % n == 0]
    if kind == "product" and divisors:
        outer = draw(st.sampled_from(divisors))
        inner = draw(dims(structure, size // outer, depth - 1))
        return structure.times(draw(dims(structure, outer, depth - 1)), inner, "times")
    return structure.fresh(size, kept_whole="drawn whole" if kind == "whole" else None)


@pytest.mark.parametrize(
    ("size", "width", "kept"),
    [(64, 0.5, 32), (10, 0.25, 2), (3, 0.1, 1), (1, 0.01, 1), (7, 1.0, 7), (6, 0.25, 2), (10, 0.35, 4)],
)
def test_kept_channels_is_the_rounded_share_and_at_least_one(size: int, width: float, kept: int) -> None:
    assert kept_channels(size, width) == kept == max(1, round(size * width))


@given(data=st.data(), size=st.integers(1, 24), width=widths)
def test_kept_indices_are_those_of_brute_force(data: st.DataObject, size: int, width: float) -> None:
    structure = Structure()
    dim = data.draw(dims(structure, size, 3))
    assert structure.size(dim) == size
    assert structure.kept_indices(dim, width) == oracle(structure, dim, width)


@given(data=st.data(), size=st.integers(1, 24), narrow=widths, wide=widths)
def test_kept_indices_properties(data: st.DataObject, size: int, narrow: float, wide: float) -> None:
    structure = Structure()
    dim = data.draw(dims(structure, size, 3))
    structure.keep_outer_factors_whole()
    narrow, wide = sorted((narrow, wide))
    kept = structure.kept_indices(dim, narrow)
    assert len(kept) == structure.kept_size(dim, narrow) >= 1
    assert kept == sorted(set(kept))
    assert kept[0] >= 0
    assert kept[-1] < size
    assert set(kept) <= set(structure.kept_indices(dim, wide))
    assert structure.kept_indices(dim, 1.0) == list(range(size))


@given(data=st.data(), size=st.integers(2, 24))
def test_unified_dimensions_stay_one_whatever_is_said_later(data: st.DataObject, size: int) -> None:
    structure = Structure()
    group = [data.draw(dims(structure, size)) for _ in range(3)]
    structure.unify(group[0], group[1], "first")
    structure.unify(group[1], group[2], "second")
    structure.keep_outer_factors_whole()
    for width in WIDTHS:
        first, *others = [structure.kept_indices(dim, width) for dim in group]
        assert others == [first, first]
        assert first == oracle(structure, group[0], width)


@given(data=st.data(), size=st.integers(2, 24))
def test_unify_does_not_depend_on_the_order_of_its_arguments(data: st.DataObject, size: int) -> None:
    structure, mirrored = Structure(), Structure()
    shape = data.draw(st.randoms(use_true_random=False))
    state = shape.getstate()
    pairs = []
    for each in (structure, mirrored):
        shape.setstate(state)
        pairs.append([random_dim(each, size, shape), random_dim(each, size, shape)])
    structure.unify(*pairs[0], "why")
    mirrored.unify(*reversed(pairs[1]), "why")
    for width in WIDTHS:
        assert structure.kept_indices(pairs[0][0], width) == mirrored.kept_indices(pairs[1][0], width)


def random_dim(structure: Structure, size: int, random: object) -> Dim:
    """A concatenation of atoms."""
    parts = []
    while size:
        parts.append(random.randint(1, size))  # type: ignore[attr-defined]
        size -= parts[-1]
    return concatenated(structure.fresh(n) for n in parts)


@given(data=st.data(), parts=st.lists(st.integers(1, 8), min_size=1, max_size=4), width=widths)
def test_split_parts_joined_again_are_the_whole(data: st.DataObject, parts: list[int], width: float) -> None:
    structure = Structure()
    dim = data.draw(dims(structure, sum(parts)))
    cut = structure.split(dim, parts, "split")
    structure.keep_outer_factors_whole()
    assert [structure.size(part) for part in cut] == parts
    joined, offset = [], 0
    for part, size in zip(cut, parts, strict=True):
        joined.extend(offset + index for index in structure.kept_indices(part, width))
        offset += size
    assert joined == structure.kept_indices(dim, width)


@given(data=st.data(), sizes=st.lists(st.integers(1, 4), min_size=1, max_size=3), width=widths)
def test_factors_multiplied_again_are_the_whole(data: st.DataObject, sizes: list[int], width: float) -> None:
    structure = Structure()
    dim = data.draw(dims(structure, int(np.prod(sizes))))
    factors = structure.factor(dim, sizes, "view")
    structure.keep_outer_factors_whole()
    assert [structure.size(factor) for factor in factors] == sizes
    kept = [structure.kept_indices(factor, width) for factor in factors]
    grid = np.arange(int(np.prod(sizes))).reshape(sizes)[np.ix_(*kept)]
    assert grid.reshape(-1).tolist() == structure.kept_indices(dim, width)


def test_two_atoms_become_one() -> None:
    structure = Structure()
    a, b = structure.fresh(8), structure.fresh(8)
    structure.unify(a, b, "add")
    assert structure.resolve(a) == structure.resolve(b)
    assert structure.kept_indices(a, 0.5) == [0, 1, 2, 3]


def test_atom_against_concatenation_keeps_a_prefix_per_segment() -> None:
    structure = Structure()
    whole, joined = structure.fresh(10), concatenated([structure.fresh(4), structure.fresh(6)])
    structure.unify(whole, joined, "cat")
    assert structure.kept_indices(whole, 0.5) == [0, 1, 4, 5, 6]


def test_concatenations_with_other_borders_are_cut_at_all_of_them() -> None:
    structure = Structure()
    a = concatenated([structure.fresh(4), structure.fresh(8)])
    b = concatenated([structure.fresh(8), structure.fresh(4)])
    structure.unify(a, b, "add")
    assert structure.kept_indices(a, 0.5) == [0, 1, 4, 5, 8, 9]
    assert structure.kept_indices(a, 0.5) == structure.kept_indices(b, 0.5)


def test_product_against_concatenation_keeps_the_outer_whole() -> None:
    structure = Structure()
    groups, inner = structure.fresh(2), structure.fresh(4)
    product = structure.times(groups, inner, "view")
    joined = concatenated([structure.fresh(4), structure.fresh(4)])
    structure.unify(product, joined, "add")
    structure.keep_outer_factors_whole()
    assert structure.kept_indices(product, 0.5) == [0, 1, 4, 5]
    assert structure.kept_indices(joined, 0.5) == [0, 1, 4, 5]
    assert structure.kept_whole[groups[0][0]] == "add"


def test_in_a_product_the_innermost_free_atom_is_cut() -> None:
    structure = Structure()
    heads, channels = structure.factor(structure.fresh(12), [3, 4], "view")
    structure.keep_outer_factors_whole()
    assert structure.kept_size(heads, 0.5) == 3
    assert structure.kept_indices(channels, 0.5) == [0, 1]
    structure = Structure()
    whole = structure.fresh(12)
    heads, channels = structure.factor(whole, [3, 4], "view")
    structure.keep_whole(channels, "spatial")
    structure.keep_outer_factors_whole()
    assert structure.kept_indices(whole, 0.34) == [0, 1, 2, 3]
    assert structure.kept_size(heads, 0.34) == 1


def test_products_with_other_factors_are_refined_or_frozen() -> None:
    structure = Structure()
    a, b = structure.fresh(12), structure.fresh(12)
    structure.factor(a, [2, 6], "view")
    structure.factor(b, [4, 3], "view")
    structure.unify(a, b, "add")
    structure.keep_outer_factors_whole()
    assert structure.kept_indices(a, 0.34) == structure.kept_indices(b, 0.34) == [0, 3, 6, 9]
    structure = Structure()
    a, b = structure.fresh(24), structure.fresh(24)
    structure.factor(a, [4, 6], "view")
    structure.factor(b, [6, 4], "view")
    structure.unify(a, b, "add in here")
    structure.keep_outer_factors_whole()
    assert structure.kept_size(a, 0.5) == structure.kept_size(b, 0.5) == 24
    assert set(structure.kept_whole.values()) == {"add in here"}


@pytest.mark.parametrize("swap", [False, True])
def test_freezing_keeps_the_first_reason_and_reaches_what_is_unified_later(swap: bool) -> None:
    structure = Structure()
    a, b = structure.fresh(6), structure.fresh(6)
    structure.keep_whole(a, "output of the network")
    structure.keep_whole(a, "another reason")
    structure.unify(*((b, a) if swap else (a, b)), "add")
    assert structure.free(b) == []
    assert structure.kept_size(b, 0.5) == 6
    assert {structure.kept_whole[atom] for term in structure.resolve(b) for atom in term} == {"output of the network"}


@given(data=st.data(), size=st.integers(2, 24), width=widths)
def test_what_is_kept_whole_stays_whole(data: st.DataObject, size: int, width: float) -> None:
    structure = Structure()
    group = [data.draw(dims(structure, size)) for _ in range(3)]
    structure.keep_whole(group[data.draw(st.integers(0, 2))], "output")
    for a, b in data.draw(st.permutations([(0, 1), (1, 2)])):
        structure.unify(group[a], group[b], "add")
    structure.keep_outer_factors_whole()
    assert [structure.kept_indices(dim, width) for dim in group] == [list(range(size))] * 3


def test_sizes_that_differ_freeze_both() -> None:
    structure = Structure()
    a, b = structure.fresh(6), structure.fresh(8)
    structure.unify(a, b, "add in block.3")
    assert structure.kept_size(a, 0.5) == 6
    assert structure.kept_size(b, 0.5) == 8
    assert set(structure.kept_whole.values()) == {"add in block.3"}


def test_size_one_is_no_atom() -> None:
    structure = Structure()
    assert structure.fresh(1) == ONE
    assert structure.kept_indices(ONE, 0.1) == [0]
    four = structure.fresh(4)
    assert structure.times(ONE, four, "view") == structure.times(four, ONE, "view") == four


@example(size=70)
@given(size=st.integers(2, 100))
def test_repeating_a_concatenation_stays_correct_when_it_is_too_long_to_write_out(size: int) -> None:
    structure = Structure()
    inner = concatenated([structure.fresh(2), structure.fresh(4)])
    dim = structure.times(structure.fresh(size), inner, "flatten")
    assert structure.size(dim) == 6 * size
    kept = structure.kept_indices(inner, 0.5)
    assert structure.kept_indices(dim, 0.5) == [6 * copy + index for copy in range(size) for index in kept]


@given(data=st.data(), size=st.integers(1, 24))
def test_settling_twice_changes_nothing(data: st.DataObject, size: int) -> None:
    structure = Structure()
    data.draw(dims(structure, size, 3))
    structure.keep_outer_factors_whole()
    kept_whole = dict(structure.kept_whole)
    structure.keep_outer_factors_whole()
    assert structure.kept_whole == kept_whole


def test_an_empty_part_of_a_concatenation_is_nothing() -> None:
    """As tokens without position that a network has none of, joined to the others."""
    structure = Structure()
    whole, tokens = structure.fresh(6), structure.fresh(6)
    joined = concatenated([structure.fresh(0), tokens])
    structure.unify(whole, joined, "cat")
    assert structure.resolve(whole) == structure.resolve(tokens)
    assert structure.size(structure.fresh(0)) == structure.kept_size(structure.fresh(0), 0.5) == 0
    assert structure.factor(structure.fresh(0), [0, 4], "view")[0] == ()
