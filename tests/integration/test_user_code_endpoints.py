"""User code that goes through ``parameters()`` while a line is trained: pairs by position stay pairs."""

import copy
from itertools import chain

import pytest
import torch
from lightning.pytorch import Callback
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tests.integration import support
from tests.integration.support import Data, Module, Net, group_norm, trainer

DECAY = 0.5
# Averages of values near 1 in float32, by two formulas.
TOLERANCE = 1e-6

pytestmark = pytest.mark.filterwarnings("ignore:no validation data. the accuracy-efficiency curve:UserWarning")


def lcs(**options):
    """Every parameter on the line. This mode needs no trace, so that each run takes less than a second."""
    defaults = {"mode": "unstructured", "sampling": {"warmup": 0.0}, "line": {"parameters": "all"}}
    return support.lcs(**{**defaults, **options})


class Followed(Callback):
    """An average of a network's parameters and buffers by name, as it has to come out."""

    def __init__(self, net):
        self.average = {name: value.detach().clone() for name, value in net.state_dict().items()}

    def on_train_batch_end(self, trainer, pl_module, *args):
        for name, value in pl_module.net.state_dict().items():
            mean = self.average[name]
            if value.is_floating_point():
                mean.mul_(DECAY).add_(value, alpha=1 - DECAY)
            else:
                mean.copy_(value)


def averaged(means, values):
    with torch.no_grad():
        for mean, value in zip(means, values, strict=False):  # as people write it
            if value.is_floating_point():
                mean.mul_(DECAY).add_(value, alpha=1 - DECAY)
            else:
                mean.copy_(value)


def assert_averaged(state, followed):
    assert state.keys() == followed.average.keys()
    for name, value in state.items():
        if value.is_floating_point():  # torch averages counts of batches in its own way
            assert torch.allclose(value, followed.average[name], rtol=0.0, atol=TOLERANCE), name


def tensors(net):
    return chain(net.parameters(), net.buffers())


class Teacher(Module):
    """A momentum teacher, as in MoCo, BYOL and DINO, updated in one of the places where people do that."""

    def __init__(self, net=None):
        super().__init__(net)
        self.teacher = copy.deepcopy(self.net).requires_grad_(False)

    def update(self):
        averaged(tensors(self.teacher), tensors(self.net))

    def teacher_state(self):
        return self.teacher.state_dict()


class AtTheEndOfABatch(Teacher):
    def on_train_batch_end(self, *args):
        self.update()


class InTheOptimizerStep(Teacher):
    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None):
        optimizer.step(closure=optimizer_closure)
        self.update()


class MadeInSetup(AtTheEndOfABatch):
    def __init__(self):
        Module.__init__(self)

    def setup(self, stage):
        self.teacher = copy.deepcopy(self.net).requires_grad_(False)


class MadeInAHook(AtTheEndOfABatch):
    def __init__(self):
        Module.__init__(self)

    def on_fit_start(self):
        self.teacher = copy.deepcopy(self.net).requires_grad_(False)


class MadeWithTheOptimizer(AtTheEndOfABatch):
    def __init__(self):
        Module.__init__(self)

    def configure_optimizers(self):
        self.teacher = copy.deepcopy(self.net).requires_grad_(False)
        return torch.optim.SGD(self.net.parameters(), self.lr)


class Lists(Module):
    """Averages in a list, which knows nothing of names, made in ``__init__``."""

    def __init__(self):
        super().__init__()
        self.shadow = [value.detach().clone() for value in tensors(self.net)]

    def on_train_batch_end(self, *args):
        averaged(self.shadow, tensors(self.net))

    def teacher_state(self):
        names = [name for name, _ in chain(self.net.named_parameters(), self.net.named_buffers())]
        names = [name for name in names if "lcs_endpoint" not in name]
        return dict(zip(names, self.shadow, strict=True))


