"""Checkpoints of a fit get the statistics of their levels when training ends, or whenever they are written."""

import shutil
import warnings

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.plugins import AsyncCheckpointIO, TorchCheckpointIO

from lightning_lcs import SubspaceModel
from lightning_lcs.subspace.running.level_runner import LevelRunner
from tests.integration.support import Module, digits, lcs, loader, trainer

MODES = {
    "structured": {"mode": "structured", "subspace": "point"},
    "structured line": {"mode": "structured"},
    "unstructured line": {"mode": "unstructured"},
    "quantized": {"mode": "quantized", "subspace": "point"},
}
VALIDATION = digits(48, 40)


def checkpoints(folder):
    """One callback that keeps the file of the first epoch, and one that keeps that of the last."""
    first = ModelCheckpoint(folder / "first", "{epoch}", monitor="epoch_number", mode="min")
    return [first, ModelCheckpoint(folder / "last", "{epoch}")]


class Numbered(Module):
    def validation_step(self, batch, batch_idx):
        super().validation_step(batch, batch_idx)
        self.log("epoch_number", float(self.current_epoch))


def fit(folder, callback, *others, module=None, epochs=3, ckpt_path=None, **options):
    torch.manual_seed(0)
    module = Numbered() if module is None else module
    settings = {"max_epochs": epochs, "enable_checkpointing": True, **options}
    files = checkpoints(folder)
    run = trainer(folder, callback, *files, *others, **settings)
    run.fit(module, loader(digits(0, 48), shuffle=True), loader(VALIDATION), ckpt_path=ckpt_path)
    return module, [file.best_model_path for file in files], run


def subspace_in(path):
    return torch.load(path, weights_only=False)["lightning_lcs"]


def same(one, other):
    assert [level["alpha"] for level in one] == [level["alpha"] for level in other]
    for ours, theirs in zip(one, other, strict=True):
        assert ours["tensors"].keys() == theirs["tensors"].keys()
        assert all(torch.equal(value, theirs["tensors"][name]) for name, value in ours["tensors"].items())


@pytest.fixture
def collections(monkeypatch):
    """The weights at which statistics of levels below alpha = 1 were collected."""
    found, collect = [], LevelRunner.collect

    def counted(self, batches, levels, forward):
        if list(levels) != [1.0]:
            found.append(self.fingerprint())
        return collect(self, batches, levels, forward)

    monkeypatch.setattr(LevelRunner, "collect", counted)
    return found


