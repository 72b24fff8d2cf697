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
from collections.abc import Iterable
from pathlib import Path

import lightning as L
import torch
from rich.console import Console
from rich.table import Table
from settings import ALPHAS, SETTINGS
from tasks import TASKS, Module, Task

from lightning_lcs import LCSCallback


class Clock(L.Callback):
    """The processor time of all training steps."""

    def __init__(self) -> None:
        self.seconds = self._start = 0.0

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self._start = time.process_time()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seconds += time.process_time() - self._start


def run(task: Task, mode: str, options: dict | None, seed: int, epochs: int) -> dict:
    """Train with the options, or plainly with ``None``; the accuracies in percent, and the time of the steps."""
    L.seed_everything(seed, verbose=False)
    clock = Clock()
    train, val = task.loaders()
    given = {"mode": mode, "alphas": ALPHAS[mode], "seed": seed, **(options or {})}
    # The paper trains bit widths with a quarter of the rate.
    rate = given.pop("learning_rate", 0.25 if mode == "quantized" and task.schedule == "cosine" else 1.0)
    callbacks = [] if options is None else [LCSCallback(recalibration={"images": 1024, "levels": [0.0]}, **given)]
    trainer = L.Trainer(
        accelerator="cpu", callbacks=[*callbacks, clock], max_epochs=epochs, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, check_val_every_n_epoch=epochs,
    )  # fmt: skip
    trainer.fit(Module(task, rate * task.learning_rate), train, val)
    found = [float(trainer.callback_metrics["val_acc"])]
    if callbacks:
        found = [point.metrics["val_acc"] for point in callbacks[0].curve]
    return {"accuracies": [100 * accuracy for accuracy in found], "seconds": clock.seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="small", choices=list(TASKS))
    parser.add_argument("--modes", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--settings", nargs="+", help="the names of settings; the default is all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--epochs", type=int, help="the default is 6 of the small task and 20 of preresnet")
    parser.add_argument("--results", type=Path, default=Path("runs/training_settings.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    task = TASKS[arguments.task]
    epochs = arguments.epochs or task.epochs
    for seed in arguments.seeds:
        for mode in arguments.modes:
            for name, options in SETTINGS[mode].items():
                key = f"{arguments.task}, {mode}, {name}, {epochs} epochs, seed {seed}"
                chosen = arguments.settings is None or name in arguments.settings
                if chosen and key not in read(arguments.results):
                    found = run(task, mode, options, seed, epochs)
                    arguments.results.parent.mkdir(parents=True, exist_ok=True)
                    arguments.results.write_text(json.dumps({**read(arguments.results), key: found}, indent=1))
                    print(f"{key}: {' / '.join(f'{a:.1f}' for a in found['accuracies'])}", flush=True)
    for mode in arguments.modes:
        show(f"{arguments.task}, {mode}", SETTINGS[mode], f"{epochs} epochs", arguments.seeds, read(arguments.results))


def read(path: Path) -> dict:
    """The results so far; another process may write them, too."""
    return json.loads(path.read_text()) if path.exists() else {}


def show(title: str, names: Iterable[str], epochs: str, seeds: list[int], results: dict) -> None:
    """Print the means over the seeds."""
    table = Table(title=f"{title}, {epochs}: accuracy in percent by ascending alpha, mean of seeds {seeds}")
    for heading in ("setting", "seeds", "accuracy", "price of the steps"):
        table.add_column(heading)

    def of(title: str, name: str) -> list[dict]:
        keys = [f"{title}, {name}, {epochs}, seed {seed}" for seed in seeds]
        return [results[key] for key in keys if key in results]

    plain = [found["seconds"] for found in of(f"{title.split(', ')[0]}, structured", "plain")]
    for name in names:
        found = of(title, name)
        if found:
            means = [statistics.mean(level) for level in zip(*(run["accuracies"] for run in found), strict=True)]
            seconds = statistics.mean(run["seconds"] for run in found)
            price = f"{seconds / statistics.mean(plain):.2f}" if plain else f"{seconds:.0f} s"
            table.add_row(name, str(len(found)), " / ".join(f"{mean:.1f}" for mean in means), price)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
