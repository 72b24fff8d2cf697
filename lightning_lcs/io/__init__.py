"""Reads and writes checkpoints and files of a subspace."""
