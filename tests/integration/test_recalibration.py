"""Batch-norm statistics per level: right, from training data only, and without a trace in the training run."""

import copy
import random

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
)

from lightning_lcs import SubspaceModel, Unstructured
from lightning_lcs.training.data.loaders import batch_size
from tests.integration.support import Data, Module, Net, digits, group_norm, lcs, loader, trainer

# Means and variances of a convolution's outputs in float32, summed in another order.
STATISTICS_TOLERANCE = 1e-5


class Poisoned(Dataset):
    """Fails as soon as an image is read."""

    def __len__(self):
        return 16

    def __getitem__(self, index):
        raise AssertionError("an evaluation image was read")


class Small(nn.Module):
    """One convolution, one batch norm."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3)
        self.norm = nn.BatchNorm2d(8, momentum=0.3)
        self.head = nn.Linear(8, 10)

    def forward(self, x):
        return self.head(self.norm(self.conv(x)).relu().mean((2, 3)))


@pytest.mark.parametrize("line_parameters", ["norm", "all"])
def test_statistics_are_the_cumulative_average_over_training_batches(tmp_path, train, val, line_parameters):
    callback = lcs(line={"parameters": line_parameters}, recalibration={"levels": [0.0, 0.4]})
    module = Module(Small())
    trainer(tmp_path, callback, max_epochs=2).fit(module, train, val)
    model = callback.subspace_model
    endpoints = model.parts[0].endpoints
    # Recalibration has chosen all 48 images, in the batches of training.
    images = train.dataset.tensors[0]
    for alpha in (0.0, 0.4):
        kept = round(8 * (0.25 + 0.75 * alpha))
        weight, bias = module.net.conv.weight.detach(), module.net.conv.bias.detach()
        if line_parameters == "all":
            weight = (1 - alpha) * endpoints["conv.weight"].detach() + alpha * weight
            bias = (1 - alpha) * endpoints["conv.bias"].detach() + alpha * bias
        outputs = [nn.functional.conv2d(batch, weight[:kept], bias[:kept]) for batch in images.split(16)]
        mean = torch.stack([output.mean((0, 2, 3)) for output in outputs]).mean(0)
        variance = torch.stack([output.var((0, 2, 3), correction=1) for output in outputs]).mean(0)
        stored = model.statistics[alpha]
        assert (stored["norm.running_mean"] - mean).abs().max() <= STATISTICS_TOLERANCE
        assert (stored["norm.running_var"] - variance).abs().max() <= STATISTICS_TOLERANCE


class Detector(nn.Module):
    """Gives its losses in training and its findings in evaluation, as torchvision's detectors do."""

    def __init__(self):
        super().__init__()
        self.backbone, self.neck = Small(), nn.BatchNorm1d(10)

    def forward(self, images, labels):
        assert {image.shape for image in images} == {(1, 8, 8)}
        found = self.neck(self.backbone(torch.stack(images)))
        return {"loss": nn.functional.cross_entropy(found, labels)} if self.training else list(found.argmax(1))


class Detection(Module):
    def __init__(self, seen):
        super().__init__(Detector())
        self.teacher = nn.Dropout().eval()
        self.flags = seen.add

    def training_step(self, batch, batch_idx):
        self.flags((self.net.backbone.conv.training, self.net.neck.training, self.teacher.training))
        return self.net(list(batch[0]), batch[1])["loss"]

    def validation_step(self, batch, batch_idx):
        assert not any(child.training for child in self.modules())
        self.log("val_found", float(len(self.net(list(batch[0]), batch[1]))))


class Neck(Callback):
    """What training leaves in the batch norm outside of the network."""

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.mean = pl_module.net.neck.running_mean.clone()


@pytest.mark.filterwarnings("ignore:Found 1 module.s. in eval mode")  # the teacher, on purpose
def test_what_is_outside_of_the_network_trains_meanwhile(tmp_path, train, val):
    seen = set()  # no attribute, which would be set back
    callback, module = lcs(target="net.backbone", recalibration={"levels": [0.0, 0.4]}), Detection(seen)
    neck = Neck()
    trainer(tmp_path, neck, callback, max_epochs=1).fit(module, train, val)
    assert callback.subspace_model.statistics[0.4]
    assert seen == {(True, True, False), (False, True, False)}, "in a step, and in recalibration"
    assert [module.training, module.teacher.training] == [True, False]
    assert torch.equal(module.net.neck.running_mean, neck.mean), "recalibration has moved a batch norm outside"


@pytest.mark.filterwarnings("ignore:Found 1 module.s. in eval mode")
def test_a_detector_is_compressed_whole_by_its_own_code(tmp_path, train, val):
    callback, module = lcs(mode=Unstructured(dense=()), subspace="point", target="net", alphas=2), Detection(set())
    trainer(tmp_path, callback, max_epochs=1).fit(module, train, val)
    assert callback.subspace_model.statistics[0.0].keys() == {
        f"{norm}.running_{what}" for norm in ("backbone.norm", "neck") for what in ("mean", "var")
    }
    assert callback.curve[-1].macs == 8 * 6 * 6 * 9 + 8 * 10, "of one of the listed images"


