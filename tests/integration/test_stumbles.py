"""What a new user tries first and gets wrong: the error says what to do, and when."""

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import nn

from lightning_lcs import CompressibleSubspaceWrapper
from tests.integration.support import Data, Module, Net, digits, lcs, loader, trainer


@pytest.mark.parametrize(
    ("target", "match"),
    [
        (
            "net.encoder",
            r"target='net.encoder' does not exist in Module; the children of 'net' are: net.conv1, net.norm1",
        ),
        ("net.head.last", r"the children of 'net.head' are: none"),
        ("nett", r"the children of Module are: net, loss, train_acc"),
        (["net.conv1", "net.encoder"], r"target='net.encoder' .* the children of 'net' are: net.conv1"),
    ],
)
def test_a_target_that_does_not_exist(tmp_path, target, match):
    with pytest.raises(ValueError, match=match):
        trainer(tmp_path, lcs(target=target)).fit(Module(), datamodule=Data())


class Text(nn.Module):
    """Takes a list of texts."""

    def __init__(self):
        super().__init__()
        self.embed, self.norm, self.head = nn.Embedding(256, 8), nn.LayerNorm(8), nn.Linear(8, 10)

    def forward(self, texts):
        rows = [self.embed(torch.tensor(list(text.encode()))).mean(0) for text in texts]
        return self.head(self.norm(torch.stack(rows)))


def test_a_batch_of_texts(tmp_path):
    data = loader([(text, number) for number, text in enumerate(["one", "two", "three", "four"])], 2)
    match = r"called without a tensor \(str\): .*turn the batch into tensors before the network .*target="
    with pytest.raises(RuntimeError, match=match):
        trainer(tmp_path, lcs()).fit(Module(Text()), data)


@pytest.mark.parametrize(
    ("make", "monitor"), [(EarlyStopping, "lcs/val_acc/mean"), (ModelCheckpoint, "lcs/val_acc/alpha_050")]
)
def test_a_monitor_of_a_curve_that_is_measured_too_late(tmp_path, make, monitor):
    def fit(every, epochs):
        options = {"max_epochs": epochs, "enable_checkpointing": True}
        callbacks = lcs(every_n_epochs=every), make(monitor=monitor, mode="max")
        trainer(tmp_path, *callbacks, **options).fit(Module(), datamodule=Data())

    match = rf"{make.__name__} monitors '{monitor}' from epoch 1 on.*last validation only.*every_n_epochs=1\)"
    with pytest.raises(ValueError, match=match):
        fit(None, 2)
    with pytest.raises(ValueError, match=r"the curve every 2 epochs: set LCSCallback\(every_n_epochs=1\)"):
        fit(2, 3)


class Plateau(Module):
    """A schedule that looks at the curve."""

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), 0.1)
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "monitor": "lcs/val_acc/mean"}}


def test_a_schedule_that_looks_at_a_curve_that_is_measured_too_late(tmp_path):
    with pytest.raises(ValueError, match="ReduceLROnPlateau monitors 'lcs/val_acc/mean' from epoch 1 on"):
        trainer(tmp_path, lcs(), max_epochs=2).fit(Plateau(), datamodule=Data())


@pytest.mark.parametrize(
    ("options", "every", "saved"),
    [({"max_epochs": 1}, None, 1), ({"max_epochs": 9, "max_steps": 3}, None, 1), ({"max_epochs": 2}, 1, 1)],
    ids=["one-epoch", "one-epoch-of-steps", "each-epoch"],
)
def test_monitors_that_find_their_curve_are_left_alone(tmp_path, options, every, saved):
    best = ModelCheckpoint(tmp_path / "best", monitor="lcs/val_acc/mean", mode="max")
    losses = ModelCheckpoint(tmp_path / "loss", monitor="lcs/train_loss/sampled")
    callbacks = lcs(every_n_epochs=every), best, losses
    trainer(tmp_path, *callbacks, enable_checkpointing=True, **options).fit(Module(), datamodule=Data())
    assert len(list((tmp_path / "best").iterdir())) == saved


def test_images_of_other_channels_than_the_model_takes(tmp_path):
    module = CompressibleSubspaceWrapper("test_resnet", scheduler="constant")
    with pytest.raises(ValueError, match=r"images have 1 channel\(s\).* made with in_chans=3: set in_chans=1"):
        trainer(tmp_path).fit(module, loader(digits(0, 32)))
    # The channels of a network of the user's own are its own matter.
    assert CompressibleSubspaceWrapper(Net())(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_files_of_a_run_without_a_logger(tmp_path, monkeypatch):
    """They don't lie about in the working directory; a folder that was chosen holds them as it is."""
    monkeypatch.chdir(tmp_path)
    files = {"curve.csv", "curves.csv", "summary.json"}
    trainer(None, lcs(alphas=2)).fit(Module(), datamodule=Data())
    assert {path.name for path in tmp_path.iterdir()} == {"lightning_lcs_logs"}
    assert {path.name for path in (tmp_path / "lightning_lcs_logs").iterdir()} == files
    trainer(tmp_path / "mine", lcs(alphas=2)).fit(Module(), datamodule=Data())
    assert {path.name for path in (tmp_path / "mine").iterdir()} == files