class ByTorch(Module):
    def __init__(self):
        super().__init__()
        average = get_ema_multi_avg_fn(DECAY)
        self.teacher = AveragedModel(self.net, multi_avg_fn=average, use_buffers=True).requires_grad_(False)
        self.teacher.n_averaged += 1  # else the first update is a copy

    def on_train_batch_end(self, *args):
        self.teacher.update_parameters(self.net)

    def teacher_state(self):
        return self.teacher.module.state_dict()


KINDS = [AtTheEndOfABatch, InTheOptimizerStep, MadeInSetup, MadeInAHook, MadeWithTheOptimizer, Lists, ByTorch]


def fit(module, folder, callback=None, **options):
    callback = callback or lcs(target="net")
    followed = Followed(module.net)
    trainer(folder, followed, callback, limit_val_batches=0, **options).fit(module, datamodule=Data())
    return callback, followed


@pytest.mark.parametrize("kind", KINDS)
def test_averages_are_those_by_name(tmp_path, kind):
    module = kind()
    _, followed = fit(module, tmp_path)
    assert_averaged(module.teacher_state(), followed)


def test_averages_in_structured_mode(tmp_path):
    module = AtTheEndOfABatch()
    _, followed = fit(module, tmp_path, support.lcs(target="net"))
    assert_averaged(module.teacher_state(), followed)


@pytest.mark.parametrize("again", [False, True], ids=["another-callback", "the-same-callback"])
def test_a_second_fit_with_a_copy_that_holds_endpoints(tmp_path, again):
    """Between two fits, the endpoints are parameters of the network, and of a copy made then."""
    module = Teacher()
    callback, _ = fit(module, tmp_path)
    assert any("lcs_endpoint_0" in name for name, _ in module.named_parameters())
    del module.teacher
    twin = AtTheEndOfABatch(module.net)
    _, followed = fit(twin, tmp_path, callback if again else None)
    assert_averaged(twin.teacher_state(), followed)
    assert len(list(twin.teacher.parameters())) == len(list(twin.net.parameters()))


