"""What each ATen op says about channel dimensions.

A rule takes a :class:`Call` and returns the dimensions of the op's output; on the way it unifies what must agree and
notes which of the op's integer arguments are sizes that shrink with a level. An op without a rule freezes what it
touches, so that a missing rule costs compression, never correctness.
"""

from lightning_lcs.graph.channels.rules import indexing, layers, pointwise, products, recurrent, reductions, shapes
from lightning_lcs.graph.channels.rules.call import Call, Dims, Rule

_ROOMS = (pointwise, layers, products, recurrent, reductions, shapes, indexing)
RULES: dict[str, Rule] = {name: rule for room in _ROOMS for name, rule in room.RULES.items()}

__all__ = ["RULES", "Call", "Dims"]