@pytest.mark.parametrize("mode", MODES)
def test_they_are_those_that_are_collected_when_a_file_is_written(tmp_path, mode, collections):
    """The best file has the weights of the first epoch: its statistics are of these, and all else is as it was."""
    ours, files, run = fit(tmp_path / "ours", lcs(**MODES[mode]))
    assert len(collections) == len(set(collections)) == 2, "for the weights of the curve, and those of the best file"
    recalibration = {"every_checkpoint": True, "levels": 3}
    theirs, others, other_run = fit(tmp_path / "theirs", lcs(**MODES[mode], recalibration=recalibration))
    assert files == [str(tmp_path / "ours/first/epoch=0.ckpt"), str(tmp_path / "ours/last/epoch=2.ckpt")]
    for path, other in zip(files, others, strict=True):
        mine, other_one = torch.load(path, weights_only=False), torch.load(other, weights_only=False)
        assert mine["lightning_lcs"]["statistics"], path
        same(mine["lightning_lcs"]["statistics"], other_one["lightning_lcs"]["statistics"])
        assert mine["lightning_lcs"]["statistics_weights"] == other_one["lightning_lcs"]["statistics_weights"]
        same(mine["lightning_lcs"]["ranges"], other_one["lightning_lcs"]["ranges"])
        assert mine.keys() == other_one.keys()
        for name, value in mine["state_dict"].items():
            assert torch.equal(value, other_one["state_dict"][name]), name
    for name, value in ours.state_dict().items():
        assert torch.equal(value, theirs.state_dict()[name]), name
    same(*[lcs_of(r).subspace_state()["statistics"] for r in (run, other_run)])
    same(*[lcs_of(r).subspace_state()["ranges"] for r in (run, other_run)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = SubspaceModel.from_checkpoint(files[0], Numbered())
        model.set_alpha(0.0)
        model(VALIDATION.tensors[0])


def lcs_of(run):
    return run.callbacks[0].subspace_model


@pytest.mark.parametrize("mode", MODES)
def test_all_files_of_the_same_weights_have_the_statistics_of_all_levels(tmp_path, mode):
    torch.manual_seed(0)
    callback, twice = lcs(**MODES[mode]), ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=2, save_last=True)
    trainer(tmp_path, callback, twice, max_epochs=2, enable_checkpointing=True).fit(
        Module(), loader(digits(0, 48)), loader(VALIDATION)
    )
    weights = {path: subspace_in(path)["statistics_weights"] for path in (twice.best_model_path, twice.last_model_path)}
    for path, fingerprint in weights.items():
        model = SubspaceModel.from_checkpoint(path, Module())
        assert model.statistics.keys() == callback.subspace_model.statistics.keys()
        assert model.runner.statistics_weights == fingerprint == model.runner.fingerprint()


class Stops(Callback):
    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 2:
            raise KeyError("the machine stops")


def test_a_run_that_stops_leaves_files_that_say_what_they_lack_and_its_resume_completes_them(tmp_path):
    callback = lcs(subspace="point")
    with pytest.raises(KeyError):
        fit(tmp_path, callback, Stops())
    best, last = tmp_path / "first/epoch=0.ckpt", tmp_path / "last/epoch=1.ckpt"
    assert not subspace_in(best)["statistics"]
    with pytest.warns(UserWarning, match=r"epoch=0\.ckpt holds no batch-norm statistics.*recalibrate\(\)"):
        model = SubspaceModel.from_checkpoint(best, Numbered())
    model.recalibrate([digits(0, 32).tensors[0]])
    fit(tmp_path, lcs(subspace="point"), ckpt_path=last)
    assert subspace_in(best)["statistics"], "a file of the first process"
    assert subspace_in(tmp_path / "last/epoch=2.ckpt")["statistics"]


def test_files_beside_those_of_the_trainers_callbacks_get_them_at_once(tmp_path):
    class Saves(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            if trainer.current_epoch == 0:
                trainer.save_checkpoint(tmp_path / "own.ckpt")
                assert subspace_in(tmp_path / "own.ckpt")["statistics"]

    fit(tmp_path, lcs(subspace="point"), Saves())


def test_a_writer_that_writes_later_gets_them_at_once(tmp_path, collections):
    _, files, _ = fit(tmp_path, lcs(subspace="point"), plugins=[AsyncCheckpointIO()])
    assert subspace_in(files[0])["statistics"]
    assert len(set(collections)) == 3


class Unwritable(TorchCheckpointIO):
    ended = False

    def save_checkpoint(self, checkpoint, path, storage_options=None):
        if self.ended:
            raise OSError("no space left")
        super().save_checkpoint(checkpoint, path, storage_options)


class Ends(Callback):
    def on_train_end(self, trainer, pl_module):
        trainer.strategy.checkpoint_io.ended = True


@pytest.mark.filterwarnings("ignore:.*last.epoch=2.ckpt stays without")
def test_a_file_that_can_not_be_written_again_stays_as_it_is(tmp_path):
    with pytest.warns(
        UserWarning, match=r"first.epoch=0\.ckpt stays without.*OSError: no space left.*every_checkpoint=True"
    ):
        _, files, _ = fit(tmp_path, lcs(subspace="point"), Ends(), plugins=[Unwritable()])
    checkpoint = torch.load(files[0], weights_only=False)
    assert not checkpoint["lightning_lcs"]["statistics"]
    assert checkpoint["state_dict"]


class Partial(Numbered):
    """Leaves the head out of its files, as projects with frozen backbones leave these out."""

    strict_loading = False

    def on_save_checkpoint(self, checkpoint):
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if "head" not in k}


def test_a_file_without_weights_that_were_trained_stays_as_it_is(tmp_path):
    with pytest.warns(UserWarning, match="does not hold all weights of the network"):
        fit(tmp_path, lcs(subspace="point"), module=Partial())


@pytest.mark.filterwarnings("ignore:.*stay whole at every level")
def test_a_file_without_frozen_weights_gets_statistics(tmp_path):
    torch.manual_seed(0)
    module = Partial()
    module.net.head.requires_grad_(False)
    fit(tmp_path, lcs(subspace="point"), module=module)
    other = Partial()
    other.net.head.load_state_dict(module.net.head.state_dict())
    for path in (tmp_path / "first/epoch=0.ckpt", tmp_path / "last/epoch=2.ckpt"):
        assert SubspaceModel.from_checkpoint(path, other).runner.statistics_fit()
        assert subspace_in(path)["statistics"]


def test_a_file_that_was_taken_away_is_not_missed(tmp_path):
    class Takes(Callback):
        def on_train_end(self, trainer, pl_module):
            shutil.rmtree(tmp_path / "first")

    fit(tmp_path, lcs(subspace="point"), Takes())
