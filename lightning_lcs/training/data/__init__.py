"""The user's loaders: training batches for recalibration, and validation loaders left as they were found."""
