"""Tracing: from a module to a graph of ATen ops, and clear errors about networks that can't be traced."""
