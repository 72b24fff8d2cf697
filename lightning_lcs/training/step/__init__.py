"""The training step: the levels that it visits, and on which part of the batch."""
