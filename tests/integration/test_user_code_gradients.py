"""Steps that ask for gradients of parameters, or change or exchange weights between two forwards, at every level."""

import copy
import functools

import lightning as L
import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from tests.integration.support import BATCH, digits, fitted, loader, small_callback
from tests.integration.support import Module as Plain

# Sums in another order differ by rounding.
TOLERANCE = 1e-5
RATE, BATCHES, HIDDEN, MIN_WIDTH = 0.05, 3, 16, 0.25


class Network(nn.Module):
    """Two linear layers, so that its levels can be written by hand."""

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(64, HIDDEN), nn.Linear(HIDDEN, 10)

    def forward(self, images):
        return self.head(self.first(images.flatten(1)).relu())


class Sliced(Network):
    """The network at a width, written by hand."""

    width = 1.0

    def forward(self, images):
        kept = round(HIDDEN * self.width)
        hidden = F.linear(images.flatten(1), self.first.weight[:kept], self.first.bias[:kept]).relu()
        return F.linear(hidden, self.head.weight[:, :kept], self.head.bias)


def penalty(net, images, labels):
    loss = F.cross_entropy(net(images), labels)
    return loss + sum(g.square().sum() for g in torch.autograd.grad(loss, list(net.parameters()), create_graph=True))


def allowing_unused(net, images, labels):
    loss = F.cross_entropy(net(images), labels)
    found = torch.autograd.grad(loss, list(net.parameters()), retain_graph=True, allow_unused=True)
    return loss * (1.0 + sum(0.0 if g is None else float(g.norm()) for g in found))


def reading_grad(net, images, labels):
    loss = F.cross_entropy(net(images), labels)
    loss.backward(retain_graph=True)
    return loss * (1.0 + float(net.first.weight.grad.norm()))


def catching_errors(net, images, labels):
    loss = F.cross_entropy(net(images), labels)
    try:
        return loss * (1.0 + float(torch.autograd.grad(loss, net.head.weight, retain_graph=True)[0].norm()))
    except Exception:
        return loss


def meta_learning(net, images, labels):
    half = len(images) // 2
    own = dict(net.named_parameters())
    loss = F.cross_entropy(net(images[:half]), labels[:half])
    found = torch.autograd.grad(loss, list(own.values()), create_graph=True)
    fast = {name: value - 0.1 * gradient for (name, value), gradient in zip(own.items(), found, strict=True)}
    return F.cross_entropy(functional_call(net, fast, (images[half:],)), labels[half:])


def functional_gradients(net, images, labels):
    def loss_of(parameters):
        return F.cross_entropy(functional_call(net, parameters, (images,)), labels)

    found = torch.func.grad(loss_of)({name: value.detach() for name, value in net.named_parameters()})
    return F.cross_entropy(net(images), labels) * (1.0 + float(found["first.weight"].norm()))


def averaged_weights(net, images, labels):
    logits = net(images)
    with torch.no_grad():
        targets = functional_call(net, {name: 0.5 * value for name, value in net.named_parameters()}, (images,))
    return F.cross_entropy(logits, labels) + (logits - targets).square().mean()


def gradients_of_other_weights(net, images, labels):
    other = {name: (0.5 * value.detach()).requires_grad_() for name, value in net.named_parameters()}
    loss = F.cross_entropy(functional_call(net, other, (images,)), labels)
    found = torch.autograd.grad(loss, list(other.values()))
    return F.cross_entropy(net(images), labels) * (1.0 + sum(float(g.norm()) for g in found))


def perturbed_weights(net, images, labels):
    with torch.no_grad():
        saved = [parameter.clone() for parameter in net.parameters()]
        for parameter in net.parameters():
            parameter.mul_(1.1)
        targets = net(images)
        for parameter, value in zip(net.parameters(), saved, strict=True):
            parameter.copy_(value)
    logits = net(images)
    return F.cross_entropy(logits, labels) + (logits - targets).square().mean()


def targets_first(net, images, labels):
    with torch.no_grad():
        targets = net(images.flip(-1))
    logits = net(images)
    return F.cross_entropy(logits, labels) + (logits - targets).square().mean()


STEPS = [
    targets_first,
    penalty,
    allowing_unused,
    reading_grad,
    catching_errors,
    meta_learning,
    functional_gradients,
    averaged_weights,
    gradients_of_other_weights,
    perturbed_weights,
]


class Module(Plain):
    """Runs one of the steps."""

    def __init__(self, step):
        super().__init__(Network(), lr=RATE)
        self.step = step

    def training_step(self, batch, batch_idx):
        return self.step(self.net, *batch)


