"""The tensors of a network: weights of layers, computed and shared ones, norms, and the endpoints of a line."""
