"""A network with a second endpoint, and what a level makes of it."""
