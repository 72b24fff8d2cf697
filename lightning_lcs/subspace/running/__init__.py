"""Running the networks of a subspace at a level: in a training step, in evaluation, and for calibration."""
