"""Training data for recalibration, through copies of the training loaders."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import random
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from lightning.fabric.utilities.data import _update_dataloader
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import CombinedLoader
from lightning.pytorch.utilities.seed import isolate_rng
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import DataLoader, IterableDataset
from torch.utils.data.dataloader import _BaseDataLoaderIter

from lightning_lcs.graph.tracing.example_inputs import are_images
from lightning_lcs.training.user_code.copies import copied, iterates_itself, refusal

# Samplers without an end may have a length that nobody draws.
LONGEST_EPOCH = 100_000


@dataclasses.dataclass(frozen=True)
class _Draw:
    """Which batches are drawn.

    Attributes:
        images: The number of images on all ranks together.
        seed: The seed of the choice.
        batches: The number of batches in an epoch of training; infinite where it is not known.
        rank: The own rank.
        ranks: The number of ranks.
        split: Whether each rank's loader gives the data of all ranks, as Lightning has not given it a share yet.
        training: Whether a training goes on, whose position stays as it is.
    """

    images: int
    seed: int
    batches: float
    rank: int
    ranks: int
    split: bool
    training: bool


def training_batches(trainer: Trainer, module: LightningModule, images: int, seed: int) -> Iterator[tuple[Any, int]]:
    """Batches as training draws them, on the module's device, with their index.

    They come from copies of the training loaders, with the user's data set, transforms, samplers, collate function and
    batch size, so that position, order, workers and random state of training stay as they are. Of a ``DataLoader`` with
    samplers they are randomly chosen batches of one epoch, without the last incomplete one where there are others; of
    a loader with an iteration of its own, and of iterable data sets, the next ones, if need be of two passes: the first
    may be the rest of an epoch.

    Args:
        trainer: The trainer.
        module: The module, for its transfer hooks.
        images: The approximate number of samples on all ranks together; while fitting, there are at most as many
            batches as the trainer's limits allow.
        seed: The seed of the choice of batches.

    Raises:
        RuntimeError: There is no training data, or training would lose its position; see :func:`check_loaders`.
    """
    source = trainer.fit_loop._data_source
    if trainer.fit_loop._combined_loader is None and not source.is_defined():
        raise RuntimeError(
            "recalibration of batch norm needs training data, and the trainer has none: pass a datamodule with a "
            "train_dataloader, or a checkpoint that was saved after training (it holds the statistics)"
        )
    datamodule, fitting = getattr(trainer, "datamodule", None), trainer.state.fn == "fit"
    if not fitting and datamodule is not None:
        datamodule.setup("fit")
    prepared = trainer.fit_loop._combined_loader if fitting else None
    loaders = source.dataloader() if prepared is None else prepared
    mode = loaders._mode if is_combined(loaders) else "max_size_cycle"  # Lightning's default for training
    loaders = loaders.iterables if is_combined(loaders) else loaders
    draw = _draw(trainer, images, seed, split=prepared is None)
    own = CombinedLoader(tree_map(lambda loader: _own_loader(loader, draw), loaders), mode)
    passes = 1 if all(map(_is_keyed, own.flattened)) else 2
    seen = 0
    for index, (batch, _, _) in enumerate(_repeated(own, passes)):
        if seen * draw.ranks >= images or index >= draw.batches:
            return
        seen += max(1, batch_size(batch))
        batch = trainer.precision_plugin.convert_input(batch)
        batch = module._on_before_batch_transfer(batch, dataloader_idx=0)
        yield trainer.strategy.batch_to_device(batch, dataloader_idx=0), index


def _draw(trainer: Trainer, images: int, seed: int, split: bool) -> _Draw:
    fitting = trainer.state.fn == "fit"
    return _Draw(
        images=images,
        seed=seed,
        batches=trainer.num_training_batches if fitting else math.inf,
        rank=trainer.global_rank,
        ranks=trainer.world_size,
        split=split,
        training=fitting,
    )


def check_loaders(trainer: Trainer) -> None:
    """Refuse, before the first step, loaders that can't be read without moving the position of training.

    A loader that holds an iterator which can't be copied is read from once: most make a new one for each iteration.

    Args:
        trainer: Its training loaders have given the first batch.

    Raises:
        RuntimeError: With what can't be copied, and what to do.
    """
    draw = _draw(trainer, images=1, seed=0, split=False)
    for loader in tree_leaves(trainer.train_dataloader):
        _, left_out = copied(loader)
        if left_out and not _gives_batches(loader, draw):
            raise RuntimeError(refusal(left_out))


def _gives_batches(loader: Any, draw: _Draw) -> bool:
    try:
        with isolate_rng():
            next(iter(_own_loader(loader, draw)))
    except Exception:  # whatever code raises whose iterator is missing; StopIteration without a batch
        return False
    return True


def is_combined(loaders: Any) -> bool:
    """Whether loaders are a ``CombinedLoader`` of either of Lightning's namespaces."""
    return any(kind.__name__ == "CombinedLoader" for kind in type(loaders).__mro__)


