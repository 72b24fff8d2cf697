"""Where validation loaders are: kept before they are read once more, and set back afterwards."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from lightning.fabric.utilities.seed import _collect_rng_states, _set_rng_states
from lightning.pytorch import Trainer
from lightning.pytorch.loops.evaluation_loop import _EvaluationLoop
from lightning.pytorch.utilities.seed import isolate_rng
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _BaseDataLoaderIter

from lightning_lcs.training.user_code.patches import Patches, StandIn
from lightning_lcs.training.user_code.snapshot import Snapshot


def loaders_of(loop: _EvaluationLoop) -> list[Any]:
    """The loaders of an evaluation loop; none before they are set up."""
    return [] if loop._combined_loader is None else loop._combined_loader.flattened


@contextlib.contextmanager
def left_as_found(loaders: Sequence[Any]) -> Iterator[None]:
    """Inside the block loaders may be read; afterwards they and what they read from are as before.

    Set back are their random generators, samplers and data sets; see :class:`Snapshot`. Iterators and worker processes
    that a loader keeps can't be set back: inside the block it makes others, as it did for its first pass.

    Args:
        loaders: ``DataLoader`` objects, or any iterables.
    """
    found = Snapshot(loaders, loaders=True)
    try:
        for loader in loaders:
            if isinstance(loader, DataLoader):
                _begin_anew(loader)
        yield
    finally:
        found.restore()


def _begin_anew(loader: DataLoader[Any]) -> None:
    """Part a loader from the iterators, and their workers, that it keeps for several passes."""
    attributes = vars(loader)  # past the check of DataLoader, which refuses changes
    attributes["persistent_workers"] = False
    for name, value in list(attributes.items()):
        if isinstance(value, _BaseDataLoaderIter):
            attributes[name] = None if name == "_iterator" else DataLoader.__iter__(loader)


class Start:
    """Where the loaders and the global random generators were when the last validation or test began."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Keep nothing any more."""
        self._loaders: list[Any] = []
        self._restore: Callable[[], object] | None = None

    def watch(self, trainer: Trainer, patches: Patches) -> None:
        """Keep the start of every validation and test of a trainer, until the patches are undone."""
        for loop in (trainer.fit_loop.epoch_loop.val_loop, trainer.validate_loop, trainer.test_loop):
            # The loaders are set up by then, and their iterators are made in there.
            patches.set(loop, "reset", StandIn(loop.reset, lambda reset, loop=loop: self._keep(loop, reset)))

    def _keep(self, loop: _EvaluationLoop, reset: Callable[[], None]) -> None:
        self._loaders = loaders_of(loop)
        loaders, states = Snapshot(self._loaders, loaders=True), _collect_rng_states()

        def restore() -> None:
            loaders.restore()
            _set_rng_states(states)

        self._restore = restore
        reset()

    @contextlib.contextmanager
    def again(self) -> Iterator[None]:
        """Inside the block everything is where it was then, so that the same batches are read; then as before."""
        with isolate_rng(), left_as_found(self._loaders):
            if self._restore is not None:
                self._restore()
            yield

    def __getstate__(self) -> dict[str, Any]:
        # A copy of a callback belongs to no run.
        return {"_loaders": [], "_restore": None}
