"""Which channels of a graph shrink together: dimensions, rules, plan."""
