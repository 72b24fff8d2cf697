"""From a module to a graph: the trace, what it can't hold, and how that is told."""
