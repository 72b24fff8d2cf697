"""What ``lightning-lcs`` does, one module per command: a function that takes the command's name and its arguments."""
