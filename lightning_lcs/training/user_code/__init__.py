"""Running the user's code once more without a trace."""
