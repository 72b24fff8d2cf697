"""Parts of a network that nothing trains are whole at every level, as long as nothing trains them."""

import copy
import warnings

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import BackboneFinetuning
from torch import nn

from lightning_lcs import SubspaceModel
from tests.integration.support import Data, Module, digits, lcs, trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*stay whole at every level:UserWarning"),
    pytest.mark.filterwarnings("ignore:running at alpha=:UserWarning"),
]
IMAGES = digits(0, 8).tensors[0]
MODES = pytest.mark.parametrize("mode", ["structured", "unstructured", "quantized"])


def layers(width=16, norm=True):
    middle = [nn.BatchNorm2d(width)] if norm else []
    return nn.Sequential(nn.Conv2d(1, width, 3), *middle, nn.ReLU(), nn.Conv2d(width, 8, 3))


class Distilled(nn.Module):
    """A teacher and a student in one network, as anomaly detectors have them."""

    def __init__(self):
        super().__init__()
        self.teacher, self.student = layers().requires_grad_(False), layers()
        # Statistics of other images, as those of a pretrained teacher are.
        self.teacher[1].running_mean.normal_()

    def forward(self, x):
        self.teacher.eval()
        return self.teacher(x), self.student(x)


class Distilling(Module):
    def __init__(self):
        super().__init__(Distilled())

    def step(self, batch):
        teacher, student = self.net(batch[0])
        return (teacher - student).square().mean()

    def training_step(self, batch, batch_idx):
        return self.step(batch)

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.step(batch))

    def configure_optimizers(self):
        return torch.optim.SGD(self.net.student.parameters(), 0.1)


