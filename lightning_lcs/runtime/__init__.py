"""Runs a network from a file as fast as the device allows: prepared levels, their memory and its format."""
