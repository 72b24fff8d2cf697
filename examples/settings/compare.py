"""Settings of the training step, compared on a small network of a user's own: accuracy at each level, and the price.

    python examples/settings/compare.py --modes structured --seeds 0 1          # a minute per run on one core
    python examples/settings/compare.py --settings plain "split batch" --epochs 20

The network, its optimizer and its schedule stand for those of a project that adopts the callback: six convolutions with
batch norms, SGD with momentum, OneCycleLR, 6,000 images of Fashion-MNIST with batches of 64, and 5,000 for the curve.
The price is the processor time of all training steps, against the same number of plain steps. Runs whose result is in
the file are not repeated.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import lightning as L
import torch
from rich.console import Console
from rich.table import Table
from settings import ALPHAS, SETTINGS
from torch import nn
from torch.utils.data import DataLoader, Subset

from lightning_lcs import LCSCallback
from lightning_lcs.data import FashionMNISTDataModule


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        shapes = [(1, 16, 2), (16, 32, 1), (32, 32, 1), (32, 64, 2), (64, 64, 1), (64, 64, 1)]
        self.features = nn.Sequential(*(self._block(*shape) for shape in shapes))
        self.head = nn.Linear(64, 10)

    @staticmethod
    def _block(inputs: int, outputs: int, stride: int) -> nn.Module:
        conv = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x).mean((2, 3)))


class Module(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = Net()

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_acc", (self.net(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), 0.05, momentum=0.9, weight_decay=5e-4)
        steps = self.trainer.estimated_stepping_batches
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Clock(L.Callback):
    """The processor time of all training steps."""

    def __init__(self) -> None:
        self.seconds = self._start = 0.0

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self._start = time.process_time()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seconds += time.process_time() - self._start


def run(mode: str, options: dict | None, seed: int, epochs: int, train, val) -> dict:
    """Train with the options, or plainly with ``None``; the accuracies in percent, and the time of the steps."""
    L.seed_everything(seed, verbose=False)
    clock = Clock()
    given = {"mode": mode, "alphas": ALPHAS[mode], "seed": seed, **(options or {})}
    callbacks = [] if options is None else [LCSCallback(recalibration={"images": 1024, "levels": [0.0]}, **given)]
    trainer = L.Trainer(
        accelerator="cpu", callbacks=[*callbacks, clock], max_epochs=epochs, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, check_val_every_n_epoch=epochs,
    )  # fmt: skip
    trainer.fit(Module(), train, val)
    found = [float(trainer.callback_metrics["val_acc"])]
    if callbacks:
        found = [point.metrics["val_acc"] for point in callbacks[0].curve]
    return {"accuracies": [100 * accuracy for accuracy in found], "seconds": clock.seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modes", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--settings", nargs="+", help="the names of settings; the default is all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--results", type=Path, default=Path("runs/training_settings.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = FashionMNISTDataModule()
    data.setup("fit")
    train = DataLoader(Subset(data.train_dataloader().dataset, range(6000)), 64, shuffle=True, drop_last=True)
    val = DataLoader(Subset(data.val_dataloader().dataset, range(5000)), 500)
    results = json.loads(arguments.results.read_text()) if arguments.results.exists() else {}
    for mode in arguments.modes:
        for name, options in SETTINGS[mode].items():
            for seed in arguments.seeds if arguments.settings is None or name in arguments.settings else []:
                key = f"{mode}, {name}, {arguments.epochs} epochs, seed {seed}"
                if key not in results:
                    results[key] = run(mode, options, seed, arguments.epochs, train, val)
                    arguments.results.parent.mkdir(parents=True, exist_ok=True)
                    arguments.results.write_text(json.dumps(results, indent=1))
    for mode in arguments.modes:
        show(mode, arguments.seeds, arguments.epochs, results)


def show(mode: str, seeds: list[int], epochs: int, results: dict) -> None:
    """Print the means over the seeds."""
    table = Table(title=f"{mode}, {epochs} epochs: accuracy in percent by ascending alpha, mean of seeds {seeds}")
    for heading in ("setting", "accuracy", "price of the steps"):
        table.add_column(heading)

    def of(mode: str, name: str) -> list[dict]:
        keys = [f"{mode}, {name}, {epochs} epochs, seed {seed}" for seed in seeds]
        return [results[key] for key in keys if key in results]

    plain = [found["seconds"] for found in of("structured", "plain")]
    for name in SETTINGS[mode]:
        found = of(mode, name)
        if found:
            means = [statistics.mean(level) for level in zip(*(run["accuracies"] for run in found), strict=True)]
            seconds = statistics.mean(run["seconds"] for run in found)
            price = f"{seconds / statistics.mean(plain):.2f}" if plain else f"{seconds:.0f} s"
            table.add_row(name, " / ".join(f"{mean:.1f}" for mean in means), price)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
