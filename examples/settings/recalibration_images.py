"""How many training images the batch-norm statistics of a level need: its accuracy with each number of them.

    python examples/settings/recalibration_images.py --models resnet10t --modes structured unstructured

Each network is trained for three epochs on 6,000 images of Fashion-MNIST, with split batches. Then the statistics of
three levels are collected from other draws of images, three for each number, and the network is tried on 5,000 images.
"""

import argparse

import lightning as L
import timm
import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.utils.data import DataLoader, Subset

from lightning_lcs import LCSCallback
from lightning_lcs.data import FashionMNISTDataModule

COUNTS = (64, 128, 256, 512, 1024, 2048)
DRAWS = 3
# The widths 0.25, 0.5 and 0.75; the shares 0.025, 0.05 and 0.22; 3, 4 and 6 bits.
LEVELS = {"structured": (0.0, 1 / 3, 2 / 3), "unstructured": (0.0, 0.0256, 0.2), "quantized": (1 / 6, 2 / 6, 4 / 6)}


class Module(L.LightningModule):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.net = timm.create_model(name, in_chans=1, num_classes=10)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), 0.05, momentum=0.9, weight_decay=5e-4)
        steps = self.trainer.estimated_stepping_batches
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def trained(name: str, mode: str, dataset) -> LCSCallback:
    L.seed_everything(0)
    sampling = {
        "split": [0.25, 0.25, 0.5],
        "sampler": "weighted_sandwich",
        "warmup": None if mode == "structured" else 0.3,
    }
    callback = LCSCallback(mode, subspace="point", sampling=sampling, recalibration={"images": 512, "levels": [0.0]})
    trainer = L.Trainer(
        accelerator="cpu", callbacks=[callback], max_epochs=3, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Module(name), DataLoader(dataset, 64, shuffle=True, drop_last=True))
    return callback


@torch.inference_mode()
def accuracy(model, alpha: float, loader) -> float:
    with model.at_alpha(alpha):
        return sum((model(x).argmax(1) == y).sum().item() for x, y in loader) / len(loader.dataset) * 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["resnet10t", "mobilenetv3_small_050"])
    parser.add_argument("--modes", nargs="+", default=list(LEVELS), choices=list(LEVELS))
    arguments = parser.parse_args()
    data = FashionMNISTDataModule(augment=False)
    data.setup("fit")
    dataset = Subset(data.train_dataloader().dataset, range(6000))
    images = torch.stack([dataset[i][0] for i in range(len(dataset))])
    loader = DataLoader(Subset(data.val_dataloader().dataset, range(5000)), 500)
    table = Table(title=f"Accuracy %, mean of {DRAWS} draws of images, and their standard deviation")
    for heading in ("network", "mode", "images", "level 1", "level 2", "level 3"):
        table.add_column(heading, justify="right")
    for name in arguments.models:
        for mode in arguments.modes:
            model = trained(name, mode, dataset).subspace_model.eval()
            for count in COUNTS:
                found = []
                for draw in range(DRAWS):
                    rows = torch.randperm(len(images), generator=torch.Generator().manual_seed(draw))[:count]
                    model.recalibrate(images[rows].split(64), LEVELS[mode])
                    found.append([accuracy(model, alpha, loader) for alpha in LEVELS[mode]])
                mean, deviation = torch.tensor(found).mean(0), torch.tensor(found).std(0)
                cells = [f"{m:.2f} ± {d:.2f}" for m, d in zip(mean.tolist(), deviation.tolist(), strict=True)]
                table.add_row(name, mode, str(count), *cells)
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
