"""Data modules that are none of ``lightning.pytorch``'s."""

import copy
import pickle
import sys
import types

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from lightning_lcs import LCSCallback
from lightning_lcs.data import AdaptedDataModule
from tests.integration.support import Module


class Theirs:
    """Only what it needs, and no base class."""

    num_classes = 10

    def __init__(self, images=64):
        self.images = images
        self.trainer = None
        self.called = []

    def prepare_data(self):
        self.called.append("prepare_data")

    def setup(self, stage):
        self.called.append(("setup", stage))

    def train_dataloader(self):
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(self.images, 1, 8, 8, generator=generator)
        return DataLoader(TensorDataset(images, torch.arange(self.images) % 10), 16)


class WithValidation(Theirs):
    def val_dataloader(self):
        return self.train_dataloader()


def trainer(tmp_path):
    return pl.Trainer(
        accelerator="cpu",
        callbacks=[LCSCallback(alphas=2, recalibration={"levels": 2, "images": 32})],
        default_root_dir=tmp_path,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        logger=False,
        max_epochs=1,
    )


def test_it_trains_and_validates(tmp_path):
    theirs, run = WithValidation(), trainer(tmp_path)
    run.fit(Module(), datamodule=AdaptedDataModule(theirs))
    assert theirs.called == ["prepare_data", ("setup", "fit")]
    assert theirs.trainer is run
    assert len(run.callbacks[0].curve) == 2


@pytest.mark.filterwarnings("ignore:You defined a `validation_step`:UserWarning")
@pytest.mark.filterwarnings("ignore:no validation data:UserWarning")
def test_what_it_lacks_counts_as_not_defined(tmp_path):
    run = trainer(tmp_path)
    run.fit(Module(), datamodule=AdaptedDataModule(Theirs()))
    assert run.callbacks[0].curve == []


def test_hooks_that_a_lightning_of_theirs_only_inherits_count_as_not_defined():
    class Base:
        def val_dataloader(self):
            raise NotImplementedError

    Base.__module__ = "pytorch_lightning.core.datamodule"
    adapted = AdaptedDataModule(type("Mine", (Theirs, Base), {})())
    assert adapted.val_dataloader.__func__ is pl.LightningDataModule.val_dataloader


def test_attributes_are_read_through_it_and_copies_work():
    adapted = AdaptedDataModule(WithValidation(images=48))
    for again in (adapted, copy.deepcopy(adapted), pickle.loads(pickle.dumps(adapted))):
        assert (again.num_classes, again.images) == (10, 48)
        assert len(again.val_dataloader()) == 3
    with pytest.raises(AttributeError, match="'WithValidation' object has no attribute 'batch_size'"):
        _ = adapted.batch_size


def test_what_is_no_data_module_is_named():
    with pytest.raises(TypeError, match=r"datamodule=3 has no method train_dataloader\(\)"):
        AdaptedDataModule(3)


@pytest.mark.parametrize(("version", "warns"), [("1.9.5", True), ("2.0.0", False), ("2.6.1", False)])
def test_an_old_trainer_that_is_imported_is_named(monkeypatch, recwarn, version, warns):
    monkeypatch.setitem(sys.modules, "pytorch_lightning", types.SimpleNamespace(__version__=version))
    if warns:
        with pytest.warns(UserWarning, match="pytorch_lightning 1.9.5 is imported"):
            LCSCallback()
    else:
        LCSCallback()
        assert not recwarn.list
