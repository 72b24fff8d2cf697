"""Manual optimization: a step that goes through the levels trains as the same losses do, written out in torch."""

import copy
import gc

import pytest
import torch
from torch import nn
from torch.nn import functional

from lightning_lcs import SubspaceModel, levels
from lightning_lcs.functional.sampling import SAMPLERS, step_generator
from lightning_lcs.training.step import manual
from tests.integration.support import Module, Net, digits, group_norm, lcs, loader, trainer

pytestmark = pytest.mark.filterwarnings("ignore:no validation data. the accuracy-efficiency curve:UserWarning")
# In float64, the same operations in another order.
SAME = 1e-9
SEED, WEIGHTS = 5, (0.25, 0.25, 0.5)
LINES = [{"subspace": "point"}, {"subspace": "line", "line": {"parameters": "all"}}]


class Manual(Module):
    """One optimizer, stepped by hand."""

    def __init__(self, net=None):
        super().__init__(net)
        self.automatic_optimization = False
        self.seen = []

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        for level in levels(self):
            loss = self.loss(self.net(batch[0].to(self.net.head.weight.dtype)), batch[1])
            self.manual_backward(level.weight * loss)
            self.seen.append((level.alpha, level.weight))
        self.log("train_loss", loss)
        optimizer.step()


def sgd(parameters):
    return torch.optim.SGD(parameters, 0.1, momentum=0.9)


class Plain(Manual):
    def configure_optimizers(self):
        return sgd(self.parameters())


def by_hand(net, batches, sampler, mode, options):
    """The model after training on the weighted losses of the levels."""
    model = SubspaceModel(net, mode=mode, **options, seed=SEED).train()
    optimizer = sgd(model.parameters())
    for index, (images, labels) in enumerate(batches):
        optimizer.zero_grad()
        drawn = SAMPLERS[sampler](step_generator(SEED, index), 3) if isinstance(sampler, str) else sampler
        for alpha, weight in zip(drawn, WEIGHTS if len(drawn) == 3 else [1.0], strict=True):
            with model.runner.training_level(alpha):
                (weight * functional.cross_entropy(model(images.double()), labels)).backward()
        optimizer.step()
    return model


def weights_of(model):
    return [*model.module.parameters(), *(w0 for w0, _ in model.endpoint_pairs())]


@pytest.mark.parametrize("options", LINES, ids=lambda options: options["subspace"])
@pytest.mark.parametrize(
    ("mode", "sampler"), [("structured", "sandwich"), ("unstructured", [0.0, 0.3, 1.0]), ("quantized", [0.5])]
)
def test_one_optimizer(tmp_path, mode, sampler, options):
    torch.manual_seed(0)
    net, batches = Net(group_norm).double(), loader(digits(0, 48))
    model = by_hand(copy.deepcopy(net), batches, sampler, mode, options)
    module = Plain(net)
    sampling = {"sampler": sampler, **({} if mode == "structured" else {"warmup": 0.0})}
    callback = lcs(mode=mode, **options, sampling=sampling, seed=SEED)
    trainer(tmp_path, callback, limit_val_batches=0).fit(module, batches)
    for value, expected in zip(weights_of(callback.subspace_model), weights_of(model), strict=True):
        assert (value - expected).abs().max() <= SAME * expected.abs().max()


@pytest.mark.parametrize("mode", ["structured", "unstructured", "quantized"])
def test_it_trains_as_with_automatic_optimization(tmp_path, mode):
    """With batch norms, statistics, a warm-up, the curve, and random levels; weights, running statistics and curve."""

    class Automatic(Module):
        def configure_optimizers(self):
            return sgd(self.parameters())

    found = []
    for kind in (Automatic, Plain):
        torch.manual_seed(0)
        module, callback = kind(), lcs(mode=mode, subspace="point")
        run = trainer(tmp_path, callback, max_epochs=2)
        run.fit(module, loader(digits(0, 48)), loader(digits(48, 40)))
        found.append((module, callback, run))
    (one, expected, _), (two, callback, run) = found
    for name, value in one.net.state_dict().items():
        torch.testing.assert_close(two.net.state_dict()[name], value, rtol=1e-5, atol=1e-6, msg=name)
    for point, other in zip(callback.curve, expected.curve, strict=True):
        assert point.metrics["val_acc"] == pytest.approx(other.metrics["val_acc"], abs=1e-6)
    assert "train_loss" in run.callback_metrics


def test_without_the_callback_and_outside_of_a_step_there_is_one_level(tmp_path):
    module = Plain()
    assert [(level.alpha, level.weight) for level in levels(module)] == [(1.0, 1.0)]
    trainer(tmp_path, limit_val_batches=0).fit(module, loader(digits(0, 32)))
    assert module.seen == [(1.0, 1.0)] * 2


