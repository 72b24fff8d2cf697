"""Loaders, samplers and data sets with a state: training reads what it reads without the callback, in the same order.

Each kind of loader is trained on twice, in plain Lightning and with checkpoints within the epochs, before each of which
statistics are collected. What training is given has to be equal, and so has what the random generators hold meanwhile.
"""

import random

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from lightning_lcs.training.data import loaders as loaders_of_training
from lightning_lcs.training.user_code.copies import copied
from tests.integration.loader_kinds import COUNT, LABELS, LOADERS, VALIDATION, Plain, Reading, loader, sample
from tests.integration.support import Module, lcs, trainer
from tests.integration.support import loader as plain_loader

pytestmark = pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")


class Given(Module):
    """Remembers what training is given, and what the random generators hold then."""

    def __init__(self):
        super().__init__()
        self.given, self.read = [], []

    def training_step(self, batch, batch_idx):
        images, labels, ids, _ = batch["a"] if isinstance(batch, dict) else batch
        self.read.extend(ids.tolist())
        return super().training_step((images, labels), batch_idx)

    def on_train_batch_start(self, batch, batch_idx):
        drawn = torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate()
        batches = list(batch.values()) if isinstance(batch, dict) else [batch]
        self.given.append((str([(ids, extra) for _, _, ids, extra in batches]), drawn))


def fit(folder, loaders, callbacks=(), **options):
    """Two epochs with a checkpoint within each."""
    torch.manual_seed(3)
    np.random.seed(3)
    random.seed(3)
    module = Given()
    saving = ModelCheckpoint(folder, "{step}", every_n_train_steps=4, save_top_k=-1)
    settings = {"max_epochs": 2, "limit_train_batches": 6, "enable_checkpointing": True}
    trainer(folder, *callbacks, saving, **settings).fit(module, loaders, plain_loader(VALIDATION), **options)
    return module


@pytest.mark.parametrize("kind", LOADERS)
def test_training_reads_what_it_reads_without_the_callback(tmp_path, kind):
    plain = fit(tmp_path / "plain", LOADERS[kind]())
    callback = lcs(recalibration={"images": 20, "levels": [0.0], "every_checkpoint": True})
    ours = fit(tmp_path / "ours", LOADERS[kind](), [callback])
    assert ours.given == plain.given
    assert len(ours.given) > 6
    statistics = torch.load(tmp_path / "ours/step=4.ckpt", weights_only=True)["lightning_lcs"]["statistics"]
    assert statistics, "of images within the epoch"
    resumed = fit(tmp_path / "plain", LOADERS[kind](), ckpt_path=tmp_path / "plain/step=4.ckpt")
    ours = fit(tmp_path / "ours", LOADERS[kind](), [callback], ckpt_path=tmp_path / "ours/step=4.ckpt")
    assert ours.given == resumed.given


def test_without_copies_training_reads_something_else(tmp_path, monkeypatch):
    plain = fit(tmp_path / "plain", LOADERS["itself"]())
    monkeypatch.setattr(loaders_of_training, "copied", lambda loader, strict=True: (loader, []))
    ours = fit(tmp_path / "ours", LOADERS["itself"](), [lcs(recalibration={"every_checkpoint": True})])
    assert ours.given != plain.given


def test_an_open_file_goes_on(tmp_path):
    given = []
    (tmp_path / "bytes").write_bytes(bytes(range(COUNT)))
    for callbacks in ([], [lcs(recalibration={"every_checkpoint": True})]):
        with (tmp_path / "bytes").open("rb") as file:
            given.append(fit(tmp_path / str(len(callbacks)), loader(Reading(file)), callbacks).given)
    assert given[0] == given[1]


@pytest.mark.parametrize(
    ("loaders", "allowed"),
    [
        (lambda: loader(sampler=SubsetRandomSampler(range(5, 45))), range(5, 45)),
        (lambda: loader(sampler=WeightedRandomSampler((LABELS < 3).double(), 50)), (LABELS < 3).nonzero().flatten()),
        (lambda: DataLoader(Plain(), batch_sampler=BatchSampler(range(20), 10, False)), range(20)),
        (lambda: loader(shuffle=False), range(60)),
    ],
    ids=["subset", "weighted", "batch sampler", "all"],
)
def test_no_image_is_read_that_training_does_not_draw(tmp_path, loaders, allowed):
    read = set()

    class Tells(Plain):
        def __getitem__(self, index):
            read.add(index)
            return super().__getitem__(index)

    made = loaders()
    object.__setattr__(made, "dataset", Tells())
    module = fit(tmp_path, made, [lcs()])
    assert read <= {int(index) for index in allowed}
    assert set(module.read) == read


def test_the_images_are_those_of_whole_batches_of_an_epoch(tmp_path):
    """Sorted data, in batches of one kind each: so are the batches of recalibration, and they are spread out."""
    batches = []

    class Sorted(Given):
        def training_step(self, batch, batch_idx):
            if not torch.is_grad_enabled():
                batches.append(batch[2].tolist())
            return super().training_step(batch, batch_idx)

    callback = lcs(recalibration={"images": 30, "levels": [0.0]}, alphas=[0.0, 1.0])
    trainer(tmp_path, callback).fit(Sorted(), loader(), plain_loader(VALIDATION))
    assert len(batches) == 3
    assert all(batch == list(range(batch[0], batch[0] + 10)) for batch in batches)
    assert sorted(batch[0] for batch in batches) != [0, 10, 20], "the first ones"


class FromOutside(IterableDataset):
    """Goes on with an iterator that it was given."""

    def __init__(self, iterator):
        self.iterator = iterator

    def __iter__(self):
        return self.iterator


def endlessly():
    while True:
        yield from map(sample, range(COUNT))


@pytest.mark.parametrize(
    "loaders",
    [
        lambda: loader(FromOutside(endlessly())),
        lambda: (batch for batch in loader()),
        lambda: loader(sampler=FromOutside(index for index in range(COUNT))),
    ],
    ids=["data set", "loader", "sampler"],
)
def test_what_cannot_go_on_is_refused_before_training(tmp_path, loaders):
    module = Given()
    match = r"what the loader reads from can't be copied \(generator\): make it in the __iter__"
    with pytest.raises(RuntimeError, match=match):
        trainer(tmp_path, lcs(), limit_train_batches=2).fit(module, loaders(), plain_loader(VALIDATION))
    assert module.given == []
    # Without statistics nothing is read beside training.
    trainer(tmp_path, lcs(recalibration={"images": 0}), limit_train_batches=2).fit(
        module, loaders(), plain_loader(VALIDATION)
    )
    assert len(module.given) == 2


def test_copies_share_what_is_large_and_what_cannot_be_copied():
    large, small = torch.zeros(2**20), torch.zeros(3)

    class Holds(Plain):
        def __init__(self):
            self.large, self.small, self.network, self.handle = large, small, torch.nn.Linear(2, 2), memoryview(b"x")
            self.transform = lambda image: image

    original = Holds()
    sampler = RandomSampler(original, generator=torch.Generator().manual_seed(0))
    copy, left_out = copied(loader(original, sampler=sampler))
    assert left_out == []
    assert copy.dataset is not original
    assert copy.sampler.data_source is copy.dataset
    assert copy.sampler.generator is not sampler.generator
    for name in ("large", "network", "handle", "transform"):
        assert getattr(copy.dataset, name) is getattr(original, name), name
    copy.dataset.small += 1
    assert small.sum() == 0
    with_workers, _ = copied(loader(original, num_workers=1, shuffle=True))
    assert with_workers.dataset is original, "each worker copies it"
