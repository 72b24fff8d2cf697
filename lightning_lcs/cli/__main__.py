"""``python -m lightning_lcs.cli``."""

from lightning_lcs.cli.main import main

if __name__ == "__main__":
    main()
