"""Which network is compressed: found by itself, by name, by path; and errors where it would not be."""

import pytest
import timm
import torch
from torch import nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from tests.integration.support import Module, Net, digits, lcs, trainer

# The same small network as a graph of its own: other memory layout, same operations.
OUTPUT_TOLERANCE = 1e-5


def fit(folder, module, train, val, **options):
    callback = lcs(**options)
    trainer(folder, callback).fit(module, train, val)
    return callback


def sizes(callback):
    """Parameters at every level of the curve."""
    return [point.params for point in callback.curve]


class CenterLoss(nn.Module):
    """A loss with parameters of its own, as metric learning has."""

    def __init__(self):
        super().__init__()
        self.centers = nn.Parameter(torch.zeros(10, 10))

    def forward(self, logits, labels):
        return nn.functional.cross_entropy(logits - self.centers[labels], labels)


def test_metrics_and_losses_are_no_candidates(tmp_path, train, val):
    class Crowded(Module):
        def __init__(self):
            super().__init__()
            self.criterion = CenterLoss()
            self.metrics = MetricCollection([MulticlassAccuracy(10)])
            self.normalise = nn.BatchNorm2d(1, affine=False)

        def training_step(self, batch, batch_idx):
            return self.criterion(self.net(batch[0]), batch[1])

    module = Crowded()
    callback = fit(tmp_path, module, train, val)
    assert callback.subspace_model.module is module.net
    assert sizes(callback) == sorted(set(sizes(callback)))


class Two(Module):
    """A backbone and a head, called one after the other."""

    def __init__(self):
        super().__init__(net=nn.Identity())
        full = Net()
        self.backbone = nn.Sequential(full.conv1, full.norm1, nn.ReLU(), full.conv2, full.norm2, nn.ReLU())
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 16), nn.LayerNorm(16), nn.ReLU())
        self.head.append(nn.Linear(16, 10))

    def forward(self, images):
        return self.head(self.backbone(images))

    def training_step(self, batch, batch_idx):
        return self.loss(self.head(self.backbone(batch[0])), batch[1])

    def validation_step(self, batch, batch_idx):
        self.val_acc(self.head(self.backbone(batch[0])), batch[1])
        self.log("val_acc", self.val_acc)


def test_several_networks_are_an_error_that_lists_them(tmp_path, train, val):
    with pytest.raises(ValueError, match=r"target is not given.*Two has several networks: backbone, head; name one"):
        fit(tmp_path, Two(), train, val)


def test_one_of_several_networks_by_name(tmp_path, train, val):
    module = Two()
    callback = fit(tmp_path, module, train, val, target="backbone")
    assert callback.subspace_model.module is module.backbone
    assert sizes(callback) == sorted(set(sizes(callback)))


def test_two_networks_called_separately(tmp_path, train, val):
    module = Two()
    before = [p.detach().clone() for p in module.parameters()]
    callback = fit(tmp_path, module, train, val, target=["backbone", "head"])
    model = callback.subspace_model
    assert [part.prefix for part in model.parts] == ["backbone.", "head."]
    assert sizes(callback) == sorted(set(sizes(callback)))
    assert callback.curve[-1].params == sum(p.numel() for p in Two().parameters())
    assert len(list(module.parameters())) > len(before)
    assert all(not torch.equal(w0, w1) for w0, w1 in model.endpoint_pairs() if w1.numel() > 1)
    # The features between the two stay whole: each network keeps its own inputs and outputs.
    small = model.materialize(0.0)
    images = digits(0, 4).tensors[0]
    assert small["head"](small["backbone"](images)).shape == (4, 10)


def test_a_nested_path(tmp_path, train, val):
    class Nested(Module):
        def __init__(self):
            super().__init__(net=nn.ModuleDict({"encoder": nn.ModuleDict({"cnn": Net()})}))

        def forward(self, images):
            return self.net["encoder"]["cnn"](images)

        def training_step(self, batch, batch_idx):
            return self.loss(self(batch[0]), batch[1])

        def validation_step(self, batch, batch_idx):
            self.log("val_loss", self.loss(self(batch[0]), batch[1]))

    module = Nested()
    callback = fit(tmp_path, module, train, val, target="net.encoder.cnn")
    assert callback.subspace_model.module is module.net["encoder"]["cnn"]
    assert len(callback.curve) == 3