class Auxiliary(Small):
    """A second head and dropout, in training; the head has a batch norm of its own."""

    def __init__(self):
        super().__init__()
        self.auxiliary = nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 10))
        self.dropout = nn.Dropout(0.9)

    def forward(self, x):
        features = self.dropout(self.norm(self.conv(x)).relu()).mean((2, 3))
        logits = self.head(features)
        return (logits, self.auxiliary(features)) if self.training else logits


class TwoLosses(Module):
    def training_step(self, batch, batch_idx):
        images, labels = batch
        logits, auxiliary = self.net(images)
        return self.loss(logits, labels) + self.loss(auxiliary, labels)


@pytest.mark.parametrize("mode", ["structured", "quantized"])
def test_what_a_network_gives_in_training_alone_is_there_without_its_dropout(tmp_path, train, val, mode):
    callback, module = lcs(mode=mode, subspace="point", recalibration={"levels": [0.5]}), TwoLosses(Auxiliary())
    trainer(tmp_path, callback, max_epochs=1).fit(module, train, val)
    assert "auxiliary.0.running_mean" in callback.subspace_model.statistics[0.5]
    found = []
    for dropout in (0.9, 0.0):
        module.net.dropout.p = dropout
        model = SubspaceModel(copy.deepcopy(module.net), mode=mode, subspace="point")
        model.recalibrate([train.dataset.tensors[0]], [0.5])
        found.append(model.statistics)
    torch.testing.assert_close(*found, rtol=0.0, atol=0.0)


def test_the_number_of_images_is_kept_to(tmp_path, train, val):
    seen = []

    class Counts(Module):
        def training_step(self, batch, batch_idx):
            if not torch.is_grad_enabled():
                seen.append(len(batch[0]))
            return super().training_step(batch, batch_idx)

    trainer(tmp_path, lcs(recalibration={"images": 32, "levels": [0.0]}, alphas=[0.0, 1.0])).fit(Counts(), train, val)
    assert seen == [16, 16]


@pytest.mark.parametrize("limit", [{"fast_dev_run": True}, {"limit_train_batches": 1}, {"overfit_batches": 1}])
def test_limits_on_training_batches_hold(tmp_path, train, val, limit):
    batches = set()

    class Counts(Module):
        def training_step(self, batch, batch_idx):
            batches.add(batch_idx)
            return super().training_step(batch, batch_idx)

    trainer(tmp_path, lcs(), **limit).fit(Counts(), train, val)
    assert batches == {0}


def test_evaluation_data_are_never_read(tmp_path, train):
    saving = ModelCheckpoint(tmp_path, filename="model", every_n_train_steps=3)
    run = trainer(tmp_path, lcs(recalibration={"every_checkpoint": True}), saving, enable_checkpointing=True)
    # The checkpoint comes first, with statistics; then validation reads an image.
    with pytest.raises(AssertionError, match="an evaluation image was read"):
        run.fit(Module(), train, loader(Poisoned()))
    assert torch.load(tmp_path / "model.ckpt", weights_only=True)["lightning_lcs"]["statistics"]


def test_not_a_number_in_evaluation_data_does_not_reach_the_statistics(tmp_path, train):
    images, labels = digits(48, 32).tensors
    callback = lcs()
    trainer(tmp_path, callback).fit(Module(), train, loader(TensorDataset(images * torch.nan, labels)))
    for tensors in callback.subspace_model.statistics.values():
        assert all(torch.isfinite(value).all() for value in tensors.values())


class Snapshot(Callback):
    """Everything that a training run consists of, at the start and at the end of each validation."""

    def __init__(self):
        self.before = []
        self.after = []

    @staticmethod
    def _take(trainer, module):
        return {
            "weights": {k: v.detach().clone() for k, v in module.named_parameters()},
            "buffers": {k: v.detach().clone() for k, v in module.named_buffers()},
            "momentum": [v["momentum_buffer"].clone() for v in trainer.optimizers[0].state.values()],
            "torch": torch.get_rng_state(),
            "numpy": np.random.get_state()[1].tolist(),
            "python": random.getstate(),
            "flags": [child.training for child in module.modules()],
        }

    def on_validation_start(self, trainer, pl_module):
        self.before.append(self._take(trainer, pl_module))

    def on_validation_end(self, trainer, pl_module):
        self.after.append(self._take(trainer, pl_module))


def assert_equal(a, b, where=""):
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for index, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal(x, y, f"{where}[{index}]")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    else:
        assert a == b, where


class Momentum(Module):
    """Draws from all three generators, and remembers which images it was given."""

    def __init__(self, net=None):
        super().__init__(net)
        self.given = []

    def training_step(self, batch, batch_idx):
        images, labels = batch
        if torch.is_grad_enabled():
            self.given.append(round(images.double().sum().item(), 3))
        shift = torch.rand(()) + np.random.rand() + random.random()
        return super().training_step((images + 0.1 * shift.float(), labels), batch_idx)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)


