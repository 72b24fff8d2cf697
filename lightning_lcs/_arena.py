"""Tensors of one level, side by side in memory that is used again: what to write, and the writing of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from math import prod

import torch
from torch import Tensor

from lightning_lcs.channels.folding import Fold
from lightning_lcs.channels.plan import PlanAtWidth, select
from lightning_lcs.channels.program import Program

_ALIGNMENT = 64  # bytes: a cache line, and what vector units like
_BLOCK = 2**16  # entries that are interpolated and scaled at a time: 256 KB of each end stay in the cache


@dataclasses.dataclass(frozen=True)
class Place:
    """Where in a flat buffer a tensor lies.

    Attributes:
        dtype: of the buffer.
        offset: of its first entry.
        written: shape in which it is written.
        taken: shape in which the network takes it.
    """

    dtype: torch.dtype
    offset: int
    written: tuple[int, ...]
    taken: tuple[int, ...]


class Arena:
    """One flat buffer for each type, which grows to the largest level that it has held."""

    def __init__(self) -> None:
        self._buffers: dict[torch.dtype, Tensor] = {}
        self._views: dict[Recipe, tuple[list[Tensor], list[Tensor]]] = {}

    @property
    def size_bytes(self) -> int:
        """Memory held."""
        return sum(buffer.numel() * buffer.element_size() for buffer in self._buffers.values())

    def views(self, recipe: Recipe) -> tuple[list[Tensor], list[Tensor]]:
        """Views to write the places of a level, and the tensors that its forward takes."""
        for dtype, entries in recipe.entries.items():
            buffer = self._buffers.get(dtype)
            if buffer is None or buffer.numel() < entries or buffer.device != recipe.device:
                self._views.clear()
                del buffer
                self._buffers.pop(dtype, None)  # the old memory goes before the new one comes
                self._buffers[dtype] = torch.empty(entries, dtype=dtype, device=recipe.device)
        if recipe not in self._views:
            flat = [self._buffers[p.dtype][p.offset : p.offset + prod(p.written)] for p in recipe.places]
            written = [piece.view(place.written) for piece, place in zip(flat, recipe.places, strict=True)]
            taken = [
                out if isinstance(out, Tensor) else flat[out].view(recipe.places[out].taken) for out in recipe.outputs
            ]
            self._views[recipe] = (written, taken)
        return self._views[recipe]

    def forget(self, recipe: Recipe) -> None:
        """The level was given up."""
        self._views.pop(recipe, None)


class Source:
    """What a level keeps of one tensor, or of the two ends of a line.

    Args:
        ends: one tensor, or endpoint 0 and endpoint 1.
        name: of the tensor in the plan.
        at: the width; ``None`` for tensors that are cut already.
    """

    def __init__(self, ends: Sequence[Tensor], name: str, at: PlanAtWidth | None) -> None:
        self._ends = list(ends)
        self._selection = () if at is None else at.of(name)
        views = [end if at is None else at.view(name, end) for end in ends]
        self.views = [view for view in views if view is not None] if None not in views else None
        self.taken = tuple(ends[0].shape if at is None else at.shape(name))

    @property
    def written(self) -> tuple[int, ...]:
        """Shape of each of the values."""
        return self.taken if self.views is None else tuple(self.views[0].shape)

    @property
    def is_line(self) -> bool:
        """Whether it has two ends."""
        return len(self._ends) == 2

    def values(self) -> list[Tensor]:
        """The kept entries of each end: views where that can be."""
        return [select(end, self._selection) for end in self._ends] if self.views is None else self.views

    def flat(self) -> list[Tensor]:
        """The kept entries of endpoint 0 and 1 as vectors; twice the same where it is on no line."""
        vectors = [value.reshape(-1) for value in self.values()]
        return vectors * (2 // len(vectors))


class Recipe:
    """How the tensors of one level are made: views of their sources, and places for the results.

    Tensors that are contiguous as they are cut, and lie on no line, are used where they are.

    Args:
        program: the forward, with batch norms folded.
        folds: by name of the convolution's weight.
        at: the width.
        alpha: place on the line.
        tensor: gives a parameter or buffer by qualified name.
        endpoints: endpoint 0 of those on the line.
        stored: running statistics of this level, in place of the cut ones.

    Attributes:
        outputs: for each tensor that the forward takes: its place, or the tensor itself.
        sizes: the sizes that the forward takes.
        entries: of each buffer.
    """

    def __init__(
        self,
        program: Program,
        folds: Mapping[str, Fold],
        at: PlanAtWidth,
        alpha: float,
        tensor: Callable[[str], Tensor],
        endpoints: Mapping[str, Tensor],
        stored: Mapping[str, Tensor],
    ) -> None:
        self._at, self._alpha, self._tensor = at, alpha, tensor
        self._endpoints, self._stored = endpoints, stored
        self.device = tensor(next(iter(at.plan.tensors))).device
        self.entries: dict[torch.dtype, int] = {}
        self.places: list[Place] = []
        self.sizes = [at.size(dim) for dim in program.sizes]
        self._copies: list[tuple[int, Source]] = []
        self._lines: list[tuple[int, Source]] = []
        self._scaled: list[tuple[int, Source]] = []
        self._biases = -1
        active = [folds[name] for name in program.names if name in folds]
        self._norms = _Norms(active, at, self._source, tensor) if active else None
        biases = self._place_biases(active)
        self.outputs = [biases[name] if name in biases else self._output(name, name in folds) for name in program.names]

    @property
    def size_bytes(self) -> int:
        """Bytes that :meth:`make` writes."""
        return sum(entries * dtype.itemsize for dtype, entries in self.entries.items())

    def make(self, arena: Arena) -> list[Tensor]:
        """Write the level into an arena that nobody reads; gives the tensors that the forward takes."""
        places, taken = arena.views(self)
        if self._norms is not None:
            scale, bias = self._norms.scale_and_bias(self._alpha)
            places[self._biases].copy_(bias)
            columns = torch.split(scale.unsqueeze(1), self._norms.counts)
            for (place, source), column in zip(self._scaled, columns, strict=True):
                _scale(places[place], source, column, self._alpha)
        if self._copies:
            torch._foreach_copy_([places[place] for place, _ in self._copies], [s.values()[0] for _, s in self._copies])
        for place, source in self._lines:
            w0, w1 = source.values()
            torch.lerp(w0, w1, self._alpha, out=places[place])
        return taken

    def _source(self, name: str) -> Source:
        own = self._tensor(name).detach()
        if name in self._stored:
            return Source([self._stored[name].to(own)], name, None)
        if name not in self._endpoints or self._alpha == 1.0:
            return Source([own], name, self._at)
        other = self._endpoints[name].detach()
        return Source([other] if self._alpha == 0.0 else [other, own], name, self._at)

    def _place(self, dtype: torch.dtype, written: tuple[int, ...], taken: tuple[int, ...]) -> int:
        step = _ALIGNMENT // dtype.itemsize
        offset = -(-self.entries.get(dtype, 0) // step) * step
        self.entries[dtype] = offset + prod(written)
        self.places.append(Place(dtype, offset, written, taken))
        return len(self.places) - 1

    def _place_biases(self, active: Sequence[Fold]) -> dict[str, int]:
        """The biases of folded convolutions lie in one piece; a place for each of them by name."""
        if self._norms is None:
            return {}
        dtype, counts = self._norms.dtype, self._norms.counts
        self._biases = self._place(dtype, (sum(counts),), (sum(counts),))
        found, offset = {}, self.places[self._biases].offset
        for fold, count in zip(active, counts, strict=True):
            found[fold.new_bias] = len(self.places)
            self.places.append(Place(dtype, offset, (count,), (count,)))
            offset += count
        return found

    def _output(self, name: str, scaled: bool) -> int | Tensor:
        source = self._source(name)
        dtype = self._tensor(name).dtype
        if scaled:
            # As a matrix with a row for each output channel, where the cut allows that.
            source.views = _as_rows(source.views, source.taken[0])
            rows = (source.taken[0], prod(source.taken[1:]))
            place = self._place(dtype, rows, source.taken)
            self._scaled.append((place, source))
            return place
        if source.views is not None and not source.is_line and source.views[0].is_contiguous():
            return source.views[0].view(source.taken)
        place = self._place(dtype, source.written, source.taken)
        (self._lines if source.is_line else self._copies).append((place, source))
        return place


def _as_rows(views: list[Tensor] | None, rows: int) -> list[Tensor] | None:
    try:
        return None if views is None else [view.view(rows, -1) for view in views]
    except RuntimeError:  # the strides don't allow it: it is copied before
        return None


def _scale(out: Tensor, source: Source, column: Tensor, alpha: float) -> None:
    """Write a convolution's weight, interpolated, with each row times its number."""
    ends = [value.reshape(out.shape) for value in source.values()]
    if len(ends) == 1:
        torch.mul(ends[0], column, out=out)
        return
    step = max(1, _BLOCK // max(1, out.shape[1]))
    for start in range(0, out.shape[0], step):
        block = out[start : start + step]
        torch.lerp(ends[0][start : start + step], ends[1][start : start + step], alpha, out=block)
        block.mul_(column[start : start + step])


class _Norms:
    """The batch norms that are folded, as a few long vectors: one op for all of them instead of one for each.

    Attributes:
        counts: channels of each.
    """

    def __init__(
        self,
        folds: Sequence[Fold],
        at: PlanAtWidth,
        source: Callable[[str], Source],
        tensor: Callable[[str], Tensor],
    ) -> None:
        self.counts = [at.shape(fold.weight)[0] for fold in folds]
        like = tensor(folds[0].weight)
        self.dtype = like.dtype
        self._eps = torch.cat([like.new_full((n,), f.eps) for n, f in zip(self.counts, folds, strict=True)])

        def flat(names: Sequence[str | None], default: float) -> list[list[Tensor]]:
            """Endpoint 0 and 1 of a vector of all norms, in pieces."""
            pieces = [
                [like.new_full((count,), default)] * 2 if name is None else source(name).flat()
                for name, count in zip(names, self.counts, strict=True)
            ]
            ends = [[piece[0] for piece in pieces], [piece[1] for piece in pieces]]
            same = all(a is b for a, b in pieces)
            return ends[:1] if same else ends

        self._scale = flat([f.scale for f in folds], 1.0)
        self._shift = flat([f.shift for f in folds], 0.0)
        self._mean = flat([f.mean for f in folds], 0.0)
        self._variance = flat([f.variance for f in folds], 1.0)
        self._bias = flat([f.bias for f in folds], 0.0) if any(f.bias for f in folds) else None

    def scale_and_bias(self, alpha: float) -> tuple[Tensor, Tensor]:
        """What every channel is multiplied with, and what is added to it."""
        scale = torch.cat(self._variance[0]).add_(self._eps).rsqrt_().mul_(_between(self._scale, alpha))
        offset = torch.cat(self._mean[0]).neg_()
        if self._bias is not None:
            offset.add_(_between(self._bias, alpha))
        return scale, _between(self._shift, alpha).addcmul_(offset, scale)


def _between(ends: Sequence[Sequence[Tensor]], alpha: float) -> Tensor:
    """A vector at its place on the line, in memory of its own."""
    first = torch.cat(list(ends[0]))
    return first if len(ends) == 1 else first.lerp_(torch.cat(list(ends[1])), alpha)
