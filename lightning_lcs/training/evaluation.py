"""One pass of the module's own validation (or test) hooks at one level."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.utilities import CombinedLoader
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torchmetrics import Metric

from lightning_lcs.model import SubspaceModel
from lightning_lcs.training.isolation import quiet
from lightning_lcs.training.loaders import batch_size
from lightning_lcs.training.target import guarded


class Recorder:
    """Takes a module's ``log`` calls and averages the values as Lightning does over an epoch.

    Tensors are weighted by batch size, torchmetrics objects are computed at the end, and values with ``reduce_fx``
    "sum", "min" or "max" are reduced in that way.
    """

    def __init__(self) -> None:
        self.batch_size = 1
        self.suffix = ""
        self._values: dict[str, list[tuple[Tensor, int]]] = {}
        self._reductions: dict[str, str] = {}
        self._metrics: dict[str, Metric] = {}

    def log(self, name: str, value: Any, *args: Any, **kwargs: Any) -> None:
        """Take the arguments of ``LightningModule.log``."""
        name += self.suffix if kwargs.get("add_dataloader_idx", True) else ""
        if isinstance(value, Metric):
            self._metrics[name] = value
            return
        reduction = kwargs.get("reduce_fx", "mean")
        self._reductions[name] = reduction if isinstance(reduction, str) else getattr(reduction, "__name__", "mean")
        # It stays on its device until the pass ends: reading it would wait for the accelerator after every batch.
        tensor = value.detach().clone() if isinstance(value, Tensor) else torch.tensor(value)
        self._values.setdefault(name, []).append((tensor, kwargs.get("batch_size") or self.batch_size))

    def results(self, strategy: Strategy) -> dict[str, float]:
        """One number for each name, over the data of all ranks."""

        def over_ranks(value: Tensor, how: str) -> Tensor:
            reduced: Tensor = strategy.reduce(value.to(strategy.root_device), reduce_op=how)
            return reduced

        found = {}
        for name, logged in self._values.items():
            values = torch.stack([value.cpu().double() for value, _ in logged])
            weights = torch.tensor([weight for _, weight in logged], dtype=torch.float64)
            reduction = self._reductions[name]
            if reduction in ("sum", "min", "max"):
                found[name] = float(over_ranks(getattr(values, reduction)(), reduction))
            else:
                total = over_ranks(torch.stack([(values * weights).sum(), weights.sum()]), "sum")
                found[name] = float(total[0] / total[1])
        for name, metric in self._metrics.items():
            value = metric.compute()
            if isinstance(value, Tensor) and value.numel() == 1:
                found[name] = float(value)
        return found


def evaluate_level(
    trainer: Trainer,
    module: LightningModule,
    model: SubspaceModel,
    alpha: float,
    max_batches: int | None = None,
    after_batch: Callable[[], object] = lambda: None,
) -> dict[str, float]:
    """The module's own validation metrics (test metrics under ``trainer.test``) at one level.

    The module's own epoch-start, batch, step and epoch-end hooks run over the loaders that the trainer uses. Nothing is
    logged, and the metrics, the random state and the plain attributes of the module are as before afterwards.
    ``max_batches`` ends the pass early; ``after_batch`` is called after each batch.
    """
    testing = bool(trainer.testing)
    stage = "test" if testing else "validation"
    recorder = Recorder()
    training = [(child, child.training) for child in module.modules()]
    step = getattr(module, f"{stage}_step")
    module.eval()
    try:
        with (
            isolate_rng(),
            torch.inference_mode(),
            quiet(module, model, recorder.log),
            model.at_alpha(alpha),
            guarded(model, model.nearest_level(alpha), f"{stage}_step"),
            model.runner.counting_rows() as count,
        ):
            getattr(module, f"on_{stage}_epoch_start")()
            batches = itertools.islice(_batches(trainer, module, testing), max_batches)
            for batch, batch_idx, loader_idx, several in batches:
                recorder.batch_size = batch_size(batch)
                count(recorder.batch_size)
                recorder.suffix = f"/dataloader_idx_{loader_idx}" if several else ""
                getattr(module, f"on_{stage}_batch_start")(batch, batch_idx, *([loader_idx] if several else []))
                with trainer.precision_plugin.val_step_context():
                    output = step(*_arguments(step, batch, batch_idx, loader_idx))
                getattr(module, f"on_{stage}_batch_end")(output, batch, batch_idx, *([loader_idx] if several else []))
                after_batch()
            recorder.suffix = ""
            getattr(module, f"on_{stage}_epoch_end")()
            return recorder.results(trainer.strategy)
    finally:
        for child, flag in training:
            child.training = flag


def evaluation_loaders(trainer: Trainer, testing: bool) -> Any:
    """The loaders of ``validate`` or ``test``; ``None`` where there are none."""
    if testing:
        return trainer.test_dataloaders
    loop = trainer.fit_loop.epoch_loop.val_loop
    if trainer.val_dataloaders is None and trainer.enable_validation:
        # No validation has run yet.
        loop.setup_data()
    return trainer.val_dataloaders


def evaluation_batches(trainer: Trainer, testing: bool) -> float:
    """The number of batches of a pass over the loaders, as the trainer counts them; infinite if it is not known."""
    numbers: Any = trainer.num_test_batches if testing else trainer.num_val_batches
    return float(sum(numbers)) if isinstance(numbers, list) else float(numbers)


def _batches(trainer: Trainer, module: LightningModule, testing: bool) -> Iterator[tuple[Any, int, int, bool]]:
    evaluation_loaders(trainer, testing)  # set up, if no validation has run yet
    loops = (trainer.validate_loop, trainer.fit_loop.epoch_loop.val_loop)
    loop = trainer.test_loop if testing else loops[trainer.state.fn == "fit"]
    used = loop._combined_loader
    assert used is not None
    combined = CombinedLoader(used.iterables, used._mode)
    sequential = used._mode == "sequential"
    limits: Any = trainer.num_test_batches if testing else trainer.num_val_batches
    combined.limits = limits if isinstance(limits, list) and sequential else None
    several = len(combined.flattened) > 1 and sequential
    for batch, batch_idx, loader_idx in iter(combined):
        if not sequential and batch_idx >= (max(limits) if isinstance(limits, list) else limits):
            return
        batch = trainer.precision_plugin.convert_input(batch)
        batch = module._on_before_batch_transfer(batch, dataloader_idx=loader_idx)
        yield trainer.strategy.batch_to_device(batch, dataloader_idx=loader_idx), batch_idx, loader_idx, several


def _arguments(step: Any, batch: Any, batch_idx: int, loader_idx: int) -> list[Any]:
    """The arguments that Lightning passes by position: the batch, its index, and with several loaders theirs."""
    return [batch, batch_idx, loader_idx][: max(1, len(inspect.signature(step).parameters))]
