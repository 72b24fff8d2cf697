"""The tensors of one level, side by side in memory that is reused for the next levels."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from math import prod

import torch
from torch import Tensor

from lightning_lcs.graph.channels.plan import PlanAtWidth, select
from lightning_lcs.graph.fold_batchnorm import FoldedBatchNorm
from lightning_lcs.graph.program import Program

_ALIGNMENT = 64  # bytes: a cache line, and a good alignment for vector instructions
_BLOCK = 2**18  # entries that are interpolated and scaled together, so that scaling finds them in the cache
_SMALL = 2**15  # entries: for smaller tensors a call costs more than a second pass over the memory


@dataclasses.dataclass(frozen=True)
class Place:
    """The place of a tensor in a flat buffer.

    Attributes:
        dtype: The type of the buffer.
        offset: The position of the first entry.
        written: The shape in which the tensor is written.
        stored: The shape in which the entries lie in memory.
        channels_last: Whether the last of these dimensions is the second one of the tensor. The default is ``False``.
    """

    dtype: torch.dtype
    offset: int
    written: tuple[int, ...]
    stored: tuple[int, ...]
    channels_last: bool = False

    def taken(self, flat: Tensor) -> Tensor:
        """The tensor that the network takes, as a view of the memory of this place."""
        return as_taken(flat.view(self.stored), self.channels_last)


class Arena:
    """One flat buffer for each dtype, which grows to the size of the largest level so far."""

    def __init__(self) -> None:
        self._buffers: dict[torch.dtype, Tensor] = {}
        self._writers: dict[Recipe, LevelWriter] = {}

    @property
    def size_bytes(self) -> int:
        """The memory of the buffers in bytes."""
        return sum(buffer.numel() * buffer.element_size() for buffer in self._buffers.values())

    def writer(self, recipe: Recipe) -> LevelWriter:
        """The writer of a level. It is kept, so that setting a level again costs little more than its copies."""
        for dtype, entries in recipe.entries.items():
            buffer = self._buffers.get(dtype)
            if buffer is None or buffer.numel() < entries or buffer.device != recipe.device:
                self._writers.clear()
                del buffer
                self._buffers.pop(dtype, None)  # free the old memory before the new memory is allocated
                self._buffers[dtype] = torch.empty(entries, dtype=dtype, device=recipe.device)
        if recipe not in self._writers:
            flat = [self._buffers[p.dtype][p.offset : p.offset + prod(p.written)] for p in recipe.places]
            self._writers[recipe] = LevelWriter(recipe, flat)
        return self._writers[recipe]

    def forget(self, recipe: Recipe) -> None:
        """Discard the writer of a level."""
        self._writers.pop(recipe, None)


def as_taken(stored: Tensor, channels_last: bool) -> Tensor:
    """The tensor that the network takes, from a tensor whose dimensions are in the order of memory."""
    return stored.movedim(-1, 1) if channels_last else stored


def is_channels_last(tensor: Tensor) -> bool:
    """Whether a tensor is in torch's channels-last format, by the test that torch's convolutions use."""
    return tensor.ndim == 4 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last)


class Source:
    """The kept entries of one tensor, or of both endpoints of a line, with dimensions in the order of memory.

    Args:
        ends: One tensor, or endpoint 0 and endpoint 1.
        name: The name of the tensor in the plan.
        at: The width; ``None`` for tensors that are already cut.

    Attributes:
        channels_last: Whether the second dimension comes last in memory.
        stored: The shape of the kept entries.
        views: A view of the kept entries of each end, in any shape with these entries in this order; ``None`` if the
            kept entries can't be a view.
    """

    def __init__(self, ends: Sequence[Tensor], name: str, at: PlanAtWidth | None) -> None:
        self._ends = list(ends)
        self._selection = () if at is None else at.of(name)
        self.channels_last = is_channels_last(ends[0])
        views = [end if at is None else at.view(name, end) for end in ends]
        self.views = [view for view in views if view is not None] if None not in views else None
        shape = ends[0].shape if at is None else at.shape(name)
        self.stored = tuple(shape)
        if self.channels_last:
            self.stored = (shape[0], *shape[2:], shape[1])
            # Input channels that were cut as a product have two dimensions, so that they have to be copied first.
            whole = self.views is not None and self.views[0].shape[-3] == shape[1]
            self.views = [view.movedim(-3, -1) for view in self.views or ()] if whole else None

    @property
    def written(self) -> tuple[int, ...]:
        """The shape of each of the values."""
        return self.stored if self.views is None else tuple(self.views[0].shape)

    @property
    def is_line(self) -> bool:
        """Whether there are two endpoints."""
        return len(self._ends) == 2

    def values(self) -> list[Tensor]:
        """The kept entries of each end, as views if possible."""
        if self.views is not None:
            return self.views
        kept = [select(end, self._selection) for end in self._ends]
        return [value.movedim(1, -1) for value in kept] if self.channels_last else kept

    def flat(self) -> list[Tensor]:
        """The kept entries of endpoints 0 and 1 as vectors, which are the same for a tensor that is not on the line."""
        vectors = [value.reshape(-1) for value in self.values()]
        return vectors * (2 // len(vectors))


class Recipe:
    """How the tensors of one level are computed: views of their sources, and places for the results.

    Cut tensors that are contiguous and not on the line are used where they are, without a copy.

    Args:
        program: The forward, with batch norms folded.
        folds: The folded batch norms by the name of the convolution's weight.
        at: The width.
        alpha: The position on the line.
        tensor: Returns a parameter or buffer by its qualified name.
        endpoints: Endpoint 0 of the parameters on the line.
        stored: The running statistics of this level, which replace the cut ones.

    Attributes:
        alpha: The position on the line.
        outputs: For each tensor that the forward takes, the number of its place, or the tensor itself.
        sizes: The sizes that the forward takes.
        entries: The number of entries of each buffer.
        written: The place and the source of each tensor that is written.
        scaled: The places among them whose rows are scaled, in the order of the norms.
        norms: The norms that scale them; ``None`` if there are none.
        vectors: The places of the scales and of the shifts of all norms.
    """

    def __init__(
        self,
        program: Program,
        folds: Mapping[str, FoldedBatchNorm],
        at: PlanAtWidth,
        alpha: float,
        tensor: Callable[[str], Tensor],
        endpoints: Mapping[str, Tensor],
        stored: Mapping[str, Tensor],
    ) -> None:
        self._at, self.alpha, self._tensor = at, alpha, tensor
        self._endpoints, self._stored = endpoints, stored
        self.device = tensor(next(iter(at.plan.tensors))).device
        self.entries: dict[torch.dtype, int] = {}
        self.places: list[Place] = []
        self.sizes = [at.size(dim) for dim in program.sizes]
        self.written: list[tuple[int, Source]] = []
        self.scaled: list[int] = []
        self.vectors = (-1, -1)
        active = [folds[name] for name in program.names if name in folds]
        self.norms = _Norms(active, at, self._source, tensor) if active else None
        biases = self._place_biases(active)
        self.outputs = [biases[name] if name in biases else self._output(name, name in folds) for name in program.names]

    @property
    def size_bytes(self) -> int:
        """The number of bytes that are written."""
        return sum(entries * dtype.itemsize for dtype, entries in self.entries.items())

    def _source(self, name: str) -> Source:
        own = self._tensor(name).detach()
        if name in self._stored:
            return Source([self._stored[name].to(own)], name, None)
        if name not in self._endpoints or self.alpha == 1.0:
            return Source([own], name, self._at)
        other = self._endpoints[name].detach()
        return Source([other] if self.alpha == 0.0 else [other, own], name, self._at)

    def _place(
        self, dtype: torch.dtype, written: tuple[int, ...], stored: tuple[int, ...], channels_last: bool = False
    ) -> int:
        step = _ALIGNMENT // dtype.itemsize
        offset = -(-self.entries.get(dtype, 0) // step) * step
        self.entries[dtype] = offset + prod(written)
        self.places.append(Place(dtype, offset, written, stored, channels_last))
        return len(self.places) - 1

    def _place_biases(self, active: Sequence[FoldedBatchNorm]) -> dict[str, int]:
        """Place the biases of folded convolutions in one vector, and return the place of each by its name."""
        if self.norms is None:
            return {}
        dtype, counts = self.norms.dtype, self.norms.counts
        shape = (sum(counts),)
        self.vectors = (self._place(dtype, shape, shape), self._place(dtype, shape, shape))
        found, offset = {}, self.places[self.vectors[1]].offset
        for fold, count in zip(active, counts, strict=True):
            found[fold.new_bias] = len(self.places)
            self.places.append(Place(dtype, offset, (count,), (count,)))
            offset += count
        return found

    def _output(self, name: str, scaled: bool) -> int | Tensor:
        source = self._source(name)
        dtype = self._tensor(name).dtype
        stored, last = source.stored, source.channels_last
        if scaled:
            # One row for each output channel, if the cut allows it. Cut input channels that lie last in memory can't
            # be merged with the other dimensions.
            rows = (stored[0], prod(stored[1:-1]), stored[-1]) if last else (stored[0], prod(stored[1:]))
            source.views = _viewed(source.views, rows)
            place = self._place(dtype, rows, stored, last)
            self.scaled.append(place)
        elif source.views is not None and not source.is_line and source.views[0].is_contiguous():
            return as_taken(source.views[0].view(stored), last)
        else:
            place = self._place(dtype, source.written, stored, last)
        self.written.append((place, source))
        return place


def _viewed(views: list[Tensor] | None, shape: Sequence[int]) -> list[Tensor] | None:
    try:
        return None if views is None else [view.view(shape) for view in views]
    except RuntimeError:  # the strides don't allow this view, so that the tensor is copied first
        return None


class LevelWriter:
    """Writes a level into an arena, through views that are made once.

    Args:
        recipe: The recipe of the level.
        flat: The memory of each of its places.

    Attributes:
        taken: The tensors that the forward takes.
    """

    def __init__(self, recipe: Recipe, flat: Sequence[Tensor]) -> None:
        places = [piece.view(place.written) for piece, place in zip(flat, recipe.places, strict=True)]
        self._norms, self._alpha = recipe.norms, recipe.alpha
        self._vectors = [] if recipe.norms is None else [places[place] for place in recipe.vectors]
        columns: dict[int, Tensor] = {}
        if recipe.norms is not None:
            pieces = torch.split(self._vectors[0], recipe.norms.counts)
            columns = dict(zip(recipe.scaled, pieces, strict=True))
        # Small tensors share one call per step: single calls would cost more than further passes over the memory.
        self._small: list[tuple[Tensor, list[Tensor], Tensor | None]] = []
        self._large: list[tuple[Tensor, Source, Tensor | None]] = []
        for place, source in recipe.written:
            out, column = places[place], columns.get(place)
            if column is not None:
                column = column.view(-1, *[1] * (out.ndim - 1))
            if source.views is None or (out.numel() > _SMALL and (source.is_line or column is not None)):
                self._large.append((out, source, column))
            else:
                self._small.append((out, source.views, column))
        self._copies = ([out for out, _, _ in self._small], [views[0] for _, views, _ in self._small])
        lines = [(out, views[1]) for out, views, _ in self._small if len(views) == 2]
        self._lines = ([out for out, _ in lines], [value for _, value in lines])
        scales = [(out, column) for out, _, column in self._small if column is not None]
        self._scales = ([out for out, _ in scales], [column for _, column in scales])
        self.taken = [out if isinstance(out, Tensor) else recipe.places[out].taken(flat[out]) for out in recipe.outputs]

    def write(self) -> list[Tensor]:
        """Write the level into memory that no forward reads, and return the tensors that the forward takes."""
        if self._norms is not None:
            self._norms.write(self._alpha, *self._vectors)
        if self._copies[0]:
            torch._foreach_copy_(*self._copies)
        if self._lines[0]:
            torch._foreach_lerp_(*self._lines, self._alpha)
        if self._scales[0]:
            torch._foreach_mul_(*self._scales)
        for out, source, column in self._large:
            _write(out, [value.reshape(out.shape) for value in source.values()], column, self._alpha)
        return self.taken


def _write(out: Tensor, ends: Sequence[Tensor], column: Tensor | None, alpha: float) -> None:
    """Write one tensor: interpolate if it has two ends, and multiply each row by its entry of the column, if given."""
    if column is None:
        out.copy_(ends[0]) if len(ends) == 1 else torch.lerp(ends[0], ends[1], alpha, out=out)
    elif len(ends) == 1:
        torch.mul(ends[0], column, out=out)
    else:
        step = max(1, _BLOCK // max(1, out[0].numel()))
        for start in range(0, out.shape[0], step):
            block = out[start : start + step]
            torch.lerp(ends[0][start : start + step], ends[1][start : start + step], alpha, out=block)
            block.mul_(column[start : start + step])


class _Norms:
    """The folded batch norms as a few long vectors, which need one op for all norms instead of one per norm.

    Attributes:
        counts: The number of channels of each norm.
    """

    def __init__(
        self,
        folds: Sequence[FoldedBatchNorm],
        at: PlanAtWidth,
        source: Callable[[str], Source],
        tensor: Callable[[str], Tensor],
    ) -> None:
        self.counts = [at.shape(fold.weight)[0] for fold in folds]
        like = tensor(folds[0].weight)
        self.dtype = like.dtype
        self._eps = torch.cat([like.new_full((n,), f.eps) for n, f in zip(self.counts, folds, strict=True)])

        def flat(names: Sequence[str | None], default: float) -> list[list[Tensor]]:
            """The pieces of a vector of all norms, for endpoint 0 and endpoint 1."""
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

    def write(self, alpha: float, scale: Tensor, bias: Tensor) -> None:
        """Write the factor and the summand of every channel."""
        torch.cat(self._variance[0], out=scale).add_(self._eps).rsqrt_().mul_(_between(self._scale, alpha))
        torch.cat(self._mean[0], out=bias).neg_()
        if self._bias is not None:
            bias.add_(_between(self._bias, alpha))
        bias.mul_(scale).add_(_between(self._shift, alpha))


def _between(ends: Sequence[Sequence[Tensor]], alpha: float) -> Tensor:
    """A vector at its position on the line, in new memory."""
    first = torch.cat(list(ends[0]))
    return first if len(ends) == 1 else first.lerp_(torch.cat(list(ends[1])), alpha)
