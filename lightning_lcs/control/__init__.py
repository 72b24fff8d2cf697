"""Choosing the level of a running network: readings, policies, decisions."""
