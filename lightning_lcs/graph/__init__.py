"""The graph of an arbitrary network: traced, sliced, run, counted."""
