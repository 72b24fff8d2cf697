"""What is left behind: nothing on the module, its network or torch, and no tensors."""

import gc
import weakref

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn
from torch.utils import _pytree as pytree

from lightning_lcs.subspace.running.evaluation import Evaluation
from tests.integration.support import Data, Module, digits, lcs, trainer

IMAGES = digits(0, 8).tensors[0]
# The user's hook watches: below alpha = 1 it does not run, and this is said once.
pytestmark = pytest.mark.filterwarnings("ignore:the forward hooks of .* only watch:UserWarning")


class Mine(Module):
    """A user's module with hooks on its network and an error at a given step."""

    def __init__(self, error=None):
        super().__init__()
        self.fails = error
        self.outputs = [0]
        self.net.conv1.register_forward_hook(Counts(self.outputs))

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        if self.fails is not None and batch_idx == 1:
            raise self.fails
        return loss


class Counts:
    """A hook of the user's."""

    def __init__(self, calls):
        self.calls = calls

    def __call__(self, *args):
        self.calls[0] += 1


def once(module, *callbacks, folder, **options):
    trainer(folder, *callbacks, **options).fit(module, datamodule=Data())


def twice(module, *callbacks, folder):
    once(module, *callbacks, folder=folder)
    once(module, *callbacks, folder=folder)


def same_trainer_twice(module, *callbacks, folder):
    run = trainer(folder, *callbacks)
    run.fit(module, datamodule=Data())
    run.fit_loop.max_epochs = 2
    run.fit(module, datamodule=Data())


def interrupted_and_again(module, *callbacks, folder):
    module.fails = KeyboardInterrupt()
    with pytest.raises(SystemExit):
        once(module, *callbacks, folder=folder)
    module.fails = None
    once(module, *callbacks, folder=folder)


def failing(error, expected):
    def run(module, *callbacks, folder):
        module.fails = error
        with pytest.raises(expected):
            once(module, *callbacks, folder=folder)
        module.fails = None

    return run


RUNS = {
    "once": once,
    "twice": twice,
    "same-trainer-twice": same_trainer_twice,
    "exception": failing(ArithmeticError(), ArithmeticError),
    "interrupt": failing(KeyboardInterrupt(), SystemExit),
    "interrupted-and-again": interrupted_and_again,
}
every_run = pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)


def traces(module):
    """What hangs on a module, its children and their parameters, but for second endpoints."""
    found = {"hooks of torch": len(nn.modules.module._global_forward_pre_hooks)}
    for name, child in module.named_modules():
        if "lcs_endpoint_0" in name:
            continue
        attributes = {key: type(value) for key, value in child.__dict__.items() if not key.endswith("_hooks")}
        hooks = {key: list(value.values()) for key, value in child.__dict__.items() if key.endswith("_hooks") and value}
        children = set(child._modules) - {"lcs_endpoint_0"}
        found[name] = attributes, {key: [type(hook) for hook in value] for key, value in hooks.items()}, children
        for key, p in child.named_parameters(recurse=False):
            found[name, key] = p.requires_grad, bool(p._backward_hooks), bool(p._post_accumulate_grad_hooks)
    return found


def assert_same_weights(first, second):
    for name, value in second.state_dict().items():
        assert torch.equal(first.state_dict()[name], value), name


@every_run
@pytest.mark.parametrize("subspace", ["point", "line"])
def test_nothing_is_left_that_a_plain_run_would_not_leave(tmp_path, run, subspace):
    plain, ours = Mine(), Mine()
    run(plain, folder=tmp_path)
    run(ours, lcs(subspace=subspace), folder=tmp_path)
    assert traces(ours) == traces(plain)
    assert set(ours.state_dict()) == set(plain.state_dict())
    for name, p in ours.named_parameters():
        # Those of the last step; where it failed, maybe none.
        partner = name.replace("lcs_endpoint_0.", "")
        assert p.grad is None or plain.get_parameter(partner).grad is not None, name
    assert not any(
        "_hooks" in key and value for key, value in vars(nn.modules.module).items() if key.startswith("_global")
    )


