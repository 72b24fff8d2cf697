"""Train a timm model, or one of the networks in this folder, as a compressible subspace from a YAML file.

python examples/train_cli.py fit --config examples/configs/structured.yaml
python examples/train_cli.py validate --config examples/configs/structured.yaml --ckpt_path runs/structured/last.ckpt
python examples/train_cli.py compare --config examples/configs/structured.yaml --methods structured-line plain us
"""

from lightning_lcs.cli.main import main

if __name__ == "__main__":
    main()
