"""The channel plan of an arbitrary network: trace it, find which dimensions shrink together, run it narrow."""