class Tuned(nn.Module):
    """A backbone and a head in one network."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(layers(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.hidden, self.head = nn.Linear(8, 16), nn.Linear(16, 10)

    def forward(self, x):
        return self.head(self.hidden(self.backbone(x)).relu())


class Tuning(Module):
    """A module whose backbone callbacks find; they give the optimizer its group when they release it."""

    def __init__(self):
        super().__init__(Tuned())

    @property
    def backbone(self):
        return self.net.backbone

    def configure_optimizers(self):
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], 0.1)


def calibrated(net, mode, **options):
    model = SubspaceModel(net, IMAGES[:2], mode=mode, subspace="point", **options)
    model.recalibrate([IMAGES], alphas=[0.0, 0.5])
    return model.eval()


def outputs(model, alpha):
    with torch.no_grad(), model.at_alpha(alpha):
        return model(IMAGES)


@MODES
def test_a_frozen_teacher_is_the_same_at_every_level(mode):
    net = Distilled().eval()
    teacher, student = (value.clone() for value in net(IMAGES))
    model = calibrated(net, mode)
    for alpha in (0.0, 0.5):
        found = outputs(model, alpha)
        assert torch.allclose(found[0], teacher, rtol=0.0, atol=1e-6)
        assert not torch.allclose(found[1], student, rtol=0.0, atol=1e-3)  # the student is compressed
    whole = [line for line in model.report(0.0).splitlines() if "requires no gradients" in line]
    assert any("teacher.3.weight" in line for line in whole)
    assert not any("student" in line for line in whole)
    kept = model.describe()["plan"]["whole"]
    assert any("teacher.3.weight" in what and "requires no gradients" in why for what, why in kept)


def test_the_warning_gives_the_reason():
    with pytest.warns(UserWarning, match=r"of the parameters of Distilled stay whole.*teacher.*requires no gradients"):
        SubspaceModel(Distilled().eval(), IMAGES[:2], subspace="point")


@MODES
def test_without_the_flag_the_teacher_is_compressed(mode):
    net = Distilled().eval().requires_grad_(True)
    teacher = net(IMAGES)[0].detach()
    model = calibrated(net, mode)
    assert not torch.allclose(outputs(model, 0.0)[0], teacher, rtol=0.0, atol=1e-3)


@MODES
def test_a_network_that_is_frozen_as_a_whole_is_deployed_and_compressed(mode):
    free, frozen = (calibrated(Distilled().requires_grad_(requires), mode) for requires in (True, False))
    assert free.efficiency(0.0) == frozen.efficiency(0.0)


@pytest.mark.parametrize("mode", ["unstructured", "quantized"])
@pytest.mark.parametrize("start", ["copy", "independent"])
def test_the_line_of_a_frozen_teacher_is_a_point(mode, start):
    net = Distilled().eval()
    teacher = net(IMAGES)[0].detach()
    model = SubspaceModel(net, mode=mode, subspace="line", line={"parameters": "all", "start": start})
    model.recalibrate([IMAGES], alphas=[0.0, 0.5])
    assert torch.allclose(outputs(model.eval(), 0.0)[0], teacher, rtol=0.0, atol=1e-5)


class FollowsChannels(nn.Module):
    """Frozen tensors that have one entry per channel: they go with the layers that are trained."""

    def __init__(self, frozen):
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(8, 16), nn.LayerNorm(16), nn.Linear(16, 16)
        self.position, self.head = nn.Parameter(torch.randn(1, 8, 16)), nn.Linear(16, 4)
        self.blur = nn.Conv1d(16, 16, 3, padding=1, groups=16, bias=False)
        if frozen:
            for part in (self.norm, self.position, self.blur, self.first.bias, self.second.bias):
                part.requires_grad_(False)

    def forward(self, x):
        x = self.norm(self.first(x[:, 0])) + self.position
        return self.head(self.second(self.blur(x.mT).mT).relu().mean(1))


def test_frozen_tensors_of_single_channels_follow_the_layers_that_are_trained():
    free, frozen = (SubspaceModel(FollowsChannels(frozen), IMAGES[:2], subspace="point") for frozen in (False, True))
    assert free.efficiency(0.0) == frozen.efficiency(0.0)


def small_part(model, module, name):
    """The shape of a weight of the most compressed level."""
    return tuple(model.materialize(0.0).get_parameter(name).shape)


@MODES
def test_a_fit_of_a_student_leaves_the_teacher_alone_and_its_files_do_so(tmp_path, mode):
    torch.manual_seed(0)
    module, callback = Distilling(), lcs(mode=mode, subspace="point", recalibration={"levels": 3})
    run = trainer(tmp_path, callback, max_epochs=2)
    run.fit(module, datamodule=Data())
    model = callback.subspace_model.eval()
    expected = outputs(model, 1.0)[0] if mode != "quantized" else module.net.eval().teacher(IMAGES)
    assert torch.allclose(outputs(model, 0.0)[0], expected, rtol=0.0, atol=1e-6)
    run.save_checkpoint(tmp_path / "last.ckpt")
    # Whatever the flags are where it is opened.
    for requires in (True, False):
        opened = SubspaceModel.from_checkpoint(tmp_path / "last.ckpt", Distilled().requires_grad_(requires))
        assert torch.equal(outputs(opened, 0.0)[0], outputs(model, 0.0)[0])
        assert opened.efficiency(0.0) == model.efficiency(0.0)
    assert copy.deepcopy(model).efficiency(0.0) == model.efficiency(0.0)
    model.save(tmp_path / "model.lcs", levels=callback.curve)
    network = None if mode == "structured" else Distilled().requires_grad_(True)
    loaded = SubspaceModel.load(tmp_path / "model.lcs", network)
    assert torch.allclose(outputs(loaded, 0.0)[0], outputs(model, 0.0)[0], rtol=0.0, atol=1e-6)
    assert loaded.efficiency(0.0) == model.efficiency(0.0)


class Epochs(Callback):
    """The cost of the most compressed level at the end of every epoch."""

    def __init__(self, callback):
        self.callback, self.costs = callback, []

    def on_train_epoch_end(self, trainer, pl_module):
        self.costs.append(self.callback.subspace_model.efficiency(0.0))


class OwnFreezing(Callback):
    """Freezes by hand, at one of the places where people do it, and releases at the start of the second epoch."""

    def __init__(self, place):
        setattr(self, place, self.freeze)

    def freeze(self, trainer, pl_module, *_, **__):
        if trainer.current_epoch == 0:
            pl_module.backbone.requires_grad_(False)

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            pl_module.backbone.requires_grad_(True)


FREEZING = {
    "BackboneFinetuning": lambda: BackboneFinetuning(1, backbone_initial_lr=0.1, train_bn=False),
    "setup": lambda: OwnFreezing("setup"),
    "on_fit_start": lambda: OwnFreezing("on_fit_start"),
    "on_train_start": lambda: OwnFreezing("on_train_start"),
}


@pytest.mark.filterwarnings("ignore:The provided params to be frozen already exist:UserWarning")
@MODES
@pytest.mark.parametrize(
    ("freezing", "first"),
    [
        ("BackboneFinetuning", False),
        ("BackboneFinetuning", True),
        ("setup", False),
        ("on_fit_start", True),
        ("on_train_start", False),
    ],
)
def test_a_backbone_that_is_released_later_is_compressed_from_then_on(tmp_path, mode, freezing, first):
    options = {"mode": mode, "subspace": "point", "every_n_epochs": 1}
    callback, other = lcs(**options), FREEZING[freezing]()
    watching = Epochs(callback)
    order = [other, callback, watching] if first else [callback, other, watching]
    trainer(tmp_path, *order, max_epochs=2, num_sanity_val_steps=1).fit(Tuning(), datamodule=Data())
    plain = lcs(**options)
    trainer(tmp_path, plain).fit(Tuning(), datamodule=Data())
    first_epoch, second_epoch = watching.costs
    assert first_epoch.size_bytes > second_epoch.size_bytes == plain.curve[0].size_bytes
    assert callback.curve[0].size_bytes == plain.curve[0].size_bytes


@MODES
def test_what_was_trained_is_compressed_also_when_it_is_frozen_afterwards(tmp_path, mode):
    module, callback = Tuning(), lcs(mode=mode, subspace="point")
    trainer(tmp_path, callback).fit(module, datamodule=Data())
    before, cost = outputs(callback.subspace_model.eval(), 0.0), callback.subspace_model.efficiency(0.0)
    module.backbone.requires_grad_(False)
    assert callback.subspace_model.efficiency(0.0) == cost
    assert torch.equal(outputs(callback.subspace_model, 0.0), before)


@MODES
def test_a_run_that_is_resumed_after_the_release(tmp_path, mode):
    """Lightning leaves the backbone frozen then; it was trained at every level before."""
    options = {"mode": mode, "subspace": "point"}
    module, callback = Tuning(), lcs(**options)
    run = trainer(tmp_path, callback)
    run.fit(module, datamodule=Data())
    run.save_checkpoint(tmp_path / "last.ckpt")
    again, resumed = Tuning(), lcs(**options)
    again.backbone.requires_grad_(False)
    again.configure_optimizers = lambda: torch.optim.SGD(again.parameters(), 0.1)
    trainer(tmp_path, resumed, max_epochs=2).fit(again, datamodule=Data(), ckpt_path=tmp_path / "last.ckpt")
    assert resumed.curve[0].size_bytes == callback.curve[0].size_bytes


def test_several_networks_of_which_one_is_frozen(tmp_path):
    class Split(Tuning):
        def __init__(self):
            super().__init__()
            self.frozen, self.trained = layers().requires_grad_(False), nn.Linear(8, 10)
            del self.net

        def net(self, x):
            return self.trained(self.frozen(x).mean((2, 3)))

    torch.manual_seed(0)
    module, callback = Split(), lcs(subspace="point", target=["frozen", "trained"])
    trainer(tmp_path, callback).fit(module, datamodule=Data())
    frozen = callback.subspace_model.eval().parts[0]
    with torch.no_grad(), callback.subspace_model.at_alpha(0.0):
        found = callback.subspace_model.runner.run(frozen, frozen.network.module, (IMAGES,), {})
    assert torch.allclose(found, module.frozen.eval()(IMAGES), rtol=0.0, atol=1e-6)


def test_released_by_hand():
    net = Tuned()
    net.backbone.requires_grad_(False)
    model = SubspaceModel(net, IMAGES[:2], subspace="point").eval()
    whole = model.efficiency(0.0)
    before = outputs(model, 0.0)
    net.requires_grad_(True)
    after = outputs(model, 0.0)
    assert model.efficiency(0.0).size_bytes < whole.size_bytes
    assert not torch.allclose(before, after)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with torch.no_grad():
            assert torch.allclose(model.materialize(0.0)(IMAGES), after, rtol=0.0, atol=1e-6)
