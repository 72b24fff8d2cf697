"""Training data for recalibration, through separate loaders."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import CombinedLoader
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, Subset

from lightning_lcs.graph.tracing.example_inputs import are_images


def training_batches(trainer: Trainer, module: LightningModule, images: int, seed: int) -> Iterator[tuple[Any, int]]:
    """Batches of randomly chosen training samples, on the module's device, with their index.

    The dataset, transforms, collate function and batch size are the user's, and the loader is a separate one, so that
    the position, workers and random state of the training loader stay as they are. The last incomplete batch is left
    out where there are others.

    Args:
        trainer: The trainer.
        module: The module, for its transfer hooks.
        images: The approximate number of samples on all ranks together; while fitting, there are at most as many
            batches as the trainer's limits allow.
        seed: The seed of the choice of samples.

    Raises:
        RuntimeError: There is no training data.
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
    loaders = trainer.train_dataloader if fitting else None
    loaders = source.dataloader() if loaders is None else loaders
    mode = loaders._mode if is_combined(loaders) else "max_size_cycle"  # Lightning's default for training
    loaders = loaders.iterables if is_combined(loaders) else loaders
    rank, ranks = trainer.global_rank, trainer.world_size
    own = tree_map(lambda loader: _own_loader(loader, images, seed, rank, ranks), loaders)
    combined = CombinedLoader(own, mode)  # type: ignore[arg-type]
    seen = 0
    for index, (batch, _, _) in enumerate(iter(combined)):
        if seen * ranks >= images or (fitting and index >= trainer.num_training_batches):
            return
        seen += max(1, batch_size(batch))
        batch = trainer.precision_plugin.convert_input(batch)
        batch = module._on_before_batch_transfer(batch, dataloader_idx=0)
        yield trainer.strategy.batch_to_device(batch, dataloader_idx=0), index


def taken_from_training(trainer: Trainer) -> bool:
    """Whether reading training data now would take batches from the running epoch, as a loader is its own iterator."""
    if trainer.state.fn != "fit" or trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
        return False
    loaders: Any = trainer.train_dataloader
    loaders = loaders.iterables if is_combined(loaders) else loaders
    return any(hasattr(loader, "__next__") for loader in tree_leaves(loaders))


def is_combined(loaders: Any) -> bool:
    """Whether loaders are a ``CombinedLoader`` of either of Lightning's namespaces."""
    return any(kind.__name__ == "CombinedLoader" for kind in type(loaders).__mro__)


def _own_loader(loader: Any, images: int, seed: int, rank: int, ranks: int) -> Any:
    if not isinstance(loader, DataLoader):
        return loader
    common = {
        "num_workers": loader.num_workers,
        "collate_fn": loader.collate_fn,
        "pin_memory": loader.pin_memory,
        "worker_init_fn": loader.worker_init_fn,
        "multiprocessing_context": loader.multiprocessing_context,
        "generator": torch.Generator().manual_seed(seed + rank),
    }
    dataset = loader.dataset
    if isinstance(dataset, IterableDataset):
        return DataLoader(dataset, batch_size=loader.batch_size, drop_last=loader.drop_last, **common)
    given = loader.batch_size is None or type(loader.batch_sampler) is not BatchSampler
    if loader.batch_sampler is not None and given:
        return DataLoader(dataset, batch_sampler=loader.batch_sampler, **common)
    size = len(dataset)  # type: ignore[arg-type]
    chosen = torch.randperm(size, generator=torch.Generator().manual_seed(seed))[:images][rank::ranks].tolist()
    batch_size = loader.batch_size
    drop_last = batch_size is not None and len(chosen) > batch_size
    return DataLoader(Subset(dataset, chosen), batch_size=batch_size, drop_last=drop_last, **common)


def batch_size(batch: Any) -> int:
    """The number of samples: of images in a list, else of rows of the first tensor, as in Lightning; else 1."""
    listed = batch if isinstance(batch, (list, tuple)) else ()
    images = next((value for value in (batch, *listed) if are_images(value)), None)
    if images is not None:
        return len(images)
    # Lightning's own function warns of tensors of several sizes. Silencing it would make Python repeat, for
    # every batch, all warnings that it shows once.
    first = next(_tensors(batch), None)
    return 1 if first is None or first.ndim == 0 else first.shape[0]


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
