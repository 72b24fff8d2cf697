"""The same run with and without something beside LCSCallback, and what has to be equal."""

import pytest
import torch
from lightning.pytorch import Callback

from tests.integration.support import Module, digits, lcs, loader, trainer

either_order = pytest.mark.parametrize("first", [True, False], ids=["before", "after"])


class Mine(Module):
    """A user's module that brings its own data, as the finders want it."""

    def __init__(self, net=None, lr=0.1, batch_size=16):
        super().__init__(net, lr)
        self.batch_size = batch_size

    def train_dataloader(self):
        return loader(digits(0, 48), self.batch_size)

    def val_dataloader(self):
        return loader(digits(48, 40))

    def configure_optimizers(self):
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], self.lr, momentum=0.9)


def fit(folder, *others, first=True, make=Mine, callback=None, **options):
    """A trained module, its callback and the trainer, from the same start each time."""
    torch.manual_seed(3)
    module, callback = make(), callback or lcs()
    order = [*others, callback] if first else [callback, *others]
    run = trainer(folder, *order, **options)
    run.fit(module)
    return module, callback, run


def assert_same_training(first, second):
    """Weights, both endpoints and running statistics; bitwise, since the same operations ran."""
    mine, theirs = dict(first.named_parameters()), dict(second.named_parameters())
    assert mine.keys() == theirs.keys()
    assert any("lcs_endpoint_0" in name for name in mine)
    for name, value in mine.items():
        assert torch.equal(value, theirs[name]), name
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


def assert_same_curve(first, second):
    assert len(first.curve) > 1
    assert [point.metrics for point in first.curve] == [point.metrics for point in second.curve]


class Endpoints(Callback):
    """Both endpoints of the line at the start of every epoch and at the end, and what is on the line."""

    def __init__(self, callback):
        self.callback = callback
        self.seen = []
        self.groups = []

    def take(self, trainer):
        pairs = self.callback.subspace_model.endpoint_pairs()
        self.seen.append([(w0.detach().clone(), w1.detach().clone()) for w0, w1 in pairs])
        groups = [set(map(id, group["params"])) for group in trainer.optimizers[0].param_groups]
        self.groups.append([(sum(id(w0) in g for g in groups), sum(id(w1) in g for g in groups)) for w0, w1 in pairs])

    def on_train_epoch_start(self, trainer, pl_module):
        self.take(trainer)

    def on_train_end(self, trainer, pl_module):
        self.take(trainer)
