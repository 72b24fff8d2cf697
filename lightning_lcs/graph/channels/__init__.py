"""Which channels of a graph shrink together: dimensions, rules for ops, and the plan."""
