"""The curve in W&B and TensorBoard."""
