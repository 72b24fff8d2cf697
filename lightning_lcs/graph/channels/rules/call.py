"""One op of a traced graph, as the rules see it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from torch import SymInt, Tensor, fx

from lightning_lcs.graph.channels.dims import ONE, Dim, Structure

Dims = list[Dim]


def hint(size: int | SymInt) -> int:
    """A size as a number; for the open batch dimension the size that it was traced with."""
    return size if isinstance(size, int) else int(size.node.hint)  # type: ignore[arg-type]


@dataclasses.dataclass
class Call:
    """One node with what is known of its inputs.

    Attributes:
        resized: position of an integer argument (path into ``node.args``) -> the dimension whose size it is.
    """

    node: fx.Node
    structure: Structure
    known: dict[fx.Node, Any]
    resized: dict[tuple[int, ...], Dim] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        """The op without namespace and overload, and without the mark of the in-place variant: "relu"."""
        return op_name(self.node).rstrip("_")

    @property
    def why(self) -> str:
        """The op and the module that it ran in, for reports."""
        stack = self.node.meta.get("nn_module_stack") or {}
        path = next(reversed([entry[0] for entry in stack.values()]), "") if stack else ""
        return f"{op_name(self.node)} in {path}" if path else op_name(self.node)

    def arg(self, position: int, name: str, default: Any = None) -> Any:
        """An argument, given by position or by name."""
        if position < len(self.node.args):
            return self.node.args[position]
        return self.node.kwargs.get(name, default)

    def dims(self, arg: Any) -> Dims:
        """Dimensions of a tensor argument."""
        return [self.structure.resolve(dim) for dim in self.known[arg]]

    def shape(self, arg: fx.Node) -> list[int]:
        """Full sizes of a tensor argument."""
        return [hint(size) for size in arg.meta["val"].shape]

    @property
    def out_shape(self) -> list[int]:
        """Full sizes of the output."""
        return self.shape(self.node)

    def tensors(self) -> list[fx.Node]:
        """All tensor arguments."""
        return [node for node in self.node.all_input_nodes if isinstance(node.meta.get("val"), Tensor)]

    def unify(self, a: Dim, b: Dim) -> None:
        """State that two dimensions are one."""
        self.structure.unify(a, b, self.why)

    def resize(self, path: tuple[int, ...], dim: Dim) -> None:
        """Note that the integer argument at ``path`` is the size of ``dim``; a computed one freezes ``dim``."""
        value: Any = self.node.args
        for step in path:
            if step >= len(value):
                return
            value = value[step]
        if isinstance(value, int):
            if value != -1:
                self.resized[path] = dim
        else:
            self.structure.keep_whole(dim, f"a computed size of {self.why}")

    def whole_dims(self, shape: list[int], why: str) -> Dims:
        """New dimensions that are never sliced."""
        return [self.structure.fresh(size, kept_whole=why) for size in shape]

    def keep_inputs_whole(self) -> None:
        """Keep whole every dimension that this op reads."""
        for tensor in self.tensors():
            known = self.known.get(tensor, [])
            for dims in known if known and isinstance(known[0], list) else [known]:
                for dim in dims:
                    self.structure.keep_whole(dim, self.why)

    def broadcast(self, tensors: list[fx.Node]) -> Dims:
        """Dimensions of an elementwise result: aligned from the right, those of equal size unified."""
        shape = self.out_shape
        out: Dims = [ONE] * len(shape)
        for tensor in tensors:
            dims = self.dims(tensor)
            for offset, dim in enumerate(reversed(dims), start=1):
                position = len(shape) - offset
                if self.structure.size(dim) == 1:
                    continue
                if out[position] == ONE:
                    out[position] = dim
                else:
                    self.unify(out[position], dim)
        return [self.structure.resolve(dim) for dim in out]


Rule = Callable[[Call], Any]


def op_name(node: fx.Node) -> str:
    """Name of an ATen op without namespace and overload: "relu_"."""
    schema = getattr(node.target, "_schema", None)
    return (
        str(schema.name).split("::")[-1] if schema is not None else getattr(node.target, "__name__", str(node.target))
    )
