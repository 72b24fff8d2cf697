"""Run by test_ddp.py, once per process: trains on the digits, and writes what every rank ended with.

    python -m torch.distributed.run --nproc-per-node 2 -m tests.integration.ranks FOLDER '[{"subspace": "line"}]'

Several runs go one after another into folders of their own: a process takes longer to start than a run takes.

A global batch is 32 images, whatever the number of ranks: rank r of two takes its half.
"""

import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Subset

from lightning_lcs import levels
from tests.integration.support import Module, Net, digits, group_norm, lcs, loader, trainer

GLOBAL_BATCH = 32
BATCHES = 4


class Headed(Module):
    """A head outside the target: its gradients come from autograd at every level.

    With a backward of the step's own, those of the network do, too.
    """

    def __init__(self, norm: Any, own_backward: bool = False) -> None:
        super().__init__(Net(norm))
        self.head = nn.Linear(10, 10)
        self.own_backward = own_backward

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, labels = batch
        loss = self.loss(self.head(self.net(images)), labels)
        if self.own_backward:
            loss.backward(retain_graph=True)
        return loss


class Counter(Callback):
    """Counts synchronisations of gradients: one per bucket, and these networks fill one bucket."""

    def __init__(self) -> None:
        self.calls = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if isinstance(trainer.strategy.model, DistributedDataParallel):
            trainer.strategy.model.register_comm_hook(None, self.synchronise)

    def synchronise(self, state, bucket):
        self.calls += 1
        return default_hooks.allreduce_hook(None, bucket)


class ByHand(Headed):
    """The same step with manual optimization."""

    def __init__(self, norm: Any) -> None:
        super().__init__(norm)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        for level in levels(self):
            self.manual_backward(level.weight * super().training_step(batch, batch_idx))
        optimizer.step()


def _shard(dataset: Any, rank: int, ranks: int) -> Any:
    share = GLOBAL_BATCH // ranks
    own = [i for i in range(len(dataset)) if i % GLOBAL_BATCH // share == rank]
    return loader(Subset(dataset, own), share)


def main(folder: Path, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    folder.mkdir(exist_ok=True)
    norm = nn.BatchNorm2d if options.pop("batch_norm", False) else group_norm
    by_hand = options.pop("manual", False)
    module = ByHand(norm) if by_hand else Headed(norm, options.pop("own_backward", False))
    counter = Counter()
    ranks, rank = options.pop("ranks"), int(os.environ.get("RANK", 0))
    strategy = DDPStrategy(process_group_backend="gloo", **options.pop("ddp", {})) if ranks > 1 else "auto"
    run_options = options.pop("trainer", {})
    # Of two epochs, the first has the larger loss: the file that is kept is not that of the last weights.
    files = [ModelCheckpoint(folder, "first", monitor="val_loss", mode="max")] if options.pop("files", False) else []
    callback = lcs(target="net", **options)
    run = trainer(
        folder,
        callback,
        counter,
        *files,
        strategy=strategy,
        devices=ranks,
        use_distributed_sampler=False,
        enable_checkpointing=bool(files),
        logger=CSVLogger(folder, "logs", "run"),  # whose folder Lightning asks all ranks for
        **{"max_epochs": 2, **run_options},
    )
    make = partial(_shard, rank=rank, ranks=ranks)
    run.fit(module, make(digits(0, GLOBAL_BATCH * BATCHES)), make(digits(200, 64)))
    model = callback.subspace_model
    run.save_checkpoint(folder / "last.ckpt", weights_only=True)
    torch.save(
        {
            "weights": {**dict(module.named_parameters()), **dict(module.named_buffers())},
            "statistics": model.statistics,
            "ranges": model.runner.ranges,
            "curve": [point.metrics for point in callback.curve],
            "monitored": {k: float(v) for k, v in run.callback_metrics.items() if k.startswith("lcs/")},
            "steps": run.global_step,
            "synchronised": counter.calls,
        },
        folder / f"rank_{run.global_rank}.pt",
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    for number, each in enumerate(json.loads(sys.argv[2])):
        main(Path(sys.argv[1]) / str(number), each)