def by_hand(start, step):
    """The weights after training at the smallest and at the full width, with the mean of both losses."""
    net = Sliced()
    net.load_state_dict(start)
    images, labels = digits(0, BATCH * BATCHES).tensors
    before = [None for parameter in net.parameters()]
    for few in range(0, BATCH * BATCHES, BATCH):
        total = [torch.zeros_like(parameter) for parameter in net.parameters()]
        for net.width in (MIN_WIDTH, 1.0):
            for gradient, parameter in zip(before, net.parameters(), strict=True):
                parameter.grad = None if gradient is None else gradient.clone()
            loss = step(net, images[few : few + BATCH], labels[few : few + BATCH])
            net.zero_grad()
            loss.backward()
            for held, parameter in zip(total, net.parameters(), strict=True):
                held += 0.5 * parameter.grad
        with torch.no_grad():
            for held, parameter in zip(total, net.parameters(), strict=True):
                parameter -= RATE * held
        before = total
    return net.state_dict()


@pytest.mark.parametrize("step", STEPS)
def test_gradients_and_weights_of_a_step_are_those_of_the_level(step, tmp_path):
    module = Module(step)
    start = {name: value.clone() for name, value in module.net.state_dict().items()}
    lcs = small_callback(mode="structured", sampling={"sampler": [0.0, 1.0]})
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "max_epochs": 1}
    trainer = L.Trainer(accelerator="cpu", callbacks=[lcs], default_root_dir=tmp_path, **quiet)
    trainer.fit(module, loader(digits(0, BATCH * BATCHES)), loader(digits(64, 32)))
    found = module.net.state_dict()
    for name, expected in by_hand(start, step).items():
        torch.testing.assert_close(found[name], expected, rtol=0.0, atol=TOLERANCE)
        assert (expected - start[name]).abs().max() > TOLERANCE


@pytest.mark.parametrize("sampler", [[0.0, 1.0], [0.0]])
@pytest.mark.parametrize("mode", ["unstructured", "quantized"])
@pytest.mark.parametrize("step", [step for step in STEPS if step is not functional_gradients])
def test_the_same_steps_train_in_other_modes(step, mode, sampler, tmp_path):
    module = Module(step)
    start = {name: value.clone() for name, value in module.state_dict().items()}
    fitted(lambda: module, tmp_path, small_callback(mode=mode, sampling={"sampler": sampler, "warmup": 0}))
    assert not [name for name, value in module.state_dict().items() if torch.equal(start[name], value)]


def test_a_first_call_with_other_weights_is_refused(tmp_path):
    with pytest.raises(RuntimeError, match="run it once with its own parameters before"):
        fitted(lambda: Module(gradients_of_other_weights), tmp_path, small_callback(), num_sanity_val_steps=0)


@pytest.mark.parametrize("sampling", [{"sampler": [0.0, 1.0]}, {"sampler": [0.5]}])
def test_gradients_of_named_parameters_are_refused_on_a_line(tmp_path, sampling):
    lcs = small_callback(mode="structured", subspace="line", line={"parameters": "all"}, sampling=sampling)
    with pytest.raises(RuntimeError, match=r"two sets of parameters.*use subspace='point'"):
        fitted(lambda: Module(penalty), tmp_path, lcs)


def test_a_backward_of_the_step_leaves_no_gradients_on_a_line(tmp_path):
    """Below alpha = 1 both endpoints get gradients: those of the loss, and not those of the step's own backward."""

    def same_loss(net, images, labels):
        loss = F.cross_entropy(net(images), labels)
        (100.0 * loss).backward(retain_graph=True)
        return loss

    found = []
    for run in (same_loss, lambda net, images, labels: F.cross_entropy(net(images), labels)):
        lcs = small_callback(mode="structured", subspace="line", line={"parameters": "all"})
        module = fitted(lambda run=run: Module(run), tmp_path, lcs)
        found.append([*module.net.parameters()])
    assert len(found[0]) == 8
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0.0, atol=TOLERANCE)


def _scale(factor, parameter):
    parameter.grad.mul_(factor)


class Masked(Plain):
    """Hooks of the user's own on gradients: of a parameter, after its accumulation, or after the backward."""

    def __init__(self, how):
        super().__init__(Network(), lr=RATE)
        self.outside = nn.Linear(10, 10)
        self.how = how
        self.mask = (torch.arange(HIDDEN) % 2).float()
        if how == "hook":
            self.net.head.weight.register_hook(lambda gradient: gradient * self.mask)
            self.outside.weight.register_hook(lambda gradient: gradient * 0.1)
        elif how == "accumulated":
            for parameter, factor in ((self.net.head.weight, self.mask), (self.outside.weight, 0.1)):
                parameter.register_post_accumulate_grad_hook(functools.partial(_scale, factor))

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.outside(self.net(batch[0])), batch[1])

    def on_after_backward(self):
        if self.how == "after":
            self.net.head.weight.grad.mul_(self.mask)
            self.outside.weight.grad.mul_(0.1)


