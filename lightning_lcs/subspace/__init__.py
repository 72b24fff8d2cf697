"""The subspace of a network: its endpoints, its compression modes, and how a level runs."""
