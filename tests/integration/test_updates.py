"""Updates of less usual kinds, against those computed with plain PyTorch from an explicit mean of losses."""

import copy

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.plugins import MixedPrecision
from torch import nn

from lightning_lcs import SubspaceModel
from lightning_lcs.functional.sampling import SAMPLERS, step_generator
from tests.integration import support
from tests.integration.support import Module, Net, group_norm, trainer
from tests.integration.test_sweep import no_curve, squared_cosine

# Some steps in float32 against the same sums in another order, relative to the largest entry of each tensor.
UPDATE_TOLERANCE = 1e-5
# Gradients in float16, summed over four levels: 1.5e-2 for the worst tensor, by plain autocast over the sum, too.
HALF_TOLERANCE = 2e-2
# Outputs in bfloat16, seven bits of mantissa, through two layers.
BFLOAT_TOLERANCE = 0.05

line_and_point = pytest.mark.parametrize(
    "options", [{"subspace": "point"}, {"subspace": "line"}], ids=["point", "line"]
)


def lcs(**options):
    """With the term on the endpoints of a line."""
    return support.lcs(**{**options, "line": {"diversity_weight": 1.0, **options.get("line", {})}})


def mean_loss(model, index, images, labels):
    """The weighted mean of the losses of one micro-batch, with the term on the endpoints of a line."""
    total = torch.zeros(())
    for alpha in SAMPLERS["sandwich"](step_generator(0, index), 3):
        with model.at_alpha(alpha):
            total = total + nn.functional.cross_entropy(model(images), labels) / (2 if alpha == 1.0 else 4)
    return total + squared_cosine(model) if model.endpoint_pairs() else total


def expected_weights(net, batches, options, accumulate=1, clip=None, prepare=None):
    """After training by autograd through every slice."""
    model = SubspaceModel(copy.deepcopy(net), **options).train()
    if prepare is not None:
        prepare(model.module)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, 0.1)
    for index, (images, labels) in enumerate(batches):
        (mean_loss(model, index, images, labels) / accumulate).backward()
        if (index + 1) % accumulate == 0 or index + 1 == len(batches):
            if clip is not None:
                clip(parameters)
            optimizer.step()
            optimizer.zero_grad()
    return dict(model.module.named_parameters())


def check(net, expected):
    ours = dict(net.named_parameters())
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        assert (ours[name] - value).abs().max() <= UPDATE_TOLERANCE * value.abs().max(), name


@no_curve
@line_and_point
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(("algorithm", "value"), [("norm", 0.1), ("value", 0.01)])
def test_gradients_are_clipped_once_after_all_levels(tmp_path, train, options, accumulate, algorithm, value):
    net, clipped = Net(), []

    def clip(parameters):
        before = [p.grad.clone() for p in parameters]
        if algorithm == "norm":
            nn.utils.clip_grad_norm_(parameters, value)
        else:
            nn.utils.clip_grad_value_(parameters, value)
        clipped.append(any(not torch.equal(p.grad, grad) for p, grad in zip(parameters, before, strict=True)))

    expected = expected_weights(net, list(train), options, accumulate, clip)
    assert all(clipped)
    limits = {"gradient_clip_val": value, "gradient_clip_algorithm": algorithm}
    run = trainer(tmp_path, lcs(**options), accumulate_grad_batches=accumulate, limit_val_batches=0, **limits)
    run.fit(Module(net), train, train)
    assert run.global_step == len(clipped) == 4 - accumulate
    check(net, expected)


class Tied(nn.Module):
    """Two layers that share one weight, and two norms that share their scale and shift."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.conv1, self.norm1 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.norm2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2.weight = self.conv1.weight
        self.norm2.weight, self.norm2.bias = self.norm1.weight, self.norm1.bias
        self.head = nn.Linear(8, 10)

    def forward(self, x):
        x = self.norm1(self.conv1(self.stem(x))).relu()
        return self.head(self.norm2(self.conv2(x)).relu().mean((2, 3)))


@line_and_point
@pytest.mark.parametrize("line_parameters", ["norm", "all"])
def test_tied_weights(tmp_path, train, val, options, line_parameters):
    """One parameter with the gradients of both layers; and one second endpoint, shared as it is."""
    net, options = Tied(), {**options, "line": {"parameters": line_parameters}}
    expected = expected_weights(net, list(train), options)
    callback = lcs(**options)
    trainer(tmp_path, callback).fit(Module(net), train, val)
    check(net, expected)
    assert net.conv1.weight is net.conv2.weight
    if options["subspace"] == "line":
        assert net.norm1.lcs_endpoint_0.weight is net.norm2.lcs_endpoint_0.weight
        assert not torch.equal(net.norm1.lcs_endpoint_0.weight, net.norm1.weight)
    params = [point.params for point in callback.curve]
    assert params == sorted(set(params))
    assert params[-1] == sum(p.numel() for name, p in net.named_parameters() if "lcs" not in name)


def freeze(net):
    for norm in (net.norm1, net.norm2):
        norm.eval()
        norm.requires_grad_(False)


class Frozen(Module):
    """Batch norms that stay as a pretrained network has them."""

    def on_train_epoch_start(self):
        freeze(self.net)

    def configure_optimizers(self):
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], 0.1)


@pytest.mark.filterwarnings("ignore:Found 2 module.s. in eval mode at the start of training:UserWarning")
@pytest.mark.filterwarnings("ignore:running at alpha=.* on the batch-norm statistics:UserWarning")
@pytest.mark.parametrize("options", [{"subspace": "point"}, {"subspace": "line", "line": {"parameters": "all"}}])
def test_frozen_batch_norms(tmp_path, train, val, options):
    net = Net()
    with torch.no_grad():
        for norm in (net.norm1, net.norm2):
            norm.running_mean.normal_(std=0.1)
            norm.running_var.uniform_(0.5, 1.5)
            norm.weight.uniform_(0.5, 1.5)
    freeze(net)
    before = {name: value.clone() for name, value in net.state_dict().items() if "norm" in name}
    expected = expected_weights(net, list(train), options, prepare=freeze)
    callback = lcs(**options)
    trainer(tmp_path, callback).fit(Frozen(net), train, val)
    check(net, expected)
    for name, value in before.items():
        assert torch.equal(net.state_dict()[name], value), name
    assert all(w0.requires_grad == w1.requires_grad for w0, w1 in callback.subspace_model.endpoint_pairs())
    assert len(callback.curve) == 3


class Scheduled(Module):
    """A schedule of a given interval; a fresh one by request."""

    def __init__(self, interval):
        super().__init__()
        self.interval = interval

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), 0.1)
        if self.interval == "plateau":
            scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=10.0)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val_loss"}}
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": self.interval}}


class Rates(Callback):
    """The rate of every step, and how often the scheduler was called."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, *args):
        self.seen.append((trainer.global_step, trainer.optimizers[0].param_groups[0]["lr"]))

    def on_train_end(self, trainer, *args):
        self.seen.append(trainer.lr_scheduler_configs[0].scheduler.last_epoch)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("interval", ["step", "epoch", "plateau"])
