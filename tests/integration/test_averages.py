"""Lightning's averages of weights: files hold them with their statistics, and the curve is that of the averages."""

import copy
import warnings

import pytest
import torch
from lightning.pytorch import callbacks
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_lcs import SubspaceModel
from lightning_lcs.subspace.running import calibration
from tests.integration.support import Module, digits, lcs, loader, older_lightning, trainer

pytestmark = pytest.mark.skipif(older_lightning, reason="Lightning before 2.6 has no EMAWeightAveraging")
VALIDATION = digits(48, 40)
MODES = ["structured", "unstructured", "quantized"]


def fit(folder, *others, ckpt_path=None, epochs=2, every=None):
    torch.manual_seed(0)
    module = Module()
    saving = ModelCheckpoint(folder, "{epoch}", save_top_k=-1, every_n_train_steps=every)
    averages = callbacks.EMAWeightAveraging(decay=0.8)
    run = trainer(folder, *others, averages, saving, max_epochs=epochs, enable_checkpointing=True)
    run.fit(module, loader(digits(0, 48)), loader(VALIDATION), ckpt_path=ckpt_path)
    return module, run, saving.best_model_path


@pytest.mark.parametrize("first", [True, False])
def test_averages_are_those_of_a_run_without_it(tmp_path, first):
    """With a sampler that trains the full network alone."""
    plain, _, path = fit(tmp_path / "plain")
    callback = lcs(subspace="point", sampling={"sampler": [1.0]})
    torch.manual_seed(0)
    ours, _, our_path = fit(tmp_path / "ours", callback)
    for name, value in plain.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name
    theirs, mine = torch.load(path, weights_only=False), torch.load(our_path, weights_only=False)
    for key in ("state_dict", "current_model_state", "averaging_state"):
        assert mine[key].keys() == theirs[key].keys()
        assert all(torch.equal(value, theirs[key][name]) for name, value in mine[key].items()), key


@pytest.mark.parametrize("mode", MODES)
def test_the_file_and_the_curve_are_of_the_averages(tmp_path, mode):
    callback = lcs(mode=mode, subspace="point")
    _, _, path = fit(tmp_path, callback)
    content = torch.load(path, weights_only=False)
    assert not torch.equal(content["state_dict"]["net.head.weight"], content["current_model_state"]["net.head.weight"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opened = SubspaceModel.from_checkpoint(path, Module())
    assert opened.statistics.keys() == callback.subspace_model.statistics.keys()
    assert opened.runner.statistics_weights == callback.subspace_model.runner.fingerprint()
    images, labels = VALIDATION.tensors
    for point in callback.curve:
        opened.set_alpha(point.alpha)
        with torch.no_grad():
            accuracy = (opened(images).argmax(1) == labels).float().mean().item()
        assert accuracy == pytest.approx(point.metrics["val_acc"], abs=1e-6)


def test_a_file_of_an_earlier_epoch_has_statistics_of_its_own_averages(tmp_path):
    torch.manual_seed(0)
    module, callback = Module(), lcs(subspace="point")
    best = ModelCheckpoint(tmp_path, "{epoch}", monitor="train_acc_epoch", mode="min")
    averages = callbacks.EMAWeightAveraging(decay=0.8)
    run = trainer(tmp_path, averages, callback, best, max_epochs=2, enable_checkpointing=True)
    run.fit(module, loader(digits(0, 48)), loader(VALIDATION))
    assert "epoch=0" in best.best_model_path
    opened = SubspaceModel.from_checkpoint(best.best_model_path, Module())
    assert opened.runner.statistics_fit()
    kept = copy.deepcopy(dict(opened.statistics))
    opened.recalibrate(digits(0, 48).tensors[0].split(16), list(kept))
    for level, tensors in kept.items():
        for name, value in tensors.items():
            torch.testing.assert_close(opened.statistics[level][name], value, rtol=0.0, atol=1e-5)


@pytest.mark.parametrize("mode", ["unstructured", "quantized"])  # structured steps update them, and Lightning averages
@pytest.mark.parametrize("every", [1, 3])
def test_running_statistics_in_a_file_are_those_of_the_averages(tmp_path, mode, every):
    """Also where a file is written before the validation of the same averages."""
    torch.manual_seed(0)
    saving = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=5)
    averages = callbacks.EMAWeightAveraging(decay=0.5, update_every_n_steps=every)
    callback = lcs(mode=mode, subspace="point")
    run = trainer(tmp_path, callback, averages, saving, max_epochs=2, enable_checkpointing=True)
    run.fit(Module(), loader(digits(0, 48)), loader(VALIDATION))
    opened = SubspaceModel.from_checkpoint(saving.best_model_path, Module())
    found = {name: value.clone() for name, value in opened.module.named_buffers() if "running" in name}
    with opened.runner.collecting() as collector, torch.no_grad():
        expected = calibration.collect(collector, digits(0, 48).tensors[0].split(16), [1.0], opened)[1.0]
    for name, value in found.items():
        torch.testing.assert_close(value, expected[f"{opened.parts[0].prefix}{name}"], rtol=0.0, atol=1e-5)


def test_a_resumed_run_ends_as_one_that_was_not_stopped(tmp_path):
    whole, _, path = fit(tmp_path / "whole", lcs(subspace="point"), epochs=3)
    folder = tmp_path / "stopped"
    fit(folder, lcs(subspace="point"), epochs=2)
    resumed, _, other = fit(folder, lcs(subspace="point"), epochs=3, ckpt_path=folder / "epoch=1.ckpt")
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    expected, found = (torch.load(file, weights_only=False)["lightning_lcs"] for file in (path, other))
    assert expected["statistics_weights"] == found["statistics_weights"]
    assert expected["statistics"]


def test_a_file_of_your_own_holds_the_averages_without_statistics(tmp_path):
    class Saves(callbacks.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            trainer.save_checkpoint(tmp_path / "own.ckpt")

    fit(tmp_path / "files", lcs(subspace="point", recalibration={"every_checkpoint": True}), Saves())
    with pytest.warns(UserWarning, match="holds no batch-norm statistics of its levels"):
        SubspaceModel.from_checkpoint(tmp_path / "own.ckpt", Module())
