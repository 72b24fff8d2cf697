"""``LCSCallback`` beside losses that are no classifier's, on the digits."""

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_lcs import LCSCallback, SubspaceModel
from tests.integration.support import digits, lcs, loader, trainer


class Task(L.LightningModule):
    """A network and a loss of images and digits."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        raise NotImplementedError

    def training_step(self, batch, batch_idx):
        return self.loss(*batch)

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(*batch))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def down() -> list[nn.Module]:
    return [nn.Conv2d(1, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1)]


class Segmentation(Task):
    """Ink or paper, for each pixel."""

    def __init__(self) -> None:
        super().__init__(nn.Sequential(*down(), nn.ReLU(), nn.Upsample(scale_factor=2), nn.Conv2d(32, 2, 1)))

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.net(images), (images[:, 0] > 0).long())


class Distance(Task):
    """Dense regression: brightness of the neighbourhood of each pixel."""

    def __init__(self) -> None:
        super().__init__(nn.Sequential(*down(), nn.GELU(), nn.ConvTranspose2d(32, 1, 4, 2, 1)))

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        return F.smooth_l1_loss(self.net(images), F.avg_pool2d(images, 3, 1, 1))


class Contrastive(Task):
    """Two views of an image are near to each other, and far from all others: two calls in a step."""

    def __init__(self) -> None:
        super().__init__(nn.Sequential(*down(), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 8)))

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        first, second = (F.normalize(self.net(view), dim=1) for view in (images, images.roll(1, 3)))
        return F.cross_entropy(first @ second.T / 0.2, torch.arange(len(images)))


class Reconstruction(Task):
    """A variational autoencoder: random numbers, two losses, a dictionary from the network."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encode = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU())
            self.mean, self.scale = nn.Linear(64, 6), nn.Linear(64, 6)
            self.decode = nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 64))

        def forward(self, images: Tensor) -> dict[str, Tensor]:
            hidden = self.encode(images)
            mean, scale = self.mean(hidden), self.scale(hidden)
            code = mean + torch.randn_like(mean) * (0.5 * scale).exp()
            return {"images": self.decode(code).view_as(images), "mean": mean, "scale": scale}

    def __init__(self) -> None:
        super().__init__(self.Net())

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        out = self.net(images)
        divergence = -0.5 * (1 + out["scale"] - out["mean"] ** 2 - out["scale"].exp()).mean()
        return F.mse_loss(out["images"], images) + 0.01 * divergence


@pytest.mark.parametrize("task", [Segmentation, Distance, Contrastive, Reconstruction])
@pytest.mark.parametrize("mode", ["structured", "unstructured", "quantized"])
def test_every_level_learns(tmp_path, task, mode):
    torch.manual_seed(0)
    module, callback = (
        task(),
        lcs(mode=mode, subspace="point", sampling={"warmup": None if mode == "structured" else 0.3}),
    )
    train, val = loader(digits(0, 320), 32), loader(digits(400, 64), 32)
    run = trainer(tmp_path, callback, max_epochs=4)
    before = {p.alpha: p.metrics["val_loss"] for p in untrained(tmp_path, task(), mode, train, val).curve}
    run.fit(module, train, val)
    assert [point.alpha for point in callback.curve] == list(before)
    for point in callback.curve:
        assert point.metrics["val_loss"] < before[point.alpha]
    run.save_checkpoint(tmp_path / "last.ckpt")
    model = SubspaceModel.from_checkpoint(tmp_path / "last.ckpt", task())
    assert model.mode == callback.mode


def untrained(folder, module: L.LightningModule, mode: str, train, val) -> LCSCallback:
    """The curve of a network before training."""
    callback = lcs(mode=mode, subspace="point", sampling={"warmup": None if mode == "structured" else 0.0})
    module.configure_optimizers = lambda: torch.optim.SGD(module.parameters(), lr=0.0)
    trainer(folder, callback).fit(module, train, val)
    return callback
