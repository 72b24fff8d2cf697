"""The rules by op: one place where the package's own and the user's are registered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import fx

from lightning_lcs.graph.channels.rules.call import Rule, op_name

AnyRule = TypeVar("AnyRule", bound=Rule)

# By op: ATen ops by their bare name ("relu"), all other ops with their namespace ("my_library.relu").
RULES: dict[str, Rule] = {}
# The ops with a rule that the graph in a file may hold.
IN_FILES: set[str] = set()


def register_rule(op: str | Any, rule: Rule, *, in_files: bool = False) -> None:
    """Say how channel dimensions pass through an op, so that structured mode slices what the op touches.

    Without a rule, an op keeps every dimension that it touches at its full size.

    Args:
        op: The op: its name, such as "my_library::swish" or "aten::relu", or the op itself, such as
            ``torch.ops.my_library.swish``. All overloads of an op share one rule.
        rule: Takes a :class:`~lightning_lcs.graph.channels.rules.Call` and returns the dimensions of the op's output: a
            list with one entry per dimension, or a list of such lists for an op with several outputs; ``None`` for a
            call that it does not cover, before it states anything. What the rule returns is checked against the shapes
            of the trace.
        in_files: Whether a ``model.lcs`` may hold the op. The process that loads the file registers the op and its rule
            first. The default is that ``save`` refuses a network with this op.

    Raises:
        ValueError: The op has a rule already.
        TypeError: ``op`` is not an op or a name, or ``rule`` can't be called.

    Example:
        >>> from lightning_lcs.graph.channels.rules import register_rule
        >>> def elementwise(call):  # the output has the dimensions of the first argument
        ...     return call.dims(call.arg(0, "x"))
        >>> register_rule("readme_example::swish", elementwise)
    """
    if not callable(rule):
        raise TypeError(f"rule={rule!r} can't be called: give a function that takes a Call")
    name = _key(op)
    if name in RULES:
        known = RULES[name]
        raise ValueError(
            f"the op {name!r} has a rule already: {known.__module__}.{getattr(known, '__qualname__', known)}; "
            "an op has one rule"
        )
    RULES[name] = rule
    if in_files:
        IN_FILES.add(name)


def rule(*ops: str, in_files: bool) -> Callable[[AnyRule], AnyRule]:
    """Register the function below as the rule of these ops; see :func:`register_rule`."""

    def register(function: AnyRule) -> AnyRule:
        for op in ops:
            register_rule(op, function, in_files=in_files)
        return function

    return register


def rule_of(node: fx.Node) -> Rule | None:
    """The rule of a traced op; an in-place variant ("relu_") shares that of its op."""
    name = op_name(node)
    schema = getattr(node.target, "_schema", None)
    space = "aten" if schema is None else str(schema.name).partition("::")[0]
    prefix = "" if space == "aten" else f"{space}."
    return RULES.get(prefix + name) or RULES.get(prefix + name.rstrip("_"))


def admitted(space: str, base: str) -> bool:
    """Whether a file may hold an op by its namespace and bare name."""
    prefix = "" if space == "aten" else f"{space}."
    return prefix + base in IN_FILES or prefix + base.rstrip("_") in IN_FILES


def _key(op: Any) -> str:
    if isinstance(op, (torch._ops.OpOverload, torch._ops.OpOverloadPacket)):
        packet = op.overloadpacket if isinstance(op, torch._ops.OpOverload) else op
        op = packet._qualified_op_name
    if not isinstance(op, str) or not op:
        raise TypeError(f"op={op!r} is neither an op nor the name of one: give, for example, 'my_library::swish'")
    space, _, base = op.replace("::", ".").rpartition(".")
    return base if space in ("", "aten") else f"{space}.{base}"
