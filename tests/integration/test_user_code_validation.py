"""Validation loaders with a state: the levels of a curve leave no trace in what training and validation read.

Each kind of loader is used twice, in plain Lightning and with a rehearsal and a curve after each validation. The
batches of training and of the user's own validations have to be equal, and the levels have to see the same ones.
"""

import random

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, RandomSampler, Sampler, TensorDataset

from tests.integration.support import Module, digits, lcs, trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:Your `val_dataloader`'s sampler has shuffling enabled"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning"),
]

COUNT = 24
IMAGES, LABELS = digits(0, COUNT).tensors


def sample(index, extra=0):
    return IMAGES[index], LABELS[index], int(index), extra


class Plain(Dataset):
    def __len__(self):
        return COUNT

    def __getitem__(self, index):
        return sample(index)


class Drawing(Plain):
    """Draws from generators of its own, counts, and has what can't be copied."""

    def __init__(self):
        self.generators = {"numpy": np.random.default_rng(0), "old": np.random.RandomState(0), "own": random.Random(0)}
        self.reads = torch.zeros(())
        self.handle = memoryview(b"no copies")

    def __getitem__(self, index):
        self.reads += 1
        numpy, old, own = self.generators.values()
        return sample(index, (self.reads.item(), int(numpy.integers(99)), old.randint(99), own.randrange(99)))


class Going(IterableDataset):
    """Goes on where it stopped."""

    def __init__(self):
        self.position = 0

    def __iter__(self):
        while True:
            self.position += 1
            yield sample(self.position % COUNT, self.position)


class Jumping(IterableDataset):
    """Begins each pass at a place that the generator of its process draws."""

    def __iter__(self):
        start = int(torch.randint(1000, ()))
        for index in range(start, start + COUNT):
            yield sample(index % COUNT, index)


class InPlace(Sampler):
    """Shuffles its list anew in each pass, as people write it."""

    def __init__(self, order, shuffle):
        self.order, self.shuffle = order, shuffle

    def __len__(self):
        return COUNT

    def __iter__(self):
        self.shuffle(self.order)
        return iter(self.order)


class Endless(DataLoader):
    """Keeps one iterator for all passes."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.iterator = super().__iter__()

    def __iter__(self):
        for _ in range(2):
            yield next(self.iterator)


class Batches:
    """A loader of the user's own, from a random place each time."""

    def __init__(self):
        self.generator = torch.Generator().manual_seed(1)

    def __iter__(self):
        for index in torch.randperm(COUNT, generator=self.generator).view(-1, 8):
            yield IMAGES[index], LABELS[index], index, 0


def seeded(seed=1):
    return torch.Generator().manual_seed(seed)


def loader(dataset=None, kind=DataLoader, **options):
    return kind(Plain() if dataset is None else dataset, **{"batch_size": 8, **options})


def several(shared):
    return [loader(shuffle=True, generator=shared), loader(generator=shared)]


# Each gets the generator of the training loader.
VALIDATION = {
    "shared generator": lambda shared: loader(generator=shared),
    "shared generator, shuffled, two loaders": several,
    "shared generator, workers": lambda shared: loader(generator=shared, num_workers=1),
    "shuffled": lambda _: loader(shuffle=True),
    "shuffled by its own generator": lambda _: loader(shuffle=True, generator=seeded()),
    "batch sampler": lambda _: DataLoader(Plain(), batch_sampler=BatchSampler(random_sampler(), 8, False)),
    "list shuffled in place": lambda _: loader(sampler=InPlace(list(range(COUNT)), random.Random(0).shuffle)),
    "array shuffled in place": lambda _: loader(sampler=InPlace(np.arange(COUNT), np.random.default_rng(0).shuffle)),
    "data set that draws": lambda _: loader(Drawing()),
    "data set that goes on": lambda _: loader(Going()),
    "loader of its own": lambda _: Batches(),
}
# Their iterators and workers go on for themselves: levels see the same as each other, and alpha = 1 what it would.
KEPT = {
    "kept workers that draw": lambda _: loader(Jumping(), num_workers=1, persistent_workers=True),
    "kept workers that go on": lambda _: loader(Going(), num_workers=1, persistent_workers=True),
    "kept workers, shared": lambda shared: loader(generator=shared, num_workers=1, persistent_workers=True),
    "kept iterator": lambda _: loader(Going(), Endless),
}


def random_sampler():
    return RandomSampler(Plain(), generator=seeded())


def read(folder, make, callback=None):
    """What is read: by training, by the user's validations, and by the levels of each curve."""
    torch.manual_seed(7)
    training, validations, levels = [], [], []

    def into():
        return validations if callback is None or callback.subspace_model.alpha == 1.0 else levels

    def seen(batch):
        return repr([part.tolist() if isinstance(part, torch.Tensor) else part for part in batch[2:]])

    class Reading(Module):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch[:2], batch_idx)

        def on_train_batch_end(self, outputs, batch, batch_idx):
            training.append(seen(batch))

        def on_validation_epoch_start(self):
            into().append([])

        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            into()[-1].append(seen(batch))
            self.log("val_loss", self.loss(self.net(batch[0]), batch[1]), batch_size=8)

    shared = seeded(0)
    callbacks = [] if callback is None else [callback]
    run = trainer(folder, *callbacks, max_epochs=2, limit_val_batches=2, num_sanity_val_steps=1)
    run.fit(Reading(), loader(shuffle=True, generator=shared), make(shared))
    return training, validations, levels


def measuring():
    return lcs(subspace="point", every_n_epochs=1)


@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")
@pytest.mark.parametrize("kind", [*VALIDATION, *KEPT])
def test_training_and_validation_read_what_they_read_without_the_callback(tmp_path, kind):
    make = {**VALIDATION, **KEPT}[kind]
    training, validations, _ = read(tmp_path, make)
    assert len(validations) == 3
    ours = read(tmp_path, make, measuring())
    assert ours[0] == training
    assert ours[1] == validations
    rehearsal, *levels = ours[2]
    assert (len(rehearsal), len(levels)) == (len(validations[0]), 4)
    for number, validation in enumerate(validations[1:]):
        below = levels[2 * number : 2 * number + 2]
        assert below[0] == below[1]
        assert kind in KEPT or below[0] == validation


def test_large_images_are_not_copied(monkeypatch):
    from lightning_lcs.training.data.loader_state import left_as_found
    from lightning_lcs.training.user_code import snapshot

    kept = []
    original = snapshot._Copy.__init__
    monkeypatch.setattr(snapshot._Copy, "__init__", lambda self, t: (kept.append(t.nbytes), original(self, t))[1])
    images = [torch.zeros(8, 8) for _ in range(1000)]
    with left_as_found([loader(TensorDataset(torch.zeros(600, 600), torch.zeros(600))), loader(images)]):
        pass
    assert kept == [2400]