def test_schedules_take_as_many_steps(tmp_path, train, val, interval, accumulate):
    def rates(*callbacks):
        seen = Rates()
        options = {"max_epochs": 3, "accumulate_grad_batches": accumulate}
        trainer(tmp_path, *callbacks, seen, **options).fit(Scheduled(interval), train, val)
        return seen.seen

    plain = rates()
    assert plain[-1] == (3 if interval != "step" else 9 if accumulate == 1 else 6)
    assert rates(lcs(every_n_epochs=1)) == plain


class Gradients(Callback):
    """What the optimizer is given, after the loss scale has been taken out."""

    def __init__(self):
        self.seen = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.seen.append({name: p.grad.clone() for name, p in pl_module.net.named_parameters()})


@line_and_point
@pytest.mark.parametrize("accumulate", [1, 2])
def test_float16_with_a_scaled_loss(tmp_path, train, val, options, accumulate):
    net = Net(group_norm)
    model = SubspaceModel(copy.deepcopy(net), **options).train()
    for index, (images, labels) in enumerate(list(train)[:accumulate]):
        (mean_loss(model, index, images, labels) / accumulate).backward()
    scaler, gradients = torch.amp.GradScaler("cpu", init_scale=1024.0), Gradients()
    plugin = MixedPrecision("16-mixed", "cpu", scaler=scaler)
    limits = {"accumulate_grad_batches": accumulate, "limit_train_batches": accumulate}
    trainer(tmp_path, lcs(**options), gradients, plugins=plugin, **limits).fit(Module(net), train, val)
    (ours,) = gradients.seen
    assert scaler.get_scale() == 1024.0
    for name, p in model.module.named_parameters():
        assert (ours[name] - p.grad).abs().max() <= HALF_TOLERANCE * p.grad.abs().max(), name


class Careful(nn.Module):
    """Computes its norm in float32, as many do; in half precision nothing is left of what goes into it."""

    def __init__(self, off=True):
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.GroupNorm(1, 8)
        self.head = nn.Linear(8, 10)
        self.off = off

    def forward(self, x):
        x = self.conv(x)
        if self.off:
            with torch.autocast(x.device.type, enabled=False):
                x = self.normalise(x.float())
        else:
            x = self.normalise(x)
        return self.head(x.relu().mean((2, 3)))

    def normalise(self, x):
        return self.norm(x + 1000.0 - 1000.0)


@line_and_point
def test_a_network_that_turns_autocast_off_inside(tmp_path, train, val, options):
    """At every level: gradients, and the curve after the step."""

    def run(net, **precision):
        callback, gradients = lcs(**options), Gradients()
        trainer(tmp_path, callback, gradients, limit_train_batches=1, **precision).fit(Module(net, 0.0), train, val)
        return gradients.seen[0], [point.metrics["val_loss"] for point in callback.curve]

    net = Careful()
    exact, exact_losses = run(copy.deepcopy(net))
    half, half_losses = run(copy.deepcopy(net), precision="bf16-mixed")
    for name, value in exact.items():
        assert (half[name] - value).abs().max() <= BFLOAT_TOLERANCE * value.abs().max(), name
    assert half_losses == pytest.approx(exact_losses, rel=BFLOAT_TOLERANCE)
    careless = Careful(off=False)
    careless.load_state_dict(net.state_dict())
    lost, _ = run(careless, precision="bf16-mixed")
    assert (lost["conv.weight"] - exact["conv.weight"]).abs().max() > 0.5 * exact["conv.weight"].abs().max()
