"""One validation (or test) of the user's module at one level, run by Lightning's own loop."""

from __future__ import annotations

import contextlib
import copy
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loops.evaluation_loop import _EvaluationLoop
from lightning.pytorch.trainer.connectors.logger_connector.result import _ResultCollection
from lightning.pytorch.trainer.states import RunningStage
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor
from torchmetrics import Metric

from lightning_lcs.model import SubspaceModel
from lightning_lcs.training.data.loader_state import left_as_found, loaders_of
from lightning_lcs.training.data.loaders import batch_size
from lightning_lcs.training.target import guarded
from lightning_lcs.training.user_code.isolation import apart, averages_weights, users_callbacks
from lightning_lcs.training.user_code.patches import Patches, StandIn, is_overridden
from lightning_lcs.training.user_code.snapshot import Snapshot


def evaluate_level(
    trainer: Trainer,
    module: LightningModule,
    model: SubspaceModel,
    alpha: float,
    *,
    max_batches: int | None = None,
    before_first: Callable[[], object] = lambda: None,
    after_batch: Callable[[], object] = lambda: None,
) -> dict[str, float]:
    """The metrics that the module and the callbacks log in a validation (a test under ``trainer.test``) at one level.

    All hooks of a validation run, those of the module and of the user's own callbacks, over the loaders that the
    trainer uses. Meanwhile ``trainer.callback_metrics`` holds the values of the level. Nothing is left of it
    afterwards; see :func:`apart` and :func:`left_as_found`.

    Args:
        trainer: The trainer.
        module: The user's LightningModule.
        model: The subspace model of its network.
        alpha: The level, in [0, 1].
        max_batches: The most batches of each loader. The default is that of the trainer.
        before_first: It is called right before the first step, after all hooks that come before it.
        after_batch: It is called after each batch.

    Returns:
        The metrics by the names in ``trainer.callback_metrics``, reduced as Lightning does, over all ranks.
    """
    kind = "test" if trainer.testing else "validation"
    stage = RunningStage.TESTING if trainer.testing else RunningStage.VALIDATING
    loop = _new_loop(evaluation_loop(trainer), max_batches)
    patches = Patches()
    connector = trainer._logger_connector
    with contextlib.ExitStack() as stack:
        stack.callback(patches.undo)
        steps = _Steps(before_first, after_batch, stack.enter_context(model.runner.counting_rows()))
        patches.set(module, f"{kind}_step", StandIn(getattr(module, f"{kind}_step"), steps.run))
        users = users_callbacks(trainer)
        others = [
            callback
            for callback in trainer.callbacks  # type: ignore[attr-defined]
            if callback not in users and not averages_weights(callback)
        ]
        _silence(patches, others, kind, ("start", "end", "epoch_start", "epoch_end", "batch_start", "batch_end"))
        log = _log_over_ranks if trainer.world_size > 1 else _log
        stage = RunningStage.SANITY_CHECKING if trainer.sanity_checking else stage
        stack.enter_context(apart(trainer, module, model, stage=stage, weights=True, log=log))
        stack.enter_context(left_as_found(loaders_of(loop)))
        stack.callback(_drop_iterators, loop)
        stack.enter_context(_installed(trainer, loop))
        stack.enter_context(_own_metrics(connector))
        for child in module.modules():
            if isinstance(child, Metric):
                child.reset()
        stack.enter_context(model.at_alpha(alpha))
        stack.enter_context(guarded(model, model.nearest_level(alpha), f"{kind}_step"))
        earlier = dict(connector._callback_metrics)
        loop.run()
        steps.end()
        found = {k: v for k, v in connector._callback_metrics.items() if v is not earlier.get(k)}
        return {k: float(v) for k, v in found.items() if not _is_fork(k, found)}


@contextlib.contextmanager
def ended(trainer: Trainer, module: LightningModule, model: SubspaceModel) -> Iterator[None]:
    """Inside the block, the validation (or test) whose ``on_validation_end`` hooks are about to run is over.

    What its hooks have exchanged for it, such as weights for their averages, is back in its place, so that further
    validations may begin. After the block all is as before.

    Args:
        trainer: The trainer.
        module: The user's LightningModule.
        model: The subspace model of its network.
    """
    kind = "test" if trainer.testing else "validation"
    with apart(trainer, module, model, weights=True, log=_log):
        for callback in users_callbacks(trainer):
            getattr(callback, f"on_{kind}_end")(trainer, module)
        getattr(module, f"on_{kind}_end")()
        if is_overridden(module, f"on_{kind}_model_train"):
            getattr(module, f"on_{kind}_model_train")()
        yield


