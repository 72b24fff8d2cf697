"""``lightning-lcs compare``: several training methods on one recipe, one table and one plot of each mode."""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_lcs.callbacks.lcs import LCSCallback
from lightning_lcs.cli.recipe import read_recipe
from lightning_lcs.reporting.comparison import Runs, plot_comparisons, print_comparisons
from lightning_lcs.reporting.curve import read_csv, write_csv
from lightning_lcs.reporting.plots import require_matplotlib
from lightning_lcs.subspace.line import Line
from lightning_lcs.subspace.mode import Mode
from lightning_lcs.training.methods import METHODS, method_settings

# Settings of a method that are the wrapper's; all others are the callback's.
_OF_MODEL = ("mode", "subspace", "norm", "line")


def compare(args: Sequence[str]) -> None:
    """Train the chosen methods, those whose result is not there yet, then print the table and draw the plot.

    Every run writes ``METHOD-SEED.csv``, whole or not at all; a call that was interrupted goes on with the next.

    Args:
        args: the command's name, and what follows it; what is not known here is LightningCLI's.

    Raises:
        ValueError: a method that is not known, or a level outside [0, 1].
    """
    parser = argparse.ArgumentParser(
        prog="lightning-lcs compare",
        description="Train several methods on one recipe (any arguments of lightning-lcs fit), and compare their "
        "curves. The recipe's own LCSCallback, checkpoints and logger are left out; results in the folder are kept, so "
        f"that another recipe needs another folder. Methods: {'; '.join(METHODS)}.",
    )
    parser.add_argument("--methods", nargs="+", default=["structured-line", "structured-point", "plain", "us"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/compare"), help="where results are kept")
    parser.add_argument("--alphas", nargs="+", type=float, help="levels of all curves; else those of each method")
    parser.add_argument("--metric", default="val_acc", help="what the table and the plot show")
    own, recipe = parser.parse_known_args(args[1:])
    levels = {} if own.alphas is None else {"alphas": own.alphas}
    for method in own.methods:
        LCSCallback.method(method, **levels)  # before the first run, not after hours; the same for what draws the plot
    require_matplotlib()
    # What devices there are, it would say before every run.
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    begin = time.monotonic()
    runs: Runs = {method: [] for method in own.methods}
    for seed in own.seeds:
        for method in own.methods:
            path = own.folder / f"{method}-{seed}.csv"
            if path.exists():
                print(f"{path}: kept from an earlier call", flush=True)
            else:
                write_csv({"": _train(method, seed, own.folder, recipe, levels)}, path)
                print(f"{method}, seed {seed}: {(time.monotonic() - begin) / 3600:.2f} hours so far", flush=True)
            runs[method].append(read_csv(path))
    print_comparisons(runs, own.metric)
    for path in plot_comparisons(runs, own.metric, own.folder):
        print(path)


def _train(method: str, seed: int, folder: Path, recipe: Sequence[str], levels: Mapping[str, Any]) -> Any:
    settings = method_settings(method)
    of_model = {name: settings[name] for name in _OF_MODEL if name in settings}
    given = [f"--model.{name}={_as_argument(value)}" for name, value in of_model.items()]
    here = [f"--seed_everything={seed}", "--trainer.logger=false", f"--trainer.default_root_dir={folder / 'last'}"]
    cli = read_recipe([*recipe, *given, *here], run=False, save_config_callback=None)
    lcs = LCSCallback.method(method, seed=seed, **levels)
    # Every method writes to the same places: checkpoints of one would stand in the way of the next.
    others = [c for c in cli.trainer.callbacks if not isinstance(c, (LCSCallback, ModelCheckpoint))]  # type: ignore[attr-defined]
    cli.trainer.callbacks = [lcs, *others]  # type: ignore[attr-defined]
    cli.trainer.fit(cli.model, cli.datamodule)
    return lcs.curve


def _as_argument(value: str | Mode | Line) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, Line):
        return json.dumps(vars(value))
    return json.dumps({"class_path": f"lightning_lcs.{type(value).__name__}", "init_args": vars(value)})