def midway(folder, every_n_epochs, **options):
    torch.manual_seed(3)
    np.random.seed(3)
    random.seed(3)
    module, snapshot = Momentum(), Snapshot()
    callbacks = [lcs(every_n_epochs=every_n_epochs), snapshot]
    loaders = loader(digits(0, 48), shuffle=True, **options), loader(digits(48, 40))
    trainer(folder, *callbacks, max_epochs=3).fit(module, *loaders)
    return module, snapshot


def test_a_curve_midway_changes_nothing(tmp_path):
    module, snapshot = midway(tmp_path, 1)
    for before, after in zip(snapshot.before, snapshot.after, strict=True):
        assert_equal(before, after)
    plain, _ = midway(tmp_path, None)
    assert module.given == plain.given
    assert_equal(dict(module.named_parameters()), dict(plain.named_parameters()))


def test_persistent_workers_go_on(tmp_path):
    workers = {"num_workers": 1, "persistent_workers": True, "multiprocessing_context": "fork"}
    plain, _ = midway(tmp_path, None)
    module, _ = midway(tmp_path, None, **workers)
    often, _ = midway(tmp_path, 1, **workers)
    assert len(often.given) == len(module.given) == len(plain.given)
    # Each epoch is one pass over all images, whatever recalibration reads in between.
    total = round(digits(0, 48).tensors[0].double().sum().item(), 1)
    for run in (plain, module, often):
        epochs = np.array(run.given).reshape(3, 3).sum(1)
        assert epochs.round(1).tolist() == [total] * 3


def test_statistics_travel_in_the_checkpoint(tmp_path):
    callback = lcs()
    saving = ModelCheckpoint(tmp_path, filename="model")
    trainer(tmp_path, callback, saving, enable_checkpointing=True).fit(Module(), datamodule=Data())
    model = SubspaceModel.from_checkpoint(tmp_path / "model.ckpt", Net())
    assert_equal(dict(model.statistics), dict(callback.subspace_model.statistics))
    assert set(model.statistics[0.0]) == {f"norm{i}.running_{s}" for i in (1, 2) for s in ("mean", "var")}


def test_training_makes_statistics_stale(tmp_path, train, val):
    callback, module = lcs(), Module()
    trainer(tmp_path, callback).fit(module, train, val)
    first = {name: value.clone() for name, value in callback.subspace_model.statistics[0.0].items()}
    trainer(tmp_path, callback).fit(module, train, val)
    second = callback.subspace_model.statistics[0.0]
    assert any(not torch.equal(first[name], second[name]) for name in first)


def test_no_training_data_is_an_error(tmp_path, val):
    match = "recalibration of batch norm needs training data, and the trainer has none: pass a datamodule"
    with pytest.raises(RuntimeError, match=match):
        trainer(tmp_path, lcs(subspace="point")).validate(Module(), val, verbose=False)


def test_without_batch_norm_no_training_data_are_needed(tmp_path, val):
    callback = lcs(subspace="point")
    trainer(tmp_path, callback).validate(Module(Net(group_norm)), val, verbose=False)
    assert len(callback.curve) == 3
    assert callback.subspace_model.statistics == {}


class Stream(IterableDataset):
    """Images without a length."""

    def __iter__(self):
        yield from digits(0, 48)


class Batches:
    """No DataLoader at all."""

    def __iter__(self):
        return iter(list(loader(digits(0, 48))))

    def __len__(self):
        return 3


def in_order():
    return BatchSampler(SequentialSampler(range(48)), 16, drop_last=True)


LOADERS = {
    "iterable dataset": lambda: loader(Stream()),
    "no DataLoader": Batches,
    "batch sampler": lambda: DataLoader(digits(0, 48), batch_sampler=in_order()),
    "sampler": lambda: loader(digits(0, 48), sampler=RandomSampler(range(48), num_samples=20)),
    "several": lambda: {"a": loader(digits(0, 48)), "b": loader(digits(0, 32))},
}


@pytest.mark.parametrize("kind", LOADERS)
def test_loaders_of_other_kinds(tmp_path, val, kind):
    class Any(Module):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch["a"] if isinstance(batch, dict) else batch, batch_idx)

    callback = lcs()
    trainer(tmp_path, callback).fit(Any(), LOADERS[kind](), val)
    assert set(callback.subspace_model.statistics) == {0.0, 0.5}


def test_samples_of_a_batch_are_counted():
    images, targets = [torch.randn(3, 6, 7), torch.randn(3, 8, 5)], [{"boxes": torch.randn(4, 4)}] * 2
    assert batch_size((images, targets)) == 2  # not the three channels of the first
    assert batch_size({"pixels": torch.randn(5, 3, 4, 4), "label": torch.zeros(5)}) == 5
    assert batch_size([torch.randn(7, 3, 4, 4), torch.zeros(7)]) == 7
    assert batch_size((torch.randn(4, 6, 2), torch.zeros(4, 6))) == 4  # sequences
    assert batch_size((3, "name")) == 1
