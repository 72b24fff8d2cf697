"""A data module and the schedule of lightning-bolts 0.7.0, with ``lightning.pytorch``'s trainer.

First run pip install -e '.[bolts,demo]' in a separate environment, then
python examples/bolts_data.py
"""

import argparse
from pathlib import Path

import lightning as L
from classifier import Classifier
from pl_bolts.datamodules import SklearnDataModule
from pl_bolts.optimizers.lr_scheduler import LinearWarmupCosineAnnealingLR
from sklearn.datasets import load_digits
from torch.optim import SGD

from lightning_lcs import LCSCallback
from lightning_lcs.data import AdaptedDataModule


class Scheduled(Classifier):
    def configure_optimizers(self):
        optimizer = SGD(self.parameters(), lr=self.hparams.learning_rate, momentum=0.9)
        epochs = self.trainer.max_epochs
        return [optimizer], [LinearWarmupCosineAnnealingLR(optimizer, warmup_epochs=1, max_epochs=max(epochs, 2))]

    def training_step(self, batch, batch_idx):
        return super().training_step((batch[0], batch[1].long()), batch_idx)

    def validation_step(self, batch, batch_idx):
        return super().validation_step((batch[0], batch[1].long()), batch_idx)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path("runs/bolts"))
    arguments = parser.parse_args()
    L.seed_everything(0, verbose=False)
    pixels, labels = load_digits(return_X_y=True)
    images = pixels.reshape(-1, 1, 8, 8).repeat(4, 2).repeat(4, 3).astype("float32") / 8 - 1
    data = AdaptedDataModule(SklearnDataModule(images, labels, batch_size=64))
    trainer = L.Trainer(
        max_epochs=arguments.epochs, callbacks=[LCSCallback()], default_root_dir=arguments.folder, log_every_n_steps=5
    )
    trainer.fit(Scheduled("resnet10t", in_chans=1), datamodule=data)


if __name__ == "__main__":
    main()
