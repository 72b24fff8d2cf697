"""Rules for sums of products of two tensors: matrix products, attention and einsum."""

from __future__ import annotations

from torch import fx

from lightning_lcs.graph.channels.dims import ONE, Dim
from lightning_lcs.graph.channels.rules.call import Call, Dims
from lightning_lcs.graph.channels.rules.registry import rule


@rule("matmul", "bmm", "mm", "mv", "dot", "vdot", in_files=True)
def matmul(call: Call) -> Dims:
    """``(..., m, k) x (..., k, n) -> (..., m, n)`` with broadcast leading dimensions; a vector has no m, or no n."""
    return _product(call, call.dims(call.arg(0, "self")), call.dims(call.arg(1, "other")))


@rule("addmm", "baddbmm", in_files=True)
def added_product(call: Call) -> Dims:
    """The matrix product of the second and the third argument, to which the first one is added."""
    out = _product(call, call.dims(call.arg(1, "mat1")), call.dims(call.arg(2, "mat2")))
    for ours, theirs in zip(reversed(out), reversed(call.dims(call.arg(0, "self"))), strict=False):
        if call.structure.size(theirs) > 1:
            call.unify(ours, theirs)
    return [call.structure.resolve(dim) for dim in out]


def _product(call: Call, a: Dims, b: Dims) -> Dims:
    rows = a[-2:-1]
    columns = b[-1:] if len(b) > 1 else []
    call.unify(a[-1], b[-2] if len(b) > 1 else b[-1])
    return [call.structure.resolve(dim) for dim in [*leading(call, a[:-2], b[:-2]), *rows, *columns]]


def leading(call: Call, *groups: Dims) -> Dims:
    """The broadcast leading dimensions of several tensors."""
    out: Dims = [ONE] * max(len(dims) for dims in groups)
    for dims in groups:
        for offset, dim in enumerate(reversed(dims), start=1):
            if call.structure.size(dim) == 1:
                continue
            if out[-offset] == ONE:
                out[-offset] = dim
            else:
                call.unify(out[-offset], dim)
    return out


@rule("scaled_dot_product_attention", in_files=True)
def attention(call: Call) -> Dims:
    """``(..., L, E), (..., S, E), (..., S, V) -> (..., L, V)``.

    Without a scale argument, the op divides by the root of E, which is the number of channels that are kept. If several
    heads of the query share one head of the key, the heads are kept whole.
    """
    query, key, value = (call.dims(call.arg(i, name)) for i, name in enumerate(("query", "key", "value")))
    call.unify(query[-1], key[-1])
    call.unify(key[-2], value[-2])
    batch = query[:-2]
    for other in (key, value):
        for ours, theirs in zip(batch, other[:-2], strict=True):
            call.unify(ours, theirs)
    mask = call.arg(3, "attn_mask")
    if isinstance(mask, fx.Node):
        scores = [*batch, query[-2], key[-2]]
        for ours, theirs in zip(reversed(scores), reversed(call.dims(mask)), strict=False):
            if call.structure.size(theirs) > 1:
                call.unify(ours, theirs)
    return [call.structure.resolve(dim) for dim in [*batch, query[-2], value[-1]]]


@rule("einsum", in_files=True)
def einsum(call: Call) -> Dims:
    """Dimensions with the same letter are the same."""
    terms, _, result = str(call.arg(0, "equation")).replace(" ", "").partition("->")
    letters: dict[str, Dim] = {}
    for term, tensor in zip(terms.split(","), call.arg(1, "tensors"), strict=True):
        dims = call.dims(tensor)
        if "." in term or len(term) != len(dims):
            call.keep_inputs_whole()
            return call.whole_dims(call.out_shape, call.why)
        for letter, dim in zip(term, dims, strict=True):
            if letter not in letters or call.structure.size(letters[letter]) == 1:
                letters[letter] = dim
            elif call.structure.size(dim) > 1:
                call.unify(letters[letter], dim)
    return [call.structure.resolve(letters[letter]) for letter in result]
