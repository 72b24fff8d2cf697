"""What a level costs is that of one sample of the module's input, however often its networks run for it."""

import pytest
import torch
from lightning import LightningModule
from torch import nn

from lightning_lcs import SubspaceModel
from tests.integration.support import lcs, loader, trainer

BACKBONE, HEAD = 12 * 12 * (27 * 8 + 64), 8 * 64 + 64 * 4


class Regions(LightningModule):
    """A head that runs on regions of each image, all of them in one call or image after image."""

    def __init__(self, regions=100, one_by_one=False):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1))
        self.head = nn.Sequential(nn.Linear(8, 64), nn.LayerNorm(64), nn.ReLU(), nn.Linear(64, 4))
        self.regions, self.one_by_one = regions, one_by_one

    def forward(self, x):
        found = self.backbone(x).flatten(2)[:, :, : self.regions].transpose(1, 2)
        return torch.cat([self.head(one) for one in found]) if self.one_by_one else self.head(found.flatten(0, 1))

    def training_step(self, batch, _):
        return self(batch).square().mean()

    def validation_step(self, batch, _):
        self.log("val_loss", self(batch).square().mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 1e-3)


class Frames(Regions):
    """A backbone that runs on the frames of each clip."""

    def forward(self, clips):
        features = self.backbone(clips.flatten(0, 1)).mean((2, 3))
        return self.head(features.unflatten(0, clips.shape[:2]).mean(1))


class Twice(Regions):
    """Two views of each image."""

    def forward(self, x):
        return super().forward(x) + super().forward(x.flip(-1))


IMAGES, CLIPS = torch.rand(5, 3, 14, 14), torch.rand(5, 3, 3, 14, 14)


@pytest.mark.parametrize(
    ("make", "data", "macs"),
    [
        (Regions, IMAGES, BACKBONE + 100 * HEAD),
        (lambda: Regions(one_by_one=True), IMAGES, BACKBONE + 100 * HEAD),
        (lambda: Regions(1), IMAGES, BACKBONE + HEAD),
        (Frames, CLIPS, 3 * BACKBONE + HEAD),
        (Twice, IMAGES, 2 * (BACKBONE + 100 * HEAD)),
    ],
    ids=["regions", "image after image", "one row", "frames of a clip", "two views"],
)
@pytest.mark.parametrize("mode", ["structured", "unstructured"])
def test_several_networks(tmp_path, make, data, macs, mode):
    callback = lcs(mode=mode, subspace="point", target=["backbone", "head"])
    batches, run = loader(data, batch_size=2), trainer(tmp_path, callback)
    run.fit(make(), batches, batches)
    assert [callback.curve[-1].macs, callback.subspace_model.efficiency(1.0).macs] == [macs, macs]
    assert callback.curve[0].macs < macs
    run.save_checkpoint(tmp_path / "last.ckpt")
    opened = SubspaceModel.from_checkpoint(tmp_path / "last.ckpt", make())
    assert [opened.efficiency(point.alpha).macs for point in callback.curve] == [p.macs for p in callback.curve]


def test_a_single_network_is_deployed_alone_and_its_own_samples_count(tmp_path):
    callback = lcs(subspace="point", target="head")
    batches = loader(IMAGES, batch_size=2)
    trainer(tmp_path, callback).fit(Regions(), batches, batches)
    assert callback.curve[-1].macs == HEAD


class Detector(nn.Module):
    """Takes images and a list of targets, and computes its loss itself."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3))
        self.head = nn.Linear(8, 4)

    def forward(self, pixel_values, labels):
        boxes = self.head(self.body(pixel_values).relu().mean((2, 3)))
        return sum((boxes[i] - target["boxes"]).abs().mean() for i, target in enumerate(labels))


class Detecting(Regions):
    def __init__(self):
        super().__init__()
        del self.backbone, self.head
        self.model = Detector()

    def forward(self, batch):
        return self.model(pixel_values=batch[0], labels=batch[1])

    def validation_step(self, batch, _):
        self.log("val_loss", self(batch), batch_size=4)


@pytest.mark.parametrize("mode", ["quantized", "unstructured"])
def test_a_network_that_takes_a_list_of_targets(tmp_path, mode):
    targets = [{"boxes": torch.rand(4)} for _ in range(4)]
    batches = loader([(torch.rand(4, 3, 16, 16), targets) for _ in range(2)], batch_size=None)
    callback = lcs(mode=mode, subspace="point")
    trainer(tmp_path, callback).fit(Detecting(), batches, batches)
    assert callback.curve[-1].macs == 7 * 7 * 27 * 8 + 5 * 5 * 9 * 64 + 32
    assert all(point.latency_ms > 0 and "val_loss" in point.metrics for point in callback.curve)
