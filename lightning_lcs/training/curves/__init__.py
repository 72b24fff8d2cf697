"""Batch-norm statistics and curves, measured with the user's own module, and where they are written."""
