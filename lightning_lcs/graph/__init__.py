"""The graph of any network: traced, checked, sliced, run and counted."""
