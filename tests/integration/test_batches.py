"""Batches of other types: the run is the one on pairs of images and labels, at every level."""

import dataclasses
import functools
from collections import namedtuple

import pytest
import torch
from lightning.pytorch.utilities.data import warning_cache
from torch import Tensor

from tests.integration.support import Module, digits, lcs, loader, trainer


@pytest.fixture(autouse=True)
def _nothing_warned_before():
    """Lightning gives this warning once per process."""
    warning_cache.clear()


@dataclasses.dataclass
class Labelled:
    images: Tensor
    labels: Tensor


@dataclasses.dataclass
class Named(Labelled):
    source: str = "digits"


Pair = namedtuple("Pair", ["images", "labels"])


class Custom:
    """A batch that only the user's own hook can move."""

    def __init__(self, images, labels):
        self.images, self.labels = images, labels


def by_key(batch):
    return batch["images"], batch["labels"]


def by_attribute(batch):
    return batch.images, batch.labels


# What the user's collate function makes of images and labels, and how the steps read it.
COLLATE = {
    "dict": (lambda images, labels: {"images": images, "labels": labels}, by_key),
    "dict with names": (lambda images, labels: {"images": images, "labels": labels, "names": ["digit"] * 16}, by_key),
    "dict with weights": (
        lambda images, labels: {"weights": torch.ones(10), "images": images, "labels": labels},
        by_key,
    ),
    "tuple": (lambda images, labels: (images, labels), lambda batch: batch),
    "named tuple": (Pair, by_attribute),
    "nested": (lambda images, labels: [{"images": (images,)}, labels], lambda batch: (batch[0]["images"][0], batch[1])),
    "dataclass": (Labelled, by_attribute),
    "dataclass with a name": (Named, by_attribute),
    "custom": (Custom, by_attribute),
}


class Shaped(Module):
    """A user's module whose batches have another shape, and that says of what size they are."""

    def __init__(self, pair=lambda batch: batch, net=None):
        super().__init__(net)
        self.pair = pair
        self.seen = set()

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        self.seen.add(type(batch))
        if isinstance(batch, Custom):
            return Custom(batch.images.to(device), batch.labels.to(device))
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def training_step(self, batch, batch_idx):
        images, labels = self.pair(batch)
        loss = self.loss(self.net(images), labels)
        self.log("train_loss", loss, on_step=True, on_epoch=True, batch_size=len(labels))
        return loss

    def validation_step(self, batch, batch_idx):
        images, labels = self.pair(batch)
        logits = self.net(images)
        self.val_acc(logits, labels)
        self.log("val_acc", self.val_acc, batch_size=len(labels))
        self.log("val_loss", self.loss(logits, labels), batch_size=len(labels))


def fit(folder, module, train, val, callback=None, **options):
    callback = callback or lcs()
    trainer(folder, callback, **options).fit(module, train, val)
    return dict(module.named_parameters()), callback.subspace_model.statistics, [p.metrics for p in callback.curve]


def plain(folder, train=None, val=None, **options):
    """The run on pairs of images and labels."""
    torch.manual_seed(3)
    return fit(folder, Shaped(), train or loader(digits(0, 48)), val or loader(digits(48, 40)), **options)


def assert_same(ours, expected):
    """Weights, statistics, and the curve: the same operations on the same numbers."""
    for name, value in expected[0].items():
        assert torch.equal(ours[0][name], value), name
    assert ours[1].keys() == expected[1].keys() == {0.0, 0.5}
    for alpha, tensors in expected[1].items():
        for name, value in tensors.items():
            assert torch.equal(ours[1][alpha][name], value), name
    assert len(ours[2]) == 3
    assert ours[2] == expected[2]


def collate(make, samples):
    images, labels = zip(*samples, strict=True)
    return make(torch.stack(images), torch.stack(labels))


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    return plain(tmp_path_factory.mktemp("plain"))


@pytest.mark.parametrize(
    "kind",
    list(COLLATE),
)
def test_batches_of_other_types(tmp_path, kind, expected):
    """No warning, either, that the run without the callback does not give."""
    make, pair = COLLATE[kind]
    options = {"collate_fn": functools.partial(collate, make)}
    loaders = loader(digits(0, 48), **options), loader(digits(48, 40), **options)
    trainer(tmp_path).fit(Shaped(pair), *loaders)
    torch.manual_seed(3)
    module = Shaped(pair)
    ours = fit(tmp_path, module, *loaders)
    assert_same(ours, expected)
    assert len(module.seen) == 1


def test_a_module_with_a_log_of_its_own(tmp_path):
    class Prefixed(Shaped):
        def log(self, name, value, **options):
            super().log(f"mine/{name}", value, **options)

    torch.manual_seed(3)
    *_, curve = fit(tmp_path, Prefixed(), loader(digits(0, 48)), loader(digits(48, 40)))
    expected = plain(tmp_path)[2]
    assert curve == [{f"mine/{name}": value for name, value in point.items()} for point in expected]
