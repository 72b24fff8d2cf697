"""The cost and the measured quality of levels: curves, their files, and the level table."""
