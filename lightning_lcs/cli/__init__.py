"""The command ``lightning-lcs``, one module per command."""
