"""Rules: what each ATen op tells about channel dimensions.

A rule takes a :class:`Call` and returns the dimensions of the op's output. It unifies dimensions that must agree, and
notes which integer arguments of the op are sizes that shrink with a level. An op without a rule keeps all dimensions of
its inputs whole, so a missing rule costs compression, but never correctness.
"""

# The rules register themselves when their modules are imported.
from lightning_lcs.graph.channels.rules import (
    indexing as indexing,
)
from lightning_lcs.graph.channels.rules import (
    layers as layers,
)
from lightning_lcs.graph.channels.rules import (
    pointwise as pointwise,
)
from lightning_lcs.graph.channels.rules import (
    products as products,
)
from lightning_lcs.graph.channels.rules import (
    recurrent as recurrent,
)
from lightning_lcs.graph.channels.rules import (
    reductions as reductions,
)
from lightning_lcs.graph.channels.rules import (
    shapes as shapes,
)
from lightning_lcs.graph.channels.rules.call import Call, Dims, Rule
from lightning_lcs.graph.channels.rules.registry import RULES, register_rule, rule

__all__ = ["RULES", "Call", "Dims", "Rule", "register_rule", "rule"]
