"""Checkpoints and files of a subspace, to data and back."""
