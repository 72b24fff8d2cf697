"""The algebra of channel dimensions.

Every dimension of a tensor is a *sum of products of atoms*: concatenation makes a sum, flattening makes a product. An
atom is a set of channels that shrink together; `Structure.unify` states that two dimensions must agree, and so merges
or refines atoms until they do. What cannot be made to agree is *kept_whole*: kept whole, with the op that froze it.

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

ONE: Dim = ((),)
# Groups of which certain channels are kept, ascending.
ChosenChannels = Mapping[int, Sequence[int]]
NO_CHOSEN_CHANNELS: ChosenChannels = MappingProxyType({})
# Of a concatenation inside of a product, where the outer factor (heads, and with them the batch) is spelled out.
MAX_COPIES = 1024


def kept_channels(size: int, width: float, step: int = 1, min_channels: int = 1) -> int:
    """Channels that a group of ``size`` channels keeps at ``width``.

    The multiple of ``step`` that is nearest to ``size * width``, at least one step and ``least`` channels, and at most
    all of them: with the defaults ``max(1, round(size * width))``.
    """
    if width == 1.0:
        return size
    kept = max(step, step * round(size * width / step), step * -(-min_channels // step))
    return min(size, kept)


@dataclasses.dataclass
class Structure:
    """The atoms of one network, what is known about them, and nothing else.

    Attributes:
        sizes: size of each atom, by id.
        bound: atoms that turned out to be made of others.
        kept_whole: atoms kept whole, with the reason.
        products: flattened pairs seen so far.
        min_channels: channels that every group keeps.
        steps: atom -> the number that its kept channels are a multiple of.
    """

    sizes: list[int] = dataclasses.field(default_factory=list)
    bound: dict[int, Dim] = dataclasses.field(default_factory=dict)
    kept_whole: dict[int, str] = dataclasses.field(default_factory=dict)
    products: set[Term] = dataclasses.field(default_factory=set)
    min_channels: int = 1
    steps: dict[int, int] = dataclasses.field(default_factory=dict)

    # -- making dimensions ------------------------------------------------------------------------------------------

    def fresh(self, size: int, kept_whole: str | None = None) -> Dim:
        """A dimension of one new atom (none for size 1, and nothing for size 0), kept_whole for the reason given."""
        if size < 2:
            return ONE * size
        self.sizes.append(size)
        atom = len(self.sizes) - 1
        if kept_whole is not None:
            self.kept_whole[atom] = kept_whole
        return ((atom,),)

    def times(self, outer: Dim, inner: Dim, why: str) -> Dim:
        """The flattened pair of an outer and an inner dimension."""
        outer, inner = self.resolve(outer), self.resolve(inner)
        if len(inner) > 1 and outer != ONE:
            # For each element of the outer dimension the whole inner sum: only writable with the outer one spelled out.
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
        """``dim`` in terms of atoms that are bound to nothing else."""
        if not any(atom in self.bound for term in dim for atom in term):
            return dim
        terms: list[Term] = []
        for term in dim:
            partial: Dim = ONE
            for atom in term:
                factor: Dim = ((atom,),)
                if atom in self.bound:
                    # Kept: each layer may bind the atoms of the last one, and chains grow long.
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
        """The atoms of a dimension that are not kept_whole."""
        return [atom for term in self.resolve(dim) for atom in term if atom not in self.kept_whole]

    # -- stating facts ----------------------------------------------------------------------------------------------

    def keep_whole(self, dim: Dim, why: str) -> None:
        """Keep a dimension whole; the first reason given stays."""
        for term in self.resolve(dim):
            for atom in term:
                self.kept_whole.setdefault(atom, why)

    def unify(self, a: Dim, b: Dim, why: str) -> None:
        """State that two dimensions are one; on a mismatch of sizes both are kept_whole, with ``why``."""
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
        """Make the first disagreement smaller; False when there is nothing left to do."""
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
            # (g, x) against a concatenation of several x each: g is one itself.
            self._bind(long[0], self.fresh(short // inner) + self.fresh(self.sizes[long[0]] - short // inner))
            return True
        if len(long) > 1:
            # (g, x) against a concatenation: g copies of x, with g kept whole.
            self.keep_whole((long[:-1],), why)
            outer = self.term_size(long[:-1])
            if outer > MAX_COPIES:
                self.keep_whole(a, why)
                self.keep_whole(b, why)
                return False
            return self._spell_out(a, b, long, outer, why)
        self._bind(long[0], self.fresh(short) + self.fresh(self.sizes[long[0]] - short))
        return True

    def _spell_out(self, a: Dim, b: Dim, term: Term, copies: int, why: str) -> bool:
        def spelled(dim: Dim) -> Dim:
            return tuple(part for t in dim for part in ([(t[-1],)] * copies if t == term else [t]))

        self.unify(spelled(a), spelled(b), why)
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
        """A dimension cut into consecutive parts of the sizes given (which add up to its size)."""
        parts = [self.fresh(size) for size in sizes]
        self.unify(dim, tuple(term for part in parts for term in part), why)
        return [self.resolve(part) for part in parts]

    def factor(self, dim: Dim, sizes: Sequence[int], why: str) -> list[Dim]:
        """A dimension viewed as several, outermost first (the sizes multiply to its size)."""
        factors = [self.fresh(size) for size in sizes]
        if not all(factors):
            return factors  # of an empty tensor
        term = tuple(atom for factor in factors for atom in factor[0])
        if len(term) > 1:
            self.products.add(term)
        self.unify(dim, (term,), why)
        resolved = [self.resolve(factor) for factor in factors]
        if self._spelled(dim) != self._spelled((term,)):
            self.keep_whole(dim, why)
            for factor in resolved:
                self.keep_whole(factor, why)
        return resolved

    def _spelled(self, dim: Dim) -> list[Term]:
        """A dimension with the kept_whole outer factors of each product written as so many copies of the rest."""
        terms: list[Term] = []
        for term in self.resolve(dim):
            inner = list(term)
            while len(inner) > 1 and inner[0] in self.kept_whole:
                inner.pop(0)
            terms.extend([tuple(inner)] * (self.term_size(term) // self.term_size(tuple(inner))))
        return terms

    def keep_outer_factors_whole(self) -> None:
        """Freeze all but the innermost free atom of every product.

        One atom of a product is sliced: channels within a head before the heads, channels within a group before the
        groups.
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
        """Keep sizes that are multiples of a number in all dimensions given; channels per head count with the heads."""
        for dim in dims:
            for term in self.resolve(dim):
                for atom in term:
                    if atom not in self.kept_whole:
                        others = self.term_size(term) // self.sizes[atom]
                        step = multiple // math.gcd(multiple, others)
                        self.steps[atom] = math.lcm(self.steps.get(atom, 1), step)

    # -- slicing ----------------------------------------------------------------------------------------------------

    def kept_size(self, dim: Dim, width: float, chosen: ChosenChannels = NO_CHOSEN_CHANNELS) -> int:
        """Size of a dimension at ``width``."""
        return sum(math.prod(len(self._channels(atom, width, chosen)) for atom in term) for term in self.resolve(dim))

    def _channels(self, atom: int, width: float, chosen: ChosenChannels) -> Sequence[int]:
        size = self.sizes[atom]
        if atom in self.kept_whole:
            return range(size)
        return chosen.get(atom) or range(kept_channels(size, width, self.steps.get(atom, 1), self.min_channels))

    def kept_indices(self, dim: Dim, width: float, chosen: ChosenChannels = NO_CHOSEN_CHANNELS) -> list[int]:
        """Indices of a dimension that are kept at ``width``, ascending.

        Args:
            dim: the dimension.
            width: share of the channels of each group.
            chosen: groups of which other channels are kept than the first.
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
    """The sum of several dimensions; parts of size 1 are atoms of their own and never sliced."""
    return tuple(term for dim in dims for term in dim)