@pytest.mark.parametrize(("reduction", "factor"), [("full_half", 1.0), ("mean", 1.0), ("sum", 3.0)])
def test_gradients_that_no_optimizer_knows_are_the_users(tmp_path, reduction, factor):
    """One that the user has put there stays, and one that nobody clears grows: here by 1 per loss and step."""

    class Extra(Mine):
        def __init__(self):
            super().__init__()
            self.frozen = nn.Parameter(torch.zeros(()), requires_grad=False)
            self.counted = nn.Parameter(torch.zeros(()))

        def on_train_start(self):
            self.frozen.grad = torch.tensor(7.0)

        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) + self.counted

        def configure_optimizers(self):
            return torch.optim.SGD(self.net.parameters(), 0.1)

        def on_validation_model_zero_grad(self):
            """Lightning clears all of them here."""

    plain, ours = Extra(), Extra()
    once(plain, folder=tmp_path)
    assert (plain.frozen.grad, plain.counted.grad) == (7.0, 3.0)
    once(ours, lcs(loss={"reduction": reduction}), folder=tmp_path)
    assert (ours.frozen.grad, ours.counted.grad) == (7.0, 3.0 * factor)


@every_run
def test_it_trains_on_without_the_callback(tmp_path, run):
    """As a module that was never touched, with the same weights."""
    ours, plain = Mine(), Mine()
    run(ours, lcs(subspace="point"), folder=tmp_path)
    plain.load_state_dict(ours.state_dict())
    ours.train()
    once(ours, folder=tmp_path)
    once(plain, folder=tmp_path)
    assert_same_weights(ours, plain)


def test_the_users_hooks_are_called_at_the_full_level_only(tmp_path):
    """Once per forward of the user's at alpha = 1, and not by what is traced for the levels below it."""
    plain, ours = Mine(), Mine()
    once(plain, folder=tmp_path)
    once(ours, lcs(), folder=tmp_path)
    assert plain.outputs == [6]
    assert ours.outputs == [6]


def tensors_in(thing):
    return [leaf for leaf in pytree.tree_leaves(thing) if isinstance(leaf, torch.Tensor)]


class Alive:
    """Watches the tensors that a subspace model prepares for its levels."""

    def __init__(self, monkeypatch):
        self.prepared = []
        original = Evaluation._tensors

        def spy(evaluation, part, execution, level):
            ready = original(evaluation, part, execution, level)
            module = part.network.module
            own = {id(tensor) for tensor in tensors_in([*module.parameters(), *module.buffers(), level.statistics])}
            self.prepared += [weakref.ref(tensor) for tensor in tensors_in(ready) if id(tensor) not in own]
            return ready

        monkeypatch.setattr(Evaluation, "_tensors", spy)

    def count(self):
        return sum(reference() is not None for reference in self.prepared)


@pytest.mark.parametrize("subspace", ["point", "line"])
def test_no_levels_tensors_are_kept_alive(tmp_path, monkeypatch, subspace):
    alive, callback = (
        Alive(monkeypatch),
        lcs(subspace=subspace, alphas=5, recalibration={"levels": 5}, every_n_epochs=1),
    )
    once(Mine(), callback, folder=tmp_path, max_epochs=2)
    assert len(alive.prepared) > 0
    gc.collect()
    assert alive.count() == 0
    assert not callback.subspace_model.runner.evaluation._ready
    model = callback.subspace_model.eval()
    for alpha in (0.25, 0.75, 0.25):
        model.set_alpha(alpha)
        with torch.no_grad():
            model(IMAGES)
        gc.collect()
        # Those of the level that is set, and of no other.
        assert 0 < alive.count() <= len(tensors_in(list(model.runner.evaluation._ready.values())))


def test_as_many_tensors_after_every_epoch(tmp_path):
    """Counted among all objects, whoever keeps them."""

    class Counted(Callback):
        def __init__(self):
            self.counts = []

        def on_train_epoch_start(self, trainer, pl_module):
            gc.collect()
            self.counts.append(sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects()))

    counted = Counted()
    once(Mine(), lcs(every_n_epochs=1), counted, folder=tmp_path, max_epochs=4)
    # From the second epoch on everything has been traced and stored once.
    assert len(set(counted.counts[2:])) == 1
