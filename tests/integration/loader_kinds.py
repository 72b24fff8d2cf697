"""Kinds of loaders, samplers and data sets with a state."""

import itertools
import random

import numpy as np
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from tests.integration.support import digits

COUNT = 60
IMAGES, LABELS = digits(0, COUNT).tensors
VALIDATION = digits(COUNT, 16)


def sample(index, extra=0):
    return IMAGES[index], LABELS[index], torch.as_tensor(index), extra


class Plain(Dataset):
    """Images with their labels and their numbers."""

    def __len__(self):
        return COUNT

    def __getitem__(self, index):
        return sample(index)


class Remembering(Plain):
    """Counts what is read, and draws from a generator of its own."""

    def __init__(self):
        self.counts = {"read": 0}
        self.generator = np.random.default_rng(0)
        self.noise = self.generator.integers  # a bound method

    def __getitem__(self, index):
        self.counts["read"] += 1
        return sample(index, (self.counts["read"], int(self.noise(1000))))


class Closing(Remembering):
    """Holds what can't be copied, and closes it when it ends."""

    def __init__(self):
        super().__init__()
        self.shared = {"open": True}
        self.handle = memoryview(b"no copies")

    def __getitem__(self, index):
        assert self.handle[0] == ord("n")
        return super().__getitem__(index)

    def __del__(self):
        self.handle.release()


class Wrapper(Dataset):
    """Looks for all that it lacks in what it wraps."""

    def __init__(self):
        self.inner = Remembering()

    def __len__(self):
        return COUNT

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def __getitem__(self, index):
        return self.inner[index]


class Queried(Plain):
    """By dictionaries, as geographic data are."""

    def __getitem__(self, query):
        return sample(query["tile"])


class Queries(Sampler):
    """Keys that are no integers, from Python's own generator."""

    def __init__(self):
        pass

    def __len__(self):
        return 40

    def __iter__(self):
        for _ in range(40):
            yield {"tile": random.randrange(COUNT)}


class Going(Sampler):
    """Its own iterator: an epoch begins where the last one ended."""

    def __init__(self, length):
        self.length, self.position = length, 0

    def __len__(self):
        return self.length

    def __iter__(self):
        return self

    def __next__(self):
        self.position += 7
        return self.position % COUNT


class Varying(Sampler):
    """Batches of several sizes, with an epoch of their own."""

    def __init__(self):
        self.epoch = 0

    def __len__(self):
        return 6

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        order = np.random.permutation(COUNT) + 0 * self.epoch
        order = np.roll(order, self.epoch)
        yield from (part.tolist() for part in np.split(order, [4, 14, 20, 40, 50]))


class Rows(Plain):
    def __getitem__(self, rows):
        assert isinstance(rows, list)
        return sample(torch.tensor(rows), torch.zeros(len(rows)))


class Itself(IterableDataset):
    """Is its own iterator, with a buffer."""

    def __init__(self):
        self.position, self.passes = 0, 0
        self.buffer = []

    def __iter__(self):
        self.passes += 1
        self.position = 0
        self.buffer = []
        return self

    def __next__(self):
        if not self.buffer:
            if self.position >= COUNT:
                raise StopIteration
            self.buffer = list(range(self.position, self.position + 6))[:: (-1) ** self.passes]
            self.position += 6
        return sample(self.buffer.pop(), self.passes)


class Reading(IterableDataset):
    """Reads on from a file."""

    def __init__(self, file):
        self.file = file

    def __iter__(self):
        for _ in range(40):
            byte = self.file.read(1)
            if not byte:
                self.file.seek(0)
                byte = self.file.read(1)
            yield sample(byte[0])


class OneIterator(DataLoader):
    """Keeps one iterator, and its workers, for all epochs."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        object.__setattr__(self, "batch_sampler", Endless(self.batch_sampler))
        self.iterator = super().__iter__()

    def __len__(self):
        return len(self.batch_sampler.sampler)

    def __iter__(self):
        for _ in range(len(self)):
            yield next(self.iterator)


class Endless:
    def __init__(self, sampler):
        self.sampler = sampler

    def __iter__(self):
        while True:
            yield from self.sampler


class Counting(DataLoader):
    """Has an iteration of its own, which tells the data set of its epochs and may be resumed."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.epoch, self.given = 0, 0
        self.begin = 0

    def __iter__(self):
        self.epoch += 1
        self.dataset.passes = self.epoch
        self.given, self.begin = self.begin, 0
        for batch in itertools.islice(super().__iter__(), self.given, None):
            self.given += 1
            yield batch

    def state_dict(self):
        return {"epoch": self.epoch - 1, "given": self.given}

    def load_state_dict(self, state):
        self.epoch, self.begin = state["epoch"], state["given"]


class Around:
    """No DataLoader, around one."""

    def __init__(self, loader):
        self.loader, self.passes = loader, 0

    def __len__(self):
        return len(self.loader)

    def __iter__(self):
        self.passes += 1
        for images, labels, ids, _ in self.loader:
            yield images, labels, ids, torch.full_like(ids, self.passes)


class OwnIterator:
    """No DataLoader, and its own iterator."""

    def __init__(self):
        self.batches = iter(())

    def __len__(self):
        return 6

    def __iter__(self):
        self.batches = iter(loader())
        return self

    def __next__(self):
        return next(self.batches)


def loader(dataset=None, batch_size=10, **options):
    return DataLoader(Plain() if dataset is None else dataset, batch_size=batch_size, **options)


def shared_generator(**options):
    generator = torch.Generator().manual_seed(0)
    return loader(sampler=RandomSampler(Plain(), generator=generator), generator=generator, **options)


LOADERS = {
    "shuffled": lambda: loader(shuffle=True),
    "workers": lambda: loader(shuffle=True, num_workers=1, multiprocessing_context="fork"),
    "subset": lambda: loader(sampler=SubsetRandomSampler(range(5, 45))),
    "weighted": lambda: loader(sampler=WeightedRandomSampler((LABELS < 3).double(), 50)),
    "shared generator": shared_generator,
    "shared generator, workers": lambda: shared_generator(num_workers=1, multiprocessing_context="fork"),
    "queries": lambda: loader(Queried(), sampler=Queries()),
    "own position": lambda: loader(sampler=Going(50)),
    "endless": lambda: loader(sampler=Going(2**40)),
    "batch sampler": lambda: DataLoader(Plain(), batch_sampler=Varying()),
    "no batch size": lambda: DataLoader(
        Rows(), batch_size=None, sampler=BatchSampler(RandomSampler(Plain()), 9, False)
    ),
    "counters": lambda: loader(Remembering(), shuffle=True),
    "closing": lambda: loader(Closing(), shuffle=True),
    "wrapped": lambda: loader(Wrapper(), shuffle=True),
    "itself": lambda: loader(Itself()),
    "one iterator": lambda: OneIterator(Remembering(), batch_size=10, shuffle=True),
    "own iteration": lambda: Counting(Remembering(), batch_size=10),
    "own iteration of itself": lambda: Counting(Itself(), batch_size=10),
    "around": lambda: Around(loader(Remembering(), shuffle=True)),
    "own iterator": OwnIterator,
    "several": lambda: {"a": loader(Remembering(), shuffle=True), "b": loader(Itself())},
}
