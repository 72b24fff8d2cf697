"""One more run of the user's code: what it sees, what is set back, and what stays silent."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import RunningStage
from lightning.pytorch.utilities.seed import isolate_rng

from lightning_lcs.model import SubspaceModel
from lightning_lcs.training.user_code.muted import logs_to, muted
from lightning_lcs.training.user_code.snapshot import Snapshot


@contextlib.contextmanager
def apart(
    trainer: Trainer,
    module: LightningModule,
    model: SubspaceModel,
    *,
    stage: RunningStage | None = None,
    arguments: Any = (),
    weights: bool = False,
    log: Callable[..., None] | None = None,
    earlier: Snapshot | None = None,
) -> Iterator[Snapshot]:
    """Run the user's code inside the block as if it had not run: afterwards everything is as before.

    Set back are the module, the callbacks that are not Lightning's own, the data module (see :class:`Snapshot` for what
    that covers), the arguments of the step, the random state, the settings of optimizers and schedulers, and what a
    step may change of the trainer. Loggers and progress bars are silent. What can't be set back are files, queues,
    iterators and what is printed.

    Args:
        trainer: The trainer.
        module: The user's LightningModule.
        model: The subspace model of its network.
        stage: The stage that the user's code sees. The default is the present one.
        arguments: What the user's code gets, such as a batch.
        weights: Whether the trained parameters of the network are set back as well. Hooks of a validation may exchange
            them, and a training step leaves them to the optimizer. The default is ``False``.
        log: Takes the calls that reach Lightning's ``log``; see :func:`logs_to`. The default is to drop them.
        earlier: What an earlier block gave, which is used up; it saves copies.

    Yields:
        The snapshot. Its ``restore()`` sets the state back between two runs in the block.
    """
    before = {name: getattr(trainer, name) for name in ("should_stop", "_last_val_time") if hasattr(trainer, name)}
    present = trainer.state.stage
    groups = [optimizer.param_groups for optimizer in trainer.optimizers]
    trained = [p for part in model.parts for p in part.network.module.parameters() if p.requires_grad]
    schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
    roots = [module, users_callbacks(trainer), getattr(trainer, "datamodule", None), groups, schedulers, arguments]
    with isolate_rng(), muted(trainer), logs_to(log, module):
        snapshot = Snapshot(roots, [] if weights else trained, earlier, others=trainer.optimizers)
        trainer.state.stage = present if stage is None else stage
        try:
            yield snapshot
        finally:
            trainer.state.stage = present
            for name, value in before.items():
                setattr(trainer, name, value)
            snapshot.restore()
            if weights:
                model.runner.forget()  # What was prepared may be of other weights.


def users_callbacks(trainer: Trainer) -> list[Callback]:
    """The trainer's callbacks that are neither Lightning's nor of this package, nor subclasses of such."""
    return [callback for callback in trainer.callbacks if _is_users(callback)]  # type: ignore[attr-defined]


def averages_weights(callback: Callback) -> bool:
    """Whether a callback is Lightning's ``WeightAveraging``, in either namespace.

    It exchanges the weights for their averages in each validation, exactly, and in checkpoints.
    """
    return any(kind.__name__ == "WeightAveraging" for kind in type(callback).__mro__)


def _is_users(callback: Callback) -> bool:
    kinds = [kind for kind in type(callback).__mro__ if kind.__name__ not in ("Callback", "LambdaCallback")]
    packages = {kind.__module__.partition(".")[0] for kind in kinds}
    return not packages & {"lightning", "pytorch_lightning", "lightning_lcs"}