def _own_loader(loader: Any, draw: _Draw) -> Any:
    """A copy of a loader; a ``DataLoader`` with the keys of the batches that are drawn for its samplers."""
    try:
        own, _ = copied(loader, strict=draw.training)
    except RuntimeError:
        if draw.training:
            raise
        own = loader  # there is no training to be disturbed
    if not isinstance(loader, DataLoader) or own is loader:
        return own
    if iterates_itself(type(own)) and hasattr(own, "load_state_dict"):
        own = _made_anew(own)  # a copy might give the rest of the epoch, and another rest after a resume
    # Attributes are set past the check of DataLoader, which refuses new samplers.
    attributes = vars(own)
    attributes["generator"] = torch.Generator().manual_seed(draw.seed + draw.rank)
    for name, value in vars(loader).items():
        if isinstance(value, _BaseDataLoaderIter) and name != "_iterator":
            attributes[name] = DataLoader.__iter__(own)  # loaders that keep one iterator for all epochs
    if _is_keyed(own):
        sampler = "sampler" if own.batch_sampler is None else "batch_sampler"
        attributes[sampler] = _drawn_keys(attributes[sampler], own.batch_size, draw)
    return own


def _is_keyed(loader: Any) -> bool:
    """Whether the keys from a loader's samplers say all of what it gives."""
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return False
    return not iterates_itself(type(loader))


def _made_anew(loader: DataLoader[Any]) -> DataLoader[Any]:
    """A loader from the arguments of another one, as Lightning makes it for a sampler of its own; else that one."""
    try:
        anew: DataLoader[Any] = _update_dataloader(loader, loader.sampler)
    except Exception:  # whatever a constructor raises that was not written for this
        return loader
    same = anew.dataset is loader.dataset and anew.batch_size == loader.batch_size
    return anew if same else loader


def _repeated(values: Iterable[Any], passes: int) -> Iterator[Any]:
    for _ in range(passes):
        yield from values


def _drawn_keys(sampler: Iterable[Any], size: int | None, draw: _Draw) -> list[Any]:
    """The keys of randomly chosen batches of one epoch.

    Args:
        sampler: Gives the keys of each batch.
        size: The number of keys of a full batch; ``None`` where batches may have any.
        draw: Which batches are drawn.
    """
    most = max(1, draw.images // (draw.ranks * (size or 1)))
    length = _length(sampler)
    if length is None:
        length = most * (draw.ranks if draw.split else 1)
    epoch = int(min(length, draw.batches, LONGEST_EPOCH))
    order = torch.randperm(epoch, generator=torch.Generator().manual_seed(draw.seed)).tolist()
    if draw.split:
        order = order[draw.rank :: draw.ranks] or order
    wanted = set(order[: most + 1])  # one more, as one may be incomplete
    again = _repeated(sampler, 2)  # the first pass may be the rest of an epoch
    # Ranks with a share of their own get it from their sampler; others draw alike, to be split.
    with _seeded(draw.seed + (0 if draw.split else draw.rank)):
        drawn = {i: keys for i, keys in enumerate(itertools.islice(again, epoch)) if i in wanted}
    full = [i for i in order if i in drawn and (size is None or len(drawn[i]) == size)] or list(drawn)
    counts = itertools.accumulate(_count(drawn[i]) for i in full)
    chosen = [i for i, count in zip(full, counts, strict=True) if count * draw.ranks <= draw.images] or full[:1]
    return [drawn[i] for i in sorted(chosen)]


def _count(keys: Any) -> int:
    return len(keys) if isinstance(keys, (list, np.ndarray, torch.Tensor)) else 1


def _length(sampler: Any) -> int | None:
    try:
        return len(sampler)
    except (TypeError, NotImplementedError):
        return None


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Inside the block, the random generators that samplers draw from begin at a seed; then they are as before."""
    with isolate_rng():
        torch.default_generator.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        yield


def batch_size(batch: Any) -> int:
    """The number of samples: of entries in a list with one for each, else of rows of the first tensor; else 1."""
    listed = batch if isinstance(batch, (list, tuple)) else ()
    samples = next((value for value in (batch, *listed) if lists_images(value)), None)
    if samples is not None:
        return len(samples)
    # Lightning's own function warns of tensors of several sizes. Silencing it would make Python repeat, for
    # every batch, all warnings that it shows once.
    first = next(_tensors(batch), None)
    return 1 if first is None or first.ndim == 0 else first.shape[0]


def lists_images(value: Any) -> bool:
    """Whether a value is a list of images, or of samples that begin with one, such as pairs of image and label."""
    if not isinstance(value, (list, tuple)) or not value:
        return False
    inside = [entry if isinstance(entry, torch.Tensor) else next(_tensors(entry), None) for entry in value]
    return len({type(entry) for entry in value}) == 1 and are_images(inside)


def _tensors(batch: Any) -> Iterator[torch.Tensor]:
    if isinstance(batch, torch.Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        yield from _tensors(list(batch.values()))
    elif dataclasses.is_dataclass(batch):
        yield from _tensors([getattr(batch, field.name) for field in dataclasses.fields(batch)])
    elif isinstance(batch, Iterable) and not isinstance(batch, (str, bytes)):
        for sample in batch:
            yield from _tensors(sample)
