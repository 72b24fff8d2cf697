"""Loaders of other kinds, and Lightning's limits on them: the run is the one on a plain loader of such data."""

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import IterableDataset

from tests.integration.support import Net, digits, group_norm, lcs, loader, trainer
from tests.integration.test_batches import Shaped, assert_same, fit, plain

# Means of the same float32 losses near 2.3, in batches of other sizes.
METRIC_TOLERANCE = 1e-5


class Stream(IterableDataset):
    """Images without a length."""

    def __init__(self, start, count):
        self.start, self.count = start, count

    def __iter__(self):
        yield from digits(self.start, self.count)


def test_iterable_datasets(tmp_path):
    """For training, whose recalibration takes them as they come, and for validation."""
    torch.manual_seed(3)
    ours = fit(tmp_path, Shaped(), loader(Stream(0, 48)), loader(Stream(48, 40)), max_epochs=2)
    torch.manual_seed(3)
    expected = plain(tmp_path, max_epochs=2)
    for name, value in expected[0].items():
        assert torch.equal(ours[0][name], value), name
    assert ours[1].keys() == expected[1].keys()
    assert ours[2][-1] == expected[2][-1]


def test_an_endless_dataset_with_limits(tmp_path):
    class Endless(IterableDataset):
        def __iter__(self):
            while True:
                yield from digits(0, 48)

    torch.manual_seed(3)
    limits = {"limit_train_batches": 3, "limit_val_batches": 2}
    ours = fit(tmp_path, Shaped(), loader(Endless()), loader(Endless()), **limits)
    expected = plain(tmp_path, val=loader(digits(0, 48)), **limits)
    for name, value in expected[0].items():
        assert torch.equal(ours[0][name], value), name
    assert ours[2][-1] == expected[2][-1]


def both(batch):
    """Images and labels of two loaders; the shorter one may have ended."""
    assert set(batch) == {"a", "b"}
    pairs = [pair for pair in batch.values() if pair is not None]
    return tuple(torch.cat(parts) for parts in zip(*pairs, strict=True))


@pytest.mark.parametrize("mode", ["min_size", "max_size", "max_size_cycle"])
def test_validation_on_several_loaders_at_once(tmp_path, mode):
    """The metrics of each level, alpha = 1 included, are those that Lightning's own pass gives."""

    def loaders(start):
        return CombinedLoader({"a": loader(digits(start, 48)), "b": loader(digits(start + 48, 32))}, mode)

    callback, module = lcs(), Shaped(both)
    *_, curve = fit(tmp_path, module, loaders(0), loaders(100), callback)
    for point, alpha in zip(curve, (0.0, 0.5, 1.0), strict=True):
        with callback.subspace_model.at_alpha(alpha):
            (found,) = trainer(tmp_path, callback).validate(module, loaders(100), verbose=False)
        assert point == pytest.approx({name: found[name] for name in ("val_acc", "val_loss")}, abs=METRIC_TOLERANCE)


@pytest.mark.parametrize(
    ("options", "train", "val"),
    [
        ({"fast_dev_run": True}, 1, 1),
        ({"fast_dev_run": 2}, 2, 2),
        ({"overfit_batches": 2}, 2, 2),
        ({"overfit_batches": 0.5}, 1, 1),
        ({"limit_train_batches": 0.7, "limit_val_batches": 0.7}, 2, 2),
        ({"limit_train_batches": 2, "limit_val_batches": 1, "max_epochs": 2}, 2, 1),
    ],
    ids=lambda given: "-".join(given) if isinstance(given, dict) else str(given),
)
def test_limits(tmp_path, options, train, val):
    """The run on so many batches and no more."""

    def run(images, others, **options):
        torch.manual_seed(3)
        # Without batch norm: its statistics may be taken from any of the training images.
        module = Shaped(net=Net(group_norm))
        trained, _, curve = fit(tmp_path, module, loader(digits(0, images)), loader(digits(48, others)), **options)
        return trained, curve

    ours, curve = run(48, 40, **options)
    expected, expected_curve = run(16 * train, 16 * val, max_epochs=options.get("max_epochs", 1))
    for name, value in expected.items():
        assert torch.equal(ours[name], value), name
    assert len(curve) == 3
    assert curve == expected_curve


@pytest.mark.parametrize("every_n_epochs", [None, 1])
def test_persistent_workers_in_validation(tmp_path, every_n_epochs):
    """The curve's passes neither stop the workers nor take batches from Lightning's own."""
    workers = {"num_workers": 1, "persistent_workers": True, "multiprocessing_context": "fork"}
    options = {"max_epochs": 3, "callback": lcs(every_n_epochs=every_n_epochs)}
    torch.manual_seed(3)
    ours = fit(tmp_path, Shaped(), loader(digits(0, 48)), loader(digits(48, 40), **workers), **options)
    assert_same(ours, plain(tmp_path, max_epochs=3))


class OneAtATime:
    """No DataLoader, and its own iterator, as loaders outside of torch often are: a second pass ends the first."""

    def __init__(self):
        self.batches = list(loader(digits(0, 48)))
        self.position = 0

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        self.position = 0
        return self

    def __next__(self):
        if self.position == len(self.batches):
            raise StopIteration
        self.position += 1
        return self.batches[self.position - 1]


@pytest.mark.parametrize("every_n_train_steps", [3, 1])
def test_a_loader_that_is_its_own_iterator(tmp_path, every_n_train_steps):
    """Checkpoints within an epoch, whose statistics need images, take none from the training."""
    saving = ModelCheckpoint(tmp_path, every_n_train_steps=every_n_train_steps)
    torch.manual_seed(3)
    module = Shaped()
    run = trainer(tmp_path, lcs(), saving, enable_checkpointing=True, max_epochs=2)
    run.fit(module, OneAtATime(), loader(digits(48, 40)))
    assert run.global_step == 6
    expected = plain(tmp_path, max_epochs=2)[0]
    for name, value in module.named_parameters():
        assert torch.equal(value, expected[name]), name
