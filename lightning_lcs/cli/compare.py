"""``lightning-lcs compare``: several training methods on one recipe, with one table and one plot per axis."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_lcs.callbacks.lcs import LCSCallback
from lightning_lcs.cli.parsing import call, split
from lightning_lcs.cli.recipe import read_recipe
from lightning_lcs.reporting.comparison import Runs, plot_comparisons, print_comparisons
from lightning_lcs.reporting.plots import require_matplotlib
from lightning_lcs.reporting.run_summary import name_method
from lightning_lcs.subspace.curves.curve_file import read_csv, write_csv
from lightning_lcs.subspace.mode import Mode
from lightning_lcs.subspace.weights.line import Line
from lightning_lcs.training.methods import METHODS, method_settings

# The settings of a method that belong to the wrapper; all others belong to the callback.
_OF_MODEL = ("mode", "subspace", "norm", "line")


class Chosen(NamedTuple):
    """The command's own options."""

    methods: list[str]
    seeds: list[int]
    folder: Path
    alphas: list[float] | None
    metric: str


def options(
    methods: list[str] = ["structured-line", "structured-point", "plain", "us"],  # noqa: B006
    seeds: list[int] = [0],  # noqa: B006
    folder: Path = Path("runs/compare"),
    alphas: list[float] | None = None,
    metric: str = "val_acc",
) -> Chosen:
    """Train several methods on one recipe (any arguments of lightning-lcs fit), and compare their curves.

    The recipe's own LCSCallback, checkpoints and logger are left out. Results in the folder are kept, so that another
    recipe needs another folder. lightning-lcs report FOLDER makes a page about all runs.

    Args:
        methods: The methods.
        seeds: The seeds; each method is trained with each seed.
        folder: The folder of the results.
        alphas: The levels of all curves. The default is the levels of each method.
        metric: The metric that the table and the plot show.
    """
    return Chosen(methods, seeds, folder, alphas, metric)


def compare(args: Sequence[str]) -> None:
    """Train the chosen methods, except those whose result is there already; then print the table and draw the plot.

    Every run writes ``METHOD-SEED.csv``, whole or not at all, and a folder ``METHOD-SEED`` for ``lightning-lcs
    report``. A call that was interrupted goes on with the next run.

    Args:
        args: The command's name, and what follows it; options that are not known here are LightningCLI's.

    Raises:
        ValueError: A method is not known, or a level is outside [0, 1].
    """
    known, recipe = split(options, args[1:])
    own: Chosen = call(options, [args[0], *known], f"Methods: {'; '.join(METHODS)}.")
    levels = {} if own.alphas is None else {"alphas": own.alphas}
    for method in own.methods:
        LCSCallback.method(
            method, **levels
        )  # Errors should come before the first run, not after hours; so should a missing plotting library.
    require_matplotlib()
    # Otherwise Lightning prints the devices before every run.
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    begin = time.monotonic()
    runs: Runs = {method: [] for method in own.methods}
    for seed in own.seeds:
        for method in own.methods:
            path = own.folder / f"{method}-{seed}.csv"
            if path.exists():
                print(f"{path}: kept from an earlier call", flush=True)
            else:
                curve = _train(method, seed, path.with_suffix(""), recipe, levels)
                name_method(path.with_suffix(""), method)
                write_csv({"": curve}, path)
                print(f"{method}, seed {seed}: {(time.monotonic() - begin) / 3600:.2f} hours so far", flush=True)
            runs[method].append(read_csv(path))
    print_comparisons(runs, own.metric)
    for path in plot_comparisons(runs, own.metric, own.folder):
        print(path)


def _train(method: str, seed: int, folder: Path, recipe: Sequence[str], levels: Mapping[str, Any]) -> Any:
    settings = method_settings(method)
    of_model = {name: settings[name] for name in _OF_MODEL if name in settings}
    given = [f"--model.{name}={_as_argument(value)}" for name, value in of_model.items()]
    here = [f"--seed_everything={seed}", "--trainer.logger=false", f"--trainer.default_root_dir={folder}"]
    cli = read_recipe([*recipe, *given, *here], run=False, save_config_callback=None)
    lcs = LCSCallback.method(method, seed=seed, **levels)
    # All methods would write their checkpoints to the same place.
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
