"""The algebra of channel dimensions.

Each dimension of a tensor is a *sum of products of atoms*: concatenation makes a sum, and flattening makes a product.
An atom is a set of channels that shrink together; `Structure.unify` states that two dimensions must agree, and so
merges or refines atoms until they do. What cannot be made to agree is *kept whole*, and the op that is the reason is
noted.

    Dim  = (Term, ...)     summed, in memory order
    Term = (atom, ...)     multiplied, outermost first; the empty term has size 1
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

Term = tuple[int, ...]
Dim = tuple[Term, ...]

# A dimension of size 1.
ONE: Dim = ((),)
# The channels that are kept, in ascending order, by atom. Of all other atoms the first channels are kept.
ChosenChannels = Mapping[int, Sequence[int]]
NO_CHOSEN_CHANNELS: ChosenChannels = MappingProxyType({})
# A concatenation inside of a product is written once for each entry of the outer factor (heads, and possibly the
# batch). This is the largest number of copies.
MAX_COPIES = 1024


def kept_channels(size: int, width: float, step: int = 1, min_channels: int = 1) -> int:
    """Number of channels that a group keeps at a width.

    This is the multiple of ``step`` that is nearest to ``size * width``, but at least one step, at least
    ``min_channels`` channels, and at most all of them. With the defaults it is ``max(1, round(size * width))``.

    Args:
        size: Number of channels of the group.
        width: Share of channels to keep, in (0, 1].
        step: The number of kept channels is a multiple of it. The default is 1.
        min_channels: Minimum number of kept channels. The default is 1.
    """
    if width == 1.0:
        return size
    kept = max(step, step * round(size * width / step), step * -(-min_channels // step))
    return min(size, kept)


@dataclasses.dataclass
class Structure:
    """The atoms of one network, and what is known about them.

    Attributes:
        sizes: Size of each atom; its index is the atom.
        bound: Atoms that are made of others, with the dimension that they stand for.
        kept_whole: Atoms that are kept whole, with the reason.
        products: All products of several atoms so far.
        min_channels: Minimum number of channels that each group keeps.
        steps: The number that an atom's kept channels are a multiple of.
    """

    sizes: list[int] = dataclasses.field(default_factory=list)
    bound: dict[int, Dim] = dataclasses.field(default_factory=dict)
    kept_whole: dict[int, str] = dataclasses.field(default_factory=dict)
    products: set[Term] = dataclasses.field(default_factory=set)
    min_channels: int = 1
    steps: dict[int, int] = dataclasses.field(default_factory=dict)

    # -- making dimensions ------------------------------------------------------------------------------------------

    def fresh(self, size: int, kept_whole: str | None = None) -> Dim:
        """A dimension of one new atom; it has no atom for size 1, and no term for size 0.

        Args:
            size: Size of the dimension.
            kept_whole: The reason for which the dimension is kept whole. The default is that it may shrink.
        """
        if size < 2:
            return ONE * size
        self.sizes.append(size)
        atom = len(self.sizes) - 1
        if kept_whole is not None:
            self.kept_whole[atom] = kept_whole
        return ((atom,),)

    def times(self, outer: Dim, inner: Dim, why: str) -> Dim:
        """The product of an outer and an inner dimension, as flattening makes it.

        Args:
            outer: The outer dimension.
            inner: The inner dimension.
            why: The reason if something must be kept whole.
        """
        outer, inner = self.resolve(outer), self.resolve(inner)
        if len(inner) > 1 and outer != ONE:
            # The inner sum is repeated for each entry of the outer dimension, which therefore can't shrink.
            self.keep_whole(outer, why)
            if self.size(outer) > MAX_COPIES:
                self.keep_whole(inner, why)
                return self.fresh(self.size(outer) * self.size(inner), why)
            return inner * self.size(outer)
        product = tuple(a + b for a in outer for b in inner)
        self.products.update(term for term in product if len(term) > 1)
        return product

    # -- reading dimensions -----------------------------------------------------------------------------------------

    def resolve(self, dim: Dim) -> Dim:
        """The dimension in terms of atoms that are not made of others."""
        if not any(atom in self.bound for term in dim for atom in term):
            return dim
        terms: list[Term] = []
        for term in dim:
            partial: Dim = ONE
            for atom in term:
                factor: Dim = ((atom,),)
                if atom in self.bound:
                    # The result is stored, because each layer may bind the atoms of the previous one in a long chain.
                    factor = self.bound[atom] = self.resolve(self.bound[atom])
                partial = self._expand(partial, factor)
            terms.extend(partial)
        return tuple(terms)

    def _expand(self, outer: Dim, inner: Dim) -> Dim:
        if len(inner) == 1:
            return tuple(a + inner[0] for a in outer)
        if outer == ONE:
            return inner
        self.keep_whole(outer, "it multiplies a concatenation")
        return inner * self.size(outer)

    def term_size(self, term: Term) -> int:
        """Full size of a product."""
        return math.prod(self.sizes[atom] for atom in term)

    def size(self, dim: Dim) -> int:
        """Full size of a dimension."""
        return sum(self.term_size(term) for term in dim)

    def free(self, dim: Dim) -> list[int]:
        """The atoms of a dimension that may shrink."""
        return [atom for term in self.resolve(dim) for atom in term if atom not in self.kept_whole]

    # -- stating facts ----------------------------------------------------------------------------------------------

    def keep_whole(self, dim: Dim, why: str) -> None:
        """Keep a dimension whole. If it is already, the first reason stays."""
        for term in self.resolve(dim):
            for atom in term:
                self.kept_whole.setdefault(atom, why)

    def unify(self, a: Dim, b: Dim, why: str) -> None:
        """State that two dimensions are the same. If their sizes differ, both are kept whole for the reason ``why``."""
        while True:
            a, b = self.resolve(a), self.resolve(b)
            if a == b:
                return
            if self.size(a) != self.size(b):
                self.keep_whole(a, why)
                self.keep_whole(b, why)
                return
            if not self._refine(a, b, why):
                return

    def _refine(self, a: Dim, b: Dim, why: str) -> bool:
        """Bind an atom at the first place where two dimensions differ; False if there is nothing left to do."""
        rest_a, rest_b = list(a), list(b)
        while rest_a and rest_b and rest_a[0] == rest_b[0]:
            rest_a.pop(0)
            rest_b.pop(0)
        if not rest_a:
            return False
        size_a, size_b = self.term_size(rest_a[0]), self.term_size(rest_b[0])
        if size_a == size_b:
            return self._unify_terms(rest_a[0], rest_b[0], why)
        long, short = (rest_a[0], size_b) if size_a > size_b else (rest_b[0], size_a)
        inner = self.term_size(long[1:])
        if len(long) > 1 and short % inner == 0 and short > inner:
            # (g, x) against a concatenation of several x: g is a concatenation, too.
            self._bind(long[0], self.fresh(short // inner) + self.fresh(self.sizes[long[0]] - short // inner))
            return True
        if len(long) > 1:
            # (g, x) against another concatenation: g is kept whole, and the product is g copies of x.
            self.keep_whole((long[:-1],), why)
            outer = self.term_size(long[:-1])
            if outer > MAX_COPIES:
                self.keep_whole(a, why)
                self.keep_whole(b, why)
                return False
            return self._unify_copies(a, b, long, outer, why)
        self._bind(long[0], self.fresh(short) + self.fresh(self.sizes[long[0]] - short))
        return True

    def _unify_copies(self, a: Dim, b: Dim, term: Term, copies: int, why: str) -> bool:
        """Unify two dimensions in which a product is written as copies of its innermost factor."""

        def with_copies(dim: Dim) -> Dim:
            return tuple(part for t in dim for part in ([(t[-1],)] * copies if t == term else [t]))

        self.unify(with_copies(a), with_copies(b), why)
        return False

    def _unify_terms(self, s: Term, t: Term, why: str) -> bool:
        if len(s) == 1 or len(t) == 1:
            atom, other = (s[0], t) if len(s) == 1 else (t[0], s)
            if atom in other:
                return False
            self._bind(atom, (other,))
            return True
        # Two products: refine from the innermost factor outwards.
        x, y = s[-1], t[-1]
        if x == y:
            return self._unify_terms(s[:-1], t[:-1], why)
        if self.sizes[x] == self.sizes[y]:
            self._bind(x, ((y,),))
            return True
        big, small = (x, y) if self.sizes[x] > self.sizes[y] else (y, x)
        if self.sizes[big] % self.sizes[small]:
            self.keep_whole((s, t), why)
            return False
        outer = self.fresh(self.sizes[big] // self.sizes[small])
        self._bind(big, ((outer[0][0], small),))
        return True

    def _bind(self, atom: int, dim: Dim) -> None:
        self.bound[atom] = dim
        self.products.update(term for term in dim if len(term) > 1)
        if atom in self.kept_whole:
            self.keep_whole(dim, self.kept_whole[atom])

    # -- taking dimensions apart ------------------------------------------------------------------------------------

    def split(self, dim: Dim, sizes: Sequence[int], why: str) -> list[Dim]:
        """Split a dimension into consecutive parts.

        Args:
            dim: The dimension.
            sizes: Sizes of the parts, whose sum is the size of the dimension.
            why: The reason if something must be kept whole.
        """
        parts = [self.fresh(size) for size in sizes]
        self.unify(dim, tuple(term for part in parts for term in part), why)
        return [self.resolve(part) for part in parts]

    def factor(self, dim: Dim, sizes: Sequence[int], why: str) -> list[Dim]:
        """View a dimension as several ones, the outermost first.

        Args:
            dim: The dimension.
            sizes: Sizes of the factors, whose product is the size of the dimension.
            why: The reason if something must be kept whole.
        """
        factors = [self.fresh(size) for size in sizes]
        if not all(factors):
            return factors  # the tensor is empty
        term = tuple(atom for factor in factors for atom in factor[0])
        if len(term) > 1:
            self.products.add(term)
        self.unify(dim, (term,), why)
        resolved = [self.resolve(factor) for factor in factors]
        if self._as_copies(dim) != self._as_copies((term,)):
            self.keep_whole(dim, why)
            for factor in resolved:
                self.keep_whole(factor, why)
        return resolved

    def _as_copies(self, dim: Dim) -> list[Term]:
        """A dimension in which the outer factors that are kept whole are written as copies of the inner ones."""
        terms: list[Term] = []
        for term in self.resolve(dim):
            inner = list(term)
            while len(inner) > 1 and inner[0] in self.kept_whole:
                inner.pop(0)
            terms.extend([tuple(inner)] * (self.term_size(term) // self.term_size(tuple(inner))))
        return terms

    def keep_outer_factors_whole(self) -> None:
        """In each product, keep all atoms whole except for the innermost one that may shrink.

        So channels within a head or within a group shrink, rather than the number of heads or groups.
        """
        changed = True
        while changed:
            changed = False
            for product in list(self.products):
                for term in self.resolve((product,)):
                    free = [atom for atom in term if atom not in self.kept_whole]
                    for atom in free[:-1]:
                        self.kept_whole[atom] = "an inner dimension of the same product is sliced instead"
                        changed = True

    def round_to(self, multiple: int, dims: Iterable[Dim]) -> None:
        """Keep sizes that are multiples of a number in the given dimensions.

        Args:
            multiple: The number.
            dims: The dimensions. For a product, the number applies to its whole size, such as heads times channels per
                head.
        """
        for dim in dims:
            for term in self.resolve(dim):
                for atom in term:
                    if atom not in self.kept_whole:
                        others = self.term_size(term) // self.sizes[atom]
                        step = multiple // math.gcd(multiple, others)
                        self.steps[atom] = math.lcm(self.steps.get(atom, 1), step)

    # -- slicing ----------------------------------------------------------------------------------------------------

    def kept_size(self, dim: Dim, width: float, chosen: ChosenChannels = NO_CHOSEN_CHANNELS) -> int:
        """Size of a dimension at a width; arguments as for :meth:`kept_indices`."""
        return sum(math.prod(len(self._channels(atom, width, chosen)) for atom in term) for term in self.resolve(dim))

    def _channels(self, atom: int, width: float, chosen: ChosenChannels) -> Sequence[int]:
        size = self.sizes[atom]
        if atom in self.kept_whole:
            return range(size)
        return chosen.get(atom) or range(kept_channels(size, width, self.steps.get(atom, 1), self.min_channels))

    def kept_indices(self, dim: Dim, width: float, chosen: ChosenChannels = NO_CHOSEN_CHANNELS) -> list[int]:
        """Indices of a dimension that are kept at a width, in ascending order.

        Args:
            dim: The dimension.
            width: Share of the channels of each group, in (0, 1].
            chosen: The channels to keep, for atoms of which these are not the first ones.
        """
        indices: list[int] = []
        offset = 0
        for term in self.resolve(dim):
            kept = [0]
            for atom in term:
                kept = [i * self.sizes[atom] + j for i in kept for j in self._channels(atom, width, chosen)]
            indices.extend(offset + i for i in kept)
            offset += self.term_size(term)
        return indices


def concatenated(dims: Iterable[Dim]) -> Dim:
    """The sum of several dimensions, as concatenation makes it. Parts of size 1 are never sliced."""
    return tuple(term for dim in dims for term in dim)
