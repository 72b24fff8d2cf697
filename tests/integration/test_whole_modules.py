"""Whole LightningModules of other packages log, and end up as, what they do in plain Lightning (``make packages``).

Their learning rate is zero, so that the update is the same, and every number is the same to the last bit.
"""

import copy
import tempfile

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, Dataset

from lightning_lcs import LCSCallback

pytestmark = [pytest.mark.packages, pytest.mark.filterwarnings("ignore")]


class Drawn(Dataset):
    """Made-up samples: number i is always the same."""

    def __init__(self, length, make, seed=0):
        self.length, self.make, self.seed = length, make, seed

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(1000 * self.seed + index)
        return self.make(lambda size=32: torch.randn(3, size, size, generator=generator), index)


class Kept(CSVLogger):
    """Keeps what it is told, but for what LCSCallback logs itself."""

    def __init__(self):
        super().__init__(tempfile.mkdtemp())
        self.told = []

    def log_metrics(self, metrics, step=None):
        own = {name: value for name, value in metrics.items() if not name.startswith("lcs/")}
        if set(own) - {"epoch"}:
            self.told.append((step, own))

    def save(self):
        pass


def optimizer_of(configured):
    """The first optimizer in whatever ``configure_optimizers`` returns."""
    while not isinstance(configured, torch.optim.Optimizer):
        configured = configured["optimizer"] if isinstance(configured, dict) else configured[0]
    return configured


def trained(make, samples, lcs, collate=None):
    L.seed_everything(1, verbose=False)
    module, logger = make(), Kept()
    configure = module.configure_optimizers

    def still():
        optimizer = optimizer_of(configure())
        for group in optimizer.param_groups:
            group.update(lr=0.0, weight_decay=0.0)
        return optimizer

    module.configure_optimizers = still
    quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=2, logger=logger, log_every_n_steps=1, callbacks=lcs,
        default_root_dir=tempfile.mkdtemp(), **quiet,
    )  # fmt: skip
    train = DataLoader(Drawn(32, samples), 8, shuffle=True, drop_last=True, collate_fn=collate)
    trainer.fit(module, train, DataLoader(Drawn(16, samples, seed=1), 8, collate_fn=collate))
    return module, logger.told


def assert_same_as_plain(make, samples, target=None, curve=True, **options):
    plain, expected = trained(make, samples, [], **options)
    lcs = LCSCallback(target=target, alphas=3, recalibration={"images": 16, "levels": 3})
    module, told = trained(make, samples, [lcs], **options)
    assert len(told) == len(expected) > 0
    for (step, ours), (plain_step, theirs) in zip(told, expected, strict=True):
        assert step == plain_step
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(torch.tensor(ours[name]), torch.tensor(theirs[name])) for name in ours), step
    for name, value in plain.state_dict().items():
        assert torch.equal(value, module.state_dict()[name]), name
    assert len(lcs.curve) == (3 if curve else 0)
    assert len(lcs.subspace_model.statistics) >= 2


def test_classification_of_torchgeo():
    trainers = pytest.importorskip("torchgeo.trainers")

    def make():
        return trainers.ClassificationTask(
            model="resnet18", weights=None, in_channels=3, task="multiclass", num_classes=4
        )

    assert_same_as_plain(make, lambda image, index: {"image": image(), "label": torch.tensor(index % 4)})


@pytest.mark.parametrize("task", ["SimCLRTask", "MoCoTask"])
def test_self_supervision_of_torchgeo(task):
    """Their validation does nothing, so that there is no curve."""
    trainers = pytest.importorskip("torchgeo.trainers")
    options = {"SimCLRTask": {}, "MoCoTask": {"version": 2, "memory_bank_size": 16}}[task]

    def make():
        return getattr(trainers, task)(model="resnet18", weights=None, in_channels=3, size=32, **options)

    assert_same_as_plain(make, lambda image, index: {"image": image()}, target="backbone", curve=False)


def test_teacher_and_student_of_anomalib(monkeypatch):
    stfpm = pytest.importorskip("anomalib.models.image.stfpm.lightning_model")
    data = pytest.importorskip("anomalib.data")
    import timm

    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda *a, **options: create(*a, **{**options, "pretrained": False}))

    def make():
        without = dict.fromkeys(("pre_processor", "post_processor", "evaluator", "visualizer"), False)
        return stfpm.Stfpm(backbone="resnet18", layers=["layer1", "layer2"], **without)

    def collate(samples):
        images, labels = zip(*samples, strict=True)
        return data.ImageBatch(image=torch.stack(images), gt_label=torch.tensor(labels, dtype=torch.bool))

    samples = lambda image, index: (image(64), index % 2)  # noqa: E731
    assert_same_as_plain(make, samples, target="model.student_model", collate=collate)


class Byol(L.LightningModule):
    """BYOL out of the parts of lightly, as its documentation puts them together."""

    def __init__(self):
        super().__init__()
        from lightly.loss import NegativeCosineSimilarity
        from lightly.models.modules import BYOLPredictionHead, BYOLProjectionHead
        from lightly.models.utils import deactivate_requires_grad
        from torchvision.models import resnet18

        self.backbone = nn.Sequential(*list(resnet18().children())[:-1], nn.Flatten())
        self.projection = BYOLProjectionHead(512, 64, 32)
        self.prediction = BYOLPredictionHead(32, 64, 32)
        self.teacher = copy.deepcopy(nn.ModuleList([self.backbone, self.projection]))
        deactivate_requires_grad(self.teacher)
        self.criterion = NegativeCosineSimilarity()

    def loss(self, views):
        first, second = views
        student = self.prediction(self.projection(self.backbone(first)))
        return self.criterion(student, self.teacher[1](self.teacher[0](second)).detach())

    def training_step(self, views, batch_idx):
        from lightly.models.utils import update_momentum

        update_momentum(self.backbone, self.teacher[0], m=0.99)
        update_momentum(self.projection, self.teacher[1], m=0.99)
        loss = self.loss(views)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, views, batch_idx):
        self.log("val_loss", self.loss(views))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.06)


@pytest.mark.parametrize("target", ["backbone", ["backbone", "projection"]])
def test_a_momentum_teacher_with_lightly(target):
    pytest.importorskip("lightly")
    assert_same_as_plain(Byol, lambda image, index: (image(), image()), target=target)


class Retrieval(L.LightningModule):
    """Embeddings with a memory of earlier batches, and a recall over the whole validation set."""

    def __init__(self):
        super().__init__()
        from pytorch_metric_learning import losses, miners

        self.net = nn.Sequential(
            nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 16)
        )
        contrastive, miner = losses.ContrastiveLoss(), miners.MultiSimilarityMiner()
        self.memory = losses.CrossBatchMemory(contrastive, 16, memory_size=32, miner=miner)
        self.found = []

    def training_step(self, batch, batch_idx):
        loss = self.memory(self.net(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.found.append((self.net(batch[0]), batch[1]))

    def on_validation_epoch_end(self):
        embeddings, labels = (torch.cat(column) for column in zip(*self.found, strict=True))
        nearest = torch.cdist(embeddings, embeddings).fill_diagonal_(torch.inf).argmin(1)
        self.log("recall_at_1", (labels[nearest] == labels).float().mean())
        self.found.clear()

    def configure_optimizers(self):
        return torch.optim.AdamW(self.net.parameters(), 1e-3)


def test_retrieval_with_pytorch_metric_learning():
    pytest.importorskip("pytorch_metric_learning")
    assert_same_as_plain(Retrieval, lambda image, index: (image(), torch.tensor(index % 4)), target="net")