def test_a_copy_made_while_training_has_the_endpoints_of_that_step(tmp_path):
    """It is the user's network, and a callback that takes it over later goes on from both endpoints."""

    class Copies(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if batch_idx == 1:
                self.twin = copy.deepcopy(pl_module.net)
                self.pairs = [w.detach().clone() for w, _ in callback.subspace_model.endpoint_pairs()]

    callback, copies = lcs(), Copies()
    module = Module()
    trainer(tmp_path, callback, copies, limit_val_batches=0).fit(module, datamodule=Data())
    assert [name for name, _ in copies.twin.named_parameters()] == [name for name, _ in Net().named_parameters()]
    again = lcs()
    trainer(tmp_path, again, max_epochs=0).fit(Module(copies.twin), datamodule=Data())
    found = again.subspace_model.endpoint_pairs()
    assert all(torch.equal(w, v) for (w, _), v in zip(found, copies.pairs, strict=True))


class Halved(Module):
    """Gradients that a hook of the user changes, all of them through ``parameters()``."""

    def __init__(self, hook):
        super().__init__(Net(group_norm))
        setattr(self, hook, self.halve)

    def halve(self, *args, **kwargs):
        for parameter in self.net.parameters():
            parameter.grad.mul_(0.5)


class Halves(Callback):
    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        for parameter in pl_module.net.parameters():
            parameter.grad.mul_(0.5)


@pytest.mark.parametrize("hook", ["on_after_backward", "on_before_optimizer_step", "configure_gradient_clipping", None])
def test_hooks_on_gradients_reach_both_endpoints(tmp_path, hook):
    """Half of the gradients at a rate twice as high; powers of two change no digit."""
    torch.manual_seed(3)
    plain = Module(Net(group_norm), lr=0.125)
    module, others = (Halved(hook), []) if hook else (Module(Net(group_norm)), [Halves()])
    module.lr = 0.25
    module.net.load_state_dict(plain.net.state_dict())
    for each, more in ((plain, []), (module, others)):
        callback = lcs()
        trainer(tmp_path, callback, *more, limit_val_batches=0).fit(each, datamodule=Data())
    ours, expected = dict(module.net.named_parameters()), dict(plain.net.named_parameters())
    assert any("lcs_endpoint_0" in name for name in ours)
    assert all(torch.equal(ours[name], value) for name, value in expected.items())


def none(parameter):
    parameter.grad = None


@pytest.mark.parametrize(
    ("clear", "left"),
    [(none, False), (lambda p: p.grad.zero_(), False), (lambda p: p.grad.mul_(0.5), True), (None, False)],
    ids=["none", "zero", "kept", "super"],
)
def test_the_hook_that_clears_gradients_sees_the_users_parameters_and_clears_both_endpoints(tmp_path, clear, left):
    seen, found = [], []

    class Clears(Module):
        def on_validation_model_zero_grad(self):
            seen.append([name for name, _ in self.net.named_parameters()])
            if clear is None:
                super().on_validation_model_zero_grad()
            for parameter in self.net.parameters():
                if clear is not None:
                    clear(parameter)

        def on_validation_start(self):
            pairs = callback.subspace_model.endpoint_pairs()
            found.extend(bool(w.grad is not None and w.grad.any()) for pair in pairs for w in pair)

    callback = lcs()
    trainer(tmp_path, callback).fit(Clears(Net(group_norm)), datamodule=Data())
    assert seen == [[name for name, _ in Net(group_norm).named_parameters()]]
    assert found
    assert set(found) == {left}


def test_a_group_that_the_user_adds_and_a_part_that_is_frozen_later(tmp_path):
    """From its first step on an endpoint is trained or frozen as its partner."""

    class Adds(Module):
        def configure_optimizers(self):
            self.net.conv1.requires_grad_(False)
            return torch.optim.SGD(self.net.head.parameters(), self.lr)

        def on_train_batch_start(self, batch, batch_idx):
            if batch_idx == 1:
                self.net.conv1.requires_grad_(True)
                self.optimizers().optimizer.add_param_group({"params": self.net.conv1.parameters(), "lr": 0.05})
            if batch_idx == 2:
                self.net.head.requires_grad_(False)

    class Watches(Callback):
        def __init__(self):
            self.seen = []

        def on_train_batch_end(self, trainer, pl_module, *args):
            pairs = callback.subspace_model.parts[0].endpoints
            self.seen.append({name: pairs[name].detach().clone() for name in ("conv1.weight", "head.weight")})

    callback, watches = lcs(sampling={"sampler": "sandwich", "warmup": 0.0}), Watches()
    module = Adds(Net(group_norm))
    run = trainer(tmp_path, callback, watches, limit_val_batches=0)
    run.fit(module, datamodule=Data())
    first, second, third = watches.seen
    assert not torch.equal(second["conv1.weight"], first["conv1.weight"])
    assert not torch.equal(second["head.weight"], first["head.weight"])
    assert torch.equal(third["head.weight"], second["head.weight"])
    endpoint = callback.subspace_model.parts[0].endpoints["conv1.weight"]
    assert {id(p) for p in run.optimizers[0].param_groups[1]["params"]} == {id(endpoint), id(module.net.conv1.weight)}


def test_networks_that_are_built_late_are_moved_and_trained(tmp_path):
    class Late(AtTheEndOfABatch):
        def __init__(self):
            Module.__init__(self)
            del self.net

        def configure_model(self):
            self.net = Net(group_norm)
            self.teacher = copy.deepcopy(self.net).requires_grad_(False)

    module, callback = Late(), lcs(target="net")
    followed = []

    class Follows(Callback):
        def on_fit_start(self, trainer, pl_module):
            followed.append(Followed(pl_module.net))

        def on_train_batch_end(self, *args):
            followed[0].on_train_batch_end(*args)

    trainer(tmp_path, callback, Follows(), limit_val_batches=0, precision="bf16-true").fit(module, datamodule=Data())
    assert_averaged(module.teacher_state(), followed[0])
    assert {w.dtype for w, _ in callback.subspace_model.endpoint_pairs()} == {torch.bfloat16}
    assert all(not torch.equal(w0, w1) for w0, w1 in callback.subspace_model.endpoint_pairs() if w1.ndim > 1)
