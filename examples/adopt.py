"""Adopt LCS in an existing project. This is the whole difference:

     import lightning as L
    +from lightning_lcs import LCSCallback

    -trainer = L.Trainer(max_epochs=5)
    +trainer = L.Trainer(max_epochs=5, callbacks=[LCSCallback(mode="structured")])
     trainer.fit(module, datamodule=data)

python examples/adopt.py [--mode structured|unstructured|quantized]
"""

import argparse
from pathlib import Path

import lightning as L
from classifier import Classifier

from lightning_lcs import LCSCallback, SubspaceModel
from lightning_lcs.data import DigitsDataModule


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mode", default="structured", choices=["structured", "unstructured", "quantized"])
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path("runs/adopt"))
    arguments = parser.parse_args()

    L.seed_everything(0, verbose=False)
    module, data = Classifier("resnet10t", in_chans=1), DigitsDataModule()
    callbacks = [LCSCallback(mode=arguments.mode)]
    trainer = L.Trainer(max_epochs=arguments.epochs, callbacks=callbacks, default_root_dir=arguments.folder)
    trainer.fit(module, datamodule=data)

    # In any later process, from the checkpoint alone:
    trainer.save_checkpoint(arguments.folder / "last.ckpt", weights_only=True)
    net = SubspaceModel.from_checkpoint(arguments.folder / "last.ckpt", Classifier("resnet10t", in_chans=1)).eval()
    images, labels = next(iter(data.val_dataloader()))
    for alpha in (1.0, 0.5, 0.0):
        net.set_alpha(alpha)
        right = (net(images).argmax(1) == labels).float().mean()
        print(
            f"alpha {alpha:.1f}: {right:.0%} of {len(labels)} images right, {net.efficiency(alpha).size_bytes:,} bytes"
        )


if __name__ == "__main__":
    main()
