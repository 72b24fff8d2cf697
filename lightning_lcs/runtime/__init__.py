"""A network out of a file at the speed of the device: prepared levels, their memory, its format."""
