"""Files and timing."""