class _Steps:
    """Calls what comes before the first step and after each, and sets each batch back before the next."""

    def __init__(
        self,
        before_first: Callable[[], object],
        after_batch: Callable[[], object],
        count_rows: Callable[[int], None],
    ) -> None:
        self._before: Callable[[], object] | None = before_first
        self._after = after_batch
        self._count_rows = count_rows
        self._batch: Snapshot | None = None

    def run(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._before is not None:
            before, self._before = self._before, None
            before()
        self.end()
        self._count_rows(batch_size(args[0]) if args else 1)
        # A data set may give the same objects again, to the next level or to training.
        self._batch = Snapshot([args, kwargs])
        output = original(*args, **kwargs)
        self._after()
        return output

    def end(self) -> None:
        if self._batch is not None:
            self._batch.restore()


def _silence(patches: Patches, owners: Iterable[Any], kind: str, hooks: Iterable[str]) -> None:
    for owner in owners:
        for hook in hooks:
            patches.set(owner, f"on_{kind}_{hook}", _nothing)


def evaluation_loop(trainer: Trainer) -> _EvaluationLoop:
    """The loop of ``validate``, ``test`` or of the validations of ``fit``, with its loaders set up."""
    if trainer.state.fn == "fit":
        loop = trainer.fit_loop.epoch_loop.val_loop
        if trainer.val_dataloaders is None and trainer.enable_validation:
            loop.setup_data()  # no validation has run yet
        return loop
    return trainer.test_loop if trainer.testing else trainer.validate_loop


def evaluation_batches(trainer: Trainer) -> float:
    """The number of batches of a pass over the loaders, as the trainer counts them; infinite if it is not known.

    It is 0 where there is no loader.
    """
    return float(sum(evaluation_loop(trainer)._max_batches))


def _new_loop(used: _EvaluationLoop, max_batches: int | None) -> _EvaluationLoop:
    """A loop over the loaders of another one, with results and progress of its own."""
    loop = copy.copy(used)
    loop.verbose = False
    loop.batch_progress = type(used.batch_progress)()
    loop._results = _ResultCollection(training=False)
    loop._logged_outputs = []
    loop._seen_batches_per_dataloader = defaultdict(int)
    loop._module_mode = type(used._module_mode)()
    loop._data_fetcher = None
    if used._combined_loader is not None:
        loop._combined_loader = CombinedLoader(used._combined_loader.iterables, used._combined_loader._mode)
    loop._restarting = False
    vars(loop).pop("reset", None)  # what notes the start of the user's own validations
    loop.setup_data = _nothing  # type: ignore[method-assign]
    if max_batches is not None:
        loop._max_batches = [min(number, max_batches) for number in used._max_batches]
    return loop


def _drop_iterators(loop: _EvaluationLoop) -> None:
    """Let go of a pass's iterators now, and with them of their workers, before the next pass starts its own."""
    if loop._data_fetcher is not None:
        loop._data_fetcher.reset()
        loop._data_fetcher.iterator = None
    if loop._combined_loader is not None:
        loop._combined_loader._iterator = None


@contextlib.contextmanager
def _installed(trainer: Trainer, loop: _EvaluationLoop) -> Iterator[None]:
    """Inside the block, a loop takes the place of the trainer's own, to which ``log`` looks for results."""
    fitting = trainer.state.fn == "fit"
    owner: Any = trainer.fit_loop.epoch_loop if fitting else trainer
    name = "val_loop" if fitting else "test_loop" if trainer.testing else "validate_loop"
    used = getattr(owner, name)
    setattr(owner, name, loop)
    try:
        yield
    finally:
        setattr(owner, name, used)


@contextlib.contextmanager
def _own_metrics(connector: Any) -> Iterator[None]:
    """Inside the block, the trainer's metrics are copies, in which the level's values replace those of alpha = 1."""
    before = dict(vars(connector))
    for name in ("_progress_bar_metrics", "_logged_metrics", "_callback_metrics"):
        setattr(connector, name, dict(before[name]))
    connector._first_loop_iter = connector._current_fx = None
    try:
        yield
    finally:
        vars(connector).update(before)


def _log(original: Callable[..., None], *args: Any, **kwargs: Any) -> None:
    original(*args, **kwargs)


def _log_over_ranks(original: Callable[..., None], name: str, value: Any, *args: Any, **kwargs: Any) -> None:
    """A curve is of the data of all ranks, also where the module logs the share of each."""
    of_one = isinstance(value, Metric) or kwargs.get("rank_zero_only") or len(args) > 6
    original(name, value, *args, **(kwargs if of_one else {**kwargs, "sync_dist": True}))


def _is_fork(name: str, found: dict[str, Tensor]) -> bool:
    """Whether a name is one of the two that Lightning adds to what is logged for steps and for the epoch."""
    return any(name.endswith(end) and name.removesuffix(end) in found for end in ("_step", "_epoch"))


def _nothing(*args: Any, **kwargs: Any) -> None:
    return None
