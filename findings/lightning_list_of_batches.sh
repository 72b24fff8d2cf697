#!/usr/bin/env bash
# Lightning 2.6.6: a list of ready batches is no loader of batches, but as many loaders as it holds tensors.
#
# Guess: where train_dataloader returns a list of two batches, each a list of images and labels, training_step gets the
# two batches one after another, as it does from any other iterable of batches. Seen: the list is a collection of
# loaders, also where it is nested, and each tensor in it is a loader that gives its rows. The step gets one row of each
# of the four tensors at once, in lists of the same form, and runs as often as the longest tensor has rows. A tuple is
# taken so, too. A generator of the same batches, or a DataLoader of the list with batch_size=None, gives them whole.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 lightning==2.6.6
cd "$folder"
cat > steps.py <<'PYTHON'
import logging
import warnings

import lightning
import torch
from torch.utils.data import DataLoader

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.simplefilter("ignore")


def shapes(batch):
    return tuple(batch.shape) if isinstance(batch, torch.Tensor) else [shapes(part) for part in batch]


class Module(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 1)
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append(shapes(batch))
        return self.layer.weight.sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def seen(loader):
    module = Module()
    trainer = lightning.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, loader)
    return module.seen


batches = [[torch.zeros(8, 3), torch.zeros(8)] for _ in range(2)]
as_list, whole = seen(batches), seen(DataLoader(batches, batch_size=None))
print("lightning", lightning.__version__)
print("a list:", len(as_list), "steps, the first with", as_list[0])
print("a DataLoader of the list:", len(whole), "steps, the first with", whole[0])
assert as_list == [[[(3,), ()], [(3,), ()]]] * 8
assert seen(tuple(batches)) == [[[(3,), ()], [(3,), ()]]] * 8
assert whole == [[(8, 3), (8,)]] * 2
assert seen(batch for batch in batches) == whole
PYTHON
venv/bin/python steps.py
