"""A level in the formats of other runtimes."""
