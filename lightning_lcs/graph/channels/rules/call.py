"""One op of a traced graph, as the rules see it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from torch import SymInt, Tensor, fx

from lightning_lcs.graph.channels.dims import ONE, Dim, Structure

Dims = list[Dim]


def hint(size: int | SymInt) -> int:
    """A size as a number; for the open batch dimension it is the size with which it was traced."""
    return size if isinstance(size, int) else int(size.node.hint)  # type: ignore[arg-type]


@dataclasses.dataclass
class Call:
    """One call of an op in a traced graph, and the dimensions of its inputs.

    Attributes:
        node: The node of the call.
        structure: The atoms of the network, to which a rule adds what the op tells.
        known: The dimensions of all earlier results, by node.
        resized: The dimensions whose sizes are integer arguments, by the path into ``node.args``.
    """

    node: fx.Node
    structure: Structure
    known: dict[fx.Node, Any]
    resized: dict[tuple[int, ...], Dim] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of the op without namespace, overload and the mark of the in-place variant, such as "relu"."""
        return op_name(self.node).rstrip("_")

    @property
    def why(self) -> str:
        """The op and the module in which it runs, as the reason in reports, such as "add in layer1.0"."""
        stack = self.node.meta.get("nn_module_stack") or {}
        path = next(reversed([entry[0] for entry in stack.values()]), "") if stack else ""
        return f"{op_name(self.node)} in {path}" if path else op_name(self.node)

    def arg(self, position: int, name: str, default: Any = None) -> Any:
        """The argument at a position or of a name.

        Args:
            position: Position in the op's schema.
            name: Name in the op's schema.
            default: The value if the argument is not given. The default is None.
        """
        if position < len(self.node.args):
            return self.node.args[position]
        return self.node.kwargs.get(name, default)

    def dims(self, arg: Any) -> Dims:
        """The dimensions of a tensor argument."""
        return [self.structure.resolve(dim) for dim in self.known[arg]]

    def shape(self, arg: fx.Node) -> list[int]:
        """The sizes of a tensor argument at full width."""
        return [hint(size) for size in arg.meta["val"].shape]

    @property
    def out_shape(self) -> list[int]:
        """The sizes of the output at full width."""
        return self.shape(self.node)

    def tensors(self) -> list[fx.Node]:
        """All tensor arguments."""
        return [node for node in self.node.all_input_nodes if isinstance(node.meta.get("val"), Tensor)]

    def unify(self, a: Dim, b: Dim) -> None:
        """State that two dimensions are the same."""
        self.structure.unify(a, b, self.why)

    def resize(self, path: tuple[int, ...], dim: Dim) -> None:
        """State that an integer argument is the size of a dimension. If it is computed, the dimension is kept whole.

        Args:
            path: Path to the argument in ``node.args``. An argument that is not there is ignored.
            dim: The dimension.
        """
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
        """New dimensions of these sizes that are kept whole for a reason."""
        return [self.structure.fresh(size, kept_whole=why) for size in shape]

    def keep_inputs_whole(self) -> None:
        """Keep all dimensions of the op's inputs whole."""
        for tensor in self.tensors():
            known = self.known.get(tensor, [])
            for dims in known if known and isinstance(known[0], list) else [known]:
                for dim in dims:
                    self.structure.keep_whole(dim, self.why)

    def broadcast(self, tensors: list[fx.Node]) -> Dims:
        """The dimensions of an elementwise result: those of the tensors, aligned on the right and unified."""
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


# A function that returns the dimensions of an op's result, or a list of them for several results; ``None`` if it does
# not cover the call, which is then treated as one of an op without a rule.
Rule = Callable[[Call], Any]


def op_name(node: fx.Node) -> str:
    """Name of an ATen op without namespace and overload, such as "relu_"."""
    schema = getattr(node.target, "_schema", None)
    return (
        str(schema.name).split("::")[-1] if schema is not None else getattr(node.target, "__name__", str(node.target))
    )