class OwnForward(Module):
    """Layers in the LightningModule itself, as in many tutorials."""

    def __init__(self):
        super().__init__(net=nn.Identity())
        self.conv = nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.out = nn.Linear(8, 10)

    def forward(self, images):
        return self.out(self.norm(self.conv(images)).relu().mean((2, 3)))

    def training_step(self, batch, batch_idx):
        loss = self.loss(self(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.val_acc(self(batch[0]), batch[1])
        self.log("val_acc", self.val_acc)


def test_the_modules_own_forward(tmp_path, train, val):
    module = OwnForward()
    callback = fit(tmp_path, module, train, val, target="self")
    assert callback.subspace_model.module is module
    assert sizes(callback) == sorted(set(sizes(callback)))
    assert "forward" not in module.__dict__
    images = digits(0, 4).tensors[0]
    small = callback.subspace_model.eval().materialize(0.0)
    with callback.subspace_model.at_alpha(0.0):
        expected = callback.subspace_model(images)
        assert (small(images) - expected).abs().max() <= OUTPUT_TOLERANCE * expected.abs().max()


def test_a_target_that_does_not_exist(tmp_path, train, val):
    with pytest.raises(ValueError, match=r"target='model' does not exist in Module.*children of Module are: net, loss"):
        fit(tmp_path, Module(), train, val, target="model")


def test_a_module_without_a_network(tmp_path, train, val):
    class Bare(Module):
        def __init__(self):
            super().__init__(net=nn.Identity())
            self.weight = nn.Parameter(torch.zeros(64, 10))

    with pytest.raises(ValueError, match=r"Bare has no child with trainable parameters: name the network with target="):
        fit(tmp_path, Bare(), train, val)


def test_a_step_that_never_calls_the_target(tmp_path, train, val):
    class Elsewhere(Module):
        def __init__(self):
            super().__init__()
            self.other = Net()

        def training_step(self, batch, batch_idx):
            return self.loss(self.other(batch[0]), batch[1])

    with pytest.raises(RuntimeError, match=r"training_step never called Net, so that nothing ran at alpha=0"):
        fit(tmp_path, Elsewhere(), train, val, target="net")


def test_a_step_that_calls_past_the_forward(tmp_path, train, val):
    class Past(Module):
        def training_step(self, batch, batch_idx):
            return self.loss(self.net.head(self.net.features(batch[0]).mean((2, 3))), batch[1])

    match = r"training_step called Net\.conv1 directly at alpha=0, past the forward of the network.*target="
    with pytest.raises(RuntimeError, match=match):
        fit(tmp_path, Past(), train, val)


def test_a_timm_network_called_by_forward_features(tmp_path, train, val):
    class Features(Module):
        def __init__(self):
            super().__init__(net=timm.create_model("test_resnet", in_chans=1, num_classes=10))

        def training_step(self, batch, batch_idx):
            return self.loss(self.net.forward_head(self.net.forward_features(batch[0])), batch[1])

    with pytest.raises(RuntimeError, match=r"training_step called ResNet\.conv1.* directly at alpha=0"):
        fit(tmp_path, Features(), train, val)


def test_a_validation_step_that_calls_past_the_forward(tmp_path, train, val):
    class Past(Module):
        def validation_step(self, batch, batch_idx):
            self.log("val_loss", self.loss(self.net.head(self.net.features(batch[0]).mean((2, 3))), batch[1]))

    with pytest.raises(RuntimeError, match=r"validation_step called Net\.conv1 directly at alpha=0"):
        fit(tmp_path, Past(), train, val)


def test_a_validation_step_past_the_network_is_refused_before_training(tmp_path, train, val):
    """The curve is measured at the end: what can't be measured must not cost a training first."""

    class Past(Module):
        steps = 0

        def training_step(self, batch, batch_idx):
            type(self).steps += 1
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch, batch_idx):
            features = self.net.conv1(batch[0])
            self.log("val_loss", features.mean())

    with pytest.raises(RuntimeError, match=r"validation_step called Net.conv1 directly"):
        trainer(tmp_path, lcs(), num_sanity_val_steps=1).fit(Past(), train, val)
    assert Past.steps == 0


def test_the_rehearsal_leaves_the_users_numbers_alone(tmp_path, train, val):
    def run(**options):
        torch.manual_seed(0)
        module, callback = Module(), lcs()
        trainer(tmp_path, callback, **options).fit(module, train, val)
        return [point.metrics for point in callback.curve]

    assert run(num_sanity_val_steps=1) == run(num_sanity_val_steps=0)