class Scaled(Masked):
    def backward(self, loss):
        loss.backward()
        for parameter, factor in ((self.net.head.weight, self.mask), (self.outside.weight, 0.1)):
            if parameter.grad is not None:
                parameter.grad.mul_(factor)


@pytest.mark.parametrize(("make", "how"), [(Masked, "hook"), (Masked, "accumulated"), (Scaled, "method")])
@pytest.mark.parametrize("mode", ["structured", "unstructured"])
def test_hooks_on_gradients_act_once(tmp_path, mode, make, how):
    """They end up where scaling the whole gradient does."""
    options = {"mode": mode, "sampling": {"sampler": [0.0, 0.5, 1.0]}}
    found = [
        fitted(lambda kind=kind, name=name: kind(name), tmp_path, small_callback(**options))
        for kind, name in ((Masked, "after"), (make, how))
    ]
    for one, other in zip(*(module.parameters() for module in found), strict=True):
        torch.testing.assert_close(one, other, rtol=0.0, atol=TOLERANCE)


class Clipped(Plain):
    """Scales the loss, and clips what is not linear in the gradients: only the whole gradient gives the same."""

    def __init__(self, where):
        super().__init__(Network(), lr=RATE)
        self.where, self.calls = where, 0
        if where == "hook":
            for parameter in self.parameters():
                parameter.register_post_accumulate_grad_hook(self.clip)

    def clip(self, parameter):
        self.calls += 1
        parameter.grad.clamp_(-1e-3, 1e-3)

    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        return loss if self.where == "method" else 3.0 * loss

    def on_after_backward(self):
        if self.where == "after":
            for parameter in self.parameters():
                self.clip(parameter)


class ClippedByItself(Clipped):
    def backward(self, loss):
        names = dict(self.named_parameters())
        (3.0 * loss).backward()
        assert all(parameter is names[name] for name, parameter in self.named_parameters())
        for parameter in self.parameters():
            self.clip(parameter)


@pytest.mark.parametrize(("make", "where"), [(Clipped, "hook"), (ClippedByItself, "method")])
@pytest.mark.parametrize("mode", ["structured", "unstructured", "quantized"])
@pytest.mark.parametrize("levels", [[0.5], [0.0, 0.5, 1.0]])
def test_gradients_are_clipped_as_a_whole(tmp_path, mode, levels, make, where):
    options = {"mode": mode, "sampling": {"sampler": levels, **({} if mode == "structured" else {"warmup": 0.0})}}
    one, other = [
        fitted(lambda kind=kind, name=name: kind(name), tmp_path, small_callback(**options))
        for kind, name in ((Clipped, "after"), (make, where))
    ]
    assert one.calls == other.calls
    for ours, theirs in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0.0, atol=TOLERANCE)


def test_leaves_that_only_an_optimizer_knows_get_the_gradients_of_all_levels(tmp_path):
    class Prompted(Plain):
        def __init__(self, registered):
            super().__init__(Network(), lr=RATE)
            prompt = torch.zeros(64)
            self.held = [nn.Parameter(prompt) if registered else prompt.requires_grad_()]
            if registered:
                self.prompt = self.held[0]

        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self.net(batch[0].flatten(1) + self.held[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD([*self.net.parameters(), self.held[0]], RATE)

    prompts = [
        fitted(lambda registered=each: Prompted(registered), tmp_path, small_callback()).held[0]
        for each in (True, False)
    ]
    torch.testing.assert_close(*prompts, rtol=0.0, atol=TOLERANCE)
    assert prompts[0].abs().max() > TOLERANCE


@pytest.mark.parametrize("sampler", [[0.0, 1.0], [0.5]])
@pytest.mark.parametrize("mode", ["structured", "unstructured", "quantized"])
def test_a_teacher_that_a_step_copies_is_the_plain_network(tmp_path, mode, sampler):
    class Teaching(Plain):
        def __init__(self):
            super().__init__(Network(), lr=0.0)
            self.teacher = None

        def training_step(self, batch, batch_idx):
            if self.teacher is None:
                self.teacher = copy.deepcopy(self.net).requires_grad_(False)
            self.targets = self.teacher(batch[0])
            return F.mse_loss(self.net(batch[0]), self.targets + 1.0)

    lcs = small_callback(mode=mode, sampling={"sampler": sampler})
    plain, ours = fitted(Teaching, tmp_path), fitted(Teaching, tmp_path, lcs)
    assert torch.equal(plain.targets, ours.targets)
