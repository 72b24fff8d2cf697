"""Rules: what each ATen op tells about channel dimensions.

A rule takes a :class:`Call` and returns the dimensions of the op's output. It unifies dimensions that must agree, and
notes which integer arguments of the op are sizes that shrink with a level. An op without a rule keeps all dimensions of
its inputs whole, so a missing rule costs compression, but never correctness.
"""

from lightning_lcs.graph.channels.rules import indexing, layers, pointwise, products, recurrent, reductions, shapes
from lightning_lcs.graph.channels.rules.call import Call, Dims, Rule

_ROOMS = (pointwise, layers, products, recurrent, reductions, shapes, indexing)
RULES: dict[str, Rule] = {name: rule for room in _ROOMS for name, rule in room.RULES.items()}

__all__ = ["RULES", "Call", "Dims"]
