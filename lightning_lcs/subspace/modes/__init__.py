"""What a level does to tensors: one file per mode."""