class Adversarial(Module):
    """A generator, which is compressed, and a critic of its own; each with an optimizer."""

    def __init__(self):
        super().__init__(nn.Identity())
        self.automatic_optimization = False
        self.generator = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 64))
        self.critic = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 1))
        self.double()
        self.every = 1

    def losses(self, images, noise):
        """Of the critic, and of the generator."""
        made = self.generator(noise)
        real, fake = self.critic(images), self.critic(made.detach())
        critic = functional.softplus(-real).mean() + functional.softplus(fake).mean()
        return critic, functional.softplus(-self.critic(made)).mean()

    def training_step(self, batch, batch_idx):
        images = batch[0].flatten(1).double()
        noise = torch.linspace(-1.0, 1.0, 4 * len(images), dtype=torch.float64).view(-1, 4)
        first, second = self.optimizers()
        self.toggle_optimizer(first)
        first.zero_grad()
        self.manual_backward(self.losses(images, noise)[0])
        first.step()
        self.untoggle_optimizer(first)
        if batch_idx % self.every == 0:
            self.toggle_optimizer(second)
            second.zero_grad()
            for level in levels(self):
                self.manual_backward(level.weight * self.losses(images, noise)[1])
            second.step()
            self.untoggle_optimizer(second)

    def configure_optimizers(self):
        return sgd(self.critic.parameters()), sgd(self.generator.parameters())


@pytest.mark.parametrize("options", LINES, ids=lambda options: options["subspace"])
def test_a_generator_beside_its_critic(tmp_path, options):
    torch.manual_seed(0)
    module, batches = Adversarial(), loader(digits(0, 48))
    twin = copy.deepcopy(module)
    model = SubspaceModel(twin.generator, subspace=options["subspace"], line=options.get("line"), seed=SEED).train()
    twin.generator = model
    optimizers = sgd(twin.critic.parameters()), sgd(model.parameters())
    for index, (images, _) in enumerate(batches):
        images = images.flatten(1).double()
        noise = torch.linspace(-1.0, 1.0, 4 * len(images), dtype=torch.float64).view(-1, 4)
        optimizers[0].zero_grad()
        twin.losses(images, noise)[0].backward()
        optimizers[0].step()
        optimizers[1].zero_grad()
        for alpha, weight in zip(SAMPLERS["sandwich"](step_generator(SEED, index), 3), WEIGHTS, strict=True):
            with model.at_alpha(alpha):
                (weight * twin.losses(images, noise)[1]).backward()
        optimizers[1].step()
    callback = lcs(target="generator", sampling={"sampler": "sandwich"}, seed=SEED, **options)
    trainer(tmp_path, callback, limit_val_batches=0).fit(module, batches)
    trained = [*module.critic.parameters(), *weights_of(callback.subspace_model)]
    for value, expected in zip(trained, [*twin.critic.parameters(), *weights_of(model)], strict=True):
        assert (value - expected).abs().max() <= SAME * expected.abs().max()


class Unaware(Plain):
    """A step that does not know of the levels."""

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.loss(self.net(batch[0]), batch[1]))
        optimizer.step()


def test_a_module_that_never_goes_through_the_levels_is_told_how(tmp_path, monkeypatch):
    monkeypatch.setattr(manual, "PATIENCE", 2)
    run = trainer(tmp_path, lcs(), limit_val_batches=0)
    with pytest.warns(UserWarning, match=r"Unaware uses manual optimization.*2 training steps.*for level in levels"):
        run.fit(Unaware(), loader(digits(0, 48)))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"sampling": {"split": True}}, r"Sampling\(split=...\) out"),
        ({"loss": {"distillation": "logits"}}, r"Loss\(distillation=...\) out"),
        ({"line": {"diversity_weight": 1.0}}, r"Line\(diversity_weight=...\) out"),
    ],
)
def test_options_that_combine_losses_are_refused(tmp_path, options, match):
    with pytest.raises(ValueError, match=rf"Plain uses manual optimization.*leave .*{match}"):
        trainer(tmp_path, lcs(**options)).fit(Plain(), loader(digits(0, 48)))


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path):
    def fit(folder, epochs, path=None):
        torch.manual_seed(0)
        module = Plain()
        run = trainer(folder, lcs(), max_epochs=epochs, limit_val_batches=0)
        run.fit(module, loader(digits(0, 48)), ckpt_path=path)
        run.save_checkpoint(folder / "end.ckpt")
        return module

    whole = fit(tmp_path / "whole", 3)
    fit(tmp_path / "first", 2)
    resumed = fit(tmp_path / "then", 3, tmp_path / "first" / "end.ckpt")
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_a_step_that_fails_at_a_level_leaves_no_level_behind(tmp_path):
    class Fails(Plain):
        def training_step(self, batch, batch_idx):
            loop = levels(self)  # the traceback keeps it
            for level in loop:
                self.net(batch[0])
                if level.alpha == 0.0:
                    raise KeyError("in the loop")

    module, callback = Fails(Net(group_norm)), lcs()
    with pytest.raises(KeyError, match="in the loop") as held:
        trainer(tmp_path, callback, limit_val_batches=0).fit(module, loader(digits(0, 48)))
    del held  # and with it the traceback
    gc.collect()
    model, images = callback.subspace_model.eval(), digits(0, 4).tensors[0]
    with torch.no_grad():
        narrow, full = [model.materialize(alpha)(images) for alpha in (0.0, 1.0)]
        found = []
        for alpha in (0.0, 1.0):
            model.set_alpha(alpha)
            found.append(model(images))
    torch.testing.assert_close(found, [narrow, full])
    assert not torch.equal(narrow, full)
