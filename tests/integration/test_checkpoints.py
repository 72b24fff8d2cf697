"""Checkpoints: the user's class loads them, training resumes, and they open as a subspace in any process."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_lcs import Structured, SubspaceModel
from tests.integration.support import Data, Module, Net, digits, lcs, trainer

# The same operations, but another memory layout (a graph of its own) or other threads (a process of its own).
OUTPUT_TOLERANCE = 1e-5
IMAGES = digits(0, 8).tensors[0]


class Mine(Module):
    """A user's class with hyperparameters."""

    def __init__(self, lr: float = 0.1, first: int = 8) -> None:
        super().__init__(Net(first=first), lr)
        self.save_hyperparameters()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.lr, momentum=0.9)


def fitted(folder, callback=None, module=None, **options):
    """A trained module, its callback, and the path of its checkpoint."""
    callback, module = callback or lcs(), module or Mine(lr=0.2)
    saving = ModelCheckpoint(folder, filename="model", enable_version_counter=False, **options.pop("saving", {}))
    run = trainer(folder, callback, saving, enable_checkpointing=True, **options)
    run.fit(module, datamodule=Data(), ckpt_path=None)
    return module, callback, folder / "model.ckpt"


def assert_same_endpoints(first, second):
    for (w0, w1), (v0, v1) in zip(first.endpoint_pairs(), second.endpoint_pairs(), strict=True):
        assert torch.equal(w0, v0)
        assert torch.equal(w1, v1)
        assert not torch.equal(w0, w1)


def assert_same_statistics(first, second):
    assert first.statistics.keys() == second.statistics.keys()
    assert first.statistics
    for alpha, tensors in first.statistics.items():
        assert tensors.keys() == second.statistics[alpha].keys()
        for name, value in tensors.items():
            assert torch.equal(value, second.statistics[alpha][name])


@torch.no_grad()
def outputs(model, alpha):
    model.eval()
    with model.at_alpha(alpha):
        return model(IMAGES)


def test_the_users_class_loads_it_strictly_and_is_the_full_level(tmp_path):
    _, callback, path = fitted(tmp_path)
    loaded = Mine.load_from_checkpoint(path)
    assert loaded.hparams == {"lr": 0.2, "first": 8}
    assert loaded.lr == 0.2
    with torch.no_grad():
        assert torch.equal(loaded.eval()(IMAGES), outputs(callback.subspace_model, 1.0))
    content = torch.load(path, weights_only=True)
    assert set(content["state_dict"]) == set(Mine().state_dict())
    assert set(content) == {
        *("epoch", "global_step", "pytorch-lightning_version", "state_dict", "loops", "callbacks", "optimizer_states"),
        *("lr_schedulers", "hparams_name", "hyper_parameters", "lightning_lcs"),
        *("datamodule_name", "datamodule_hyper_parameters") * ("datamodule_name" in content),
    }


def test_a_resumed_run_is_the_uninterrupted_run(tmp_path):
    torch.manual_seed(0)
    whole, whole_callback, _ = fitted(tmp_path / "whole", max_epochs=2)
    torch.manual_seed(0)
    _, first_callback, path = fitted(tmp_path / "first", max_epochs=1)
    at_save = [(w0.detach().clone(), w1.detach().clone()) for w0, w1 in first_callback.subspace_model.endpoint_pairs()]
    torch.manual_seed(1)
    module, callback, seen = Mine(lr=0.2), lcs(), []

    class Starts(ModelCheckpoint):
        def on_train_start(self, trainer, pl_module):
            pairs = callback.subspace_model.endpoint_pairs()
            seen.extend((w0.detach().clone(), w1.detach().clone()) for w0, w1 in pairs)

    run = trainer(tmp_path, callback, Starts(tmp_path), max_epochs=2, enable_checkpointing=True)
    run.fit(module, datamodule=Data(), ckpt_path=path)
    for (w0, w1), (v0, v1) in zip(seen, at_save, strict=True):
        assert torch.equal(w0, v0)
        assert torch.equal(w1, v1)
    for (name, a), (_, b) in zip(whole.named_parameters(), module.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    assert_same_statistics(whole_callback.subspace_model, callback.subspace_model)
    for point, other in zip(whole_callback.curve, callback.curve, strict=True):
        assert point.metrics == other.metrics


def test_weights_only_checkpoints_keep_the_subspace(tmp_path):
    _, callback, path = fitted(tmp_path, saving={"save_weights_only": True})
    model = SubspaceModel.from_checkpoint(path, Net())
    assert_same_endpoints(model, callback.subspace_model)
    assert_same_statistics(model, callback.subspace_model)
    for alpha in (0.0, 0.5, 1.0):
        assert torch.equal(outputs(model, alpha), outputs(callback.subspace_model, alpha))


def test_saving_after_fit(tmp_path):
    callback, module = lcs(), Mine()
    run = trainer(tmp_path, callback)
    run.fit(module, datamodule=Data())
    run.save_checkpoint(tmp_path / "after.ckpt")
    model = SubspaceModel.from_checkpoint(tmp_path / "after.ckpt", Mine())
    assert_same_endpoints(model, callback.subspace_model)
    assert_same_statistics(model, callback.subspace_model)


def test_saving_the_weights_after_fit(tmp_path):
    callback, module = lcs(), Mine()
    run = trainer(tmp_path, callback)
    run.fit(module, datamodule=Data())
    run.save_checkpoint(tmp_path / "after.ckpt", weights_only=True)
    model = SubspaceModel.from_checkpoint(tmp_path / "after.ckpt", Mine())
    assert_same_endpoints(model, callback.subspace_model)
    assert_same_statistics(model, callback.subspace_model)
    assert "on_save_checkpoint" not in module.__dict__


def test_saving_with_a_trainer_that_was_given_another_callback(tmp_path):
    first, second, module = lcs(), lcs(), Mine()
    run = trainer(tmp_path, first)
    run.fit(module, datamodule=Data())
    run.callbacks = [second if callback is first else callback for callback in run.callbacks]
    run.validate(module, datamodule=Data(), verbose=False)
    run.save_checkpoint(tmp_path / "after.ckpt", weights_only=True)
    model = SubspaceModel.from_checkpoint(tmp_path / "after.ckpt", Mine())
    assert_same_statistics(model, second.subspace_model)


def test_a_new_callback_goes_on_with_a_trained_line(tmp_path):
    """Not only the callback that trained it: the second endpoint lives in the network."""
    first, module = lcs(line={"parameters": "all"}), Mine()
    trainer(tmp_path, first).fit(module, datamodule=Data())
    second = lcs(line={"parameters": "all"})
    trainer(tmp_path, second).validate(module, datamodule=Data(), verbose=False)
    assert_same_endpoints(second.subspace_model, first.subspace_model)
    for old, new in zip(first.curve, second.curve, strict=True):
        assert old.metrics["val_acc"] == pytest.approx(new.metrics["val_acc"], abs=1e-6)
    before = [w0.clone() for w0, _ in second.subspace_model.endpoint_pairs()]
    trainer(tmp_path, second, max_steps=0).fit(module, datamodule=Data())
    for w0, (after, _) in zip(before, second.subspace_model.endpoint_pairs(), strict=True):
        assert torch.equal(w0, after)


def test_a_new_callback_with_another_line_is_refused(tmp_path):
    module = Mine()
    trainer(tmp_path, lcs(line={"parameters": "norm"})).fit(module, datamodule=Data())
    with pytest.raises(ValueError, match=r"Line\(parameters='all'\)"):
        trainer(tmp_path, lcs(line={"parameters": "all"})).validate(module, datamodule=Data(), verbose=False)


def test_an_untrained_line_starts_from_the_weights_at_fit(tmp_path):
    """A callback that only looked at the network, and weights that came afterwards."""
    module = Mine()
    trainer(tmp_path, lcs()).validate(module, datamodule=Data(), verbose=False)
    with torch.no_grad():
        for parameter in module.net.parameters():
            parameter.add_(1.0)
    callback = lcs()
    trainer(tmp_path, callback, max_steps=0).fit(module, datamodule=Data())
    for w0, w1 in callback.subspace_model.endpoint_pairs():
        assert torch.equal(w0, w1)


def test_checkpoints_within_an_epoch(tmp_path):
    """Saved every step: complete files, and training as if they had not been saved."""
    torch.manual_seed(0)
    plain, _, _ = fitted(tmp_path / "plain", saving={"every_n_epochs": 1})
    torch.manual_seed(0)
    saving = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    module, callback = Mine(lr=0.2), lcs(recalibration={"every_checkpoint": True})
    trainer(tmp_path, callback, saving, enable_checkpointing=True).fit(module, datamodule=Data())
    for (name, a), (_, b) in zip(plain.named_parameters(), module.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    for (name, a), (_, b) in zip(plain.named_buffers(), module.named_buffers(), strict=True):
        assert torch.equal(a, b), name
    for step in (1, 2, 3):
        assert SubspaceModel.from_checkpoint(tmp_path / f"step={step}.ckpt", Mine()).statistics


LACKS = "holds no batch-norm statistics of its levels"


class Breaks(Mine):
    """Fails in the second batch."""

    def training_step(self, batch, batch_idx):
        if batch_idx == 1:
            raise ArithmeticError("the user's own")
        return super().training_step(batch, batch_idx)


@pytest.mark.skipif(
    "save_on_exception" not in inspect.signature(ModelCheckpoint).parameters, reason="this lightning has no such option"
)
def test_checkpoints_made_when_training_fails(tmp_path):
    callback, saving = lcs(), ModelCheckpoint(tmp_path, filename="broken", save_on_exception=True)
    with pytest.raises(ArithmeticError, match="the user's own"):
        trainer(tmp_path, callback, saving, enable_checkpointing=True).fit(Breaks(), datamodule=Data())
    with pytest.warns(UserWarning, match=LACKS):
        model = SubspaceModel.from_checkpoint(tmp_path / "broken.ckpt", Mine())
    assert_same_endpoints(model, callback.subspace_model)


def test_saving_by_hand_after_training_has_failed(tmp_path):
    callback = lcs()
    run = trainer(tmp_path, callback)
    with pytest.raises(ArithmeticError):
        run.fit(Breaks(), datamodule=Data())
    run.save_checkpoint(tmp_path / "by_hand.ckpt")
    with pytest.warns(UserWarning, match=LACKS):
        model = SubspaceModel.from_checkpoint(tmp_path / "by_hand.ckpt", Mine())
    assert_same_endpoints(model, callback.subspace_model)


def test_saving_by_hand_after_an_interrupt(tmp_path):
    class Interrupted(Mine):
        def on_train_batch_start(self, batch, batch_idx):
            if batch_idx == 1:
                raise KeyboardInterrupt

    callback = lcs()
    run = trainer(tmp_path, callback)
    with pytest.raises(SystemExit):
        run.fit(Interrupted(), datamodule=Data())
    run.save_checkpoint(tmp_path / "by_hand.ckpt")
    with pytest.warns(UserWarning, match=LACKS):
        model = SubspaceModel.from_checkpoint(tmp_path / "by_hand.ckpt", Mine())
    assert_same_endpoints(model, callback.subspace_model)


SCRIPT = """
import sys, torch
from lightning_lcs import SubspaceModel
from tests.integration.support import Module, Net, digits
path, out = sys.argv[1:]
images, found = digits(0, 8).tensors[0], []
for kind in (Net, Module):
    model = SubspaceModel.from_checkpoint(path, kind())
    for alpha in (0.0, 0.5, 1.0):
        model.set_alpha(alpha)
        with torch.no_grad():
            found.append((alpha, model(images), model.materialize(alpha)(images)))
torch.save(found, out)
"""


def test_a_new_process_opens_it_with_the_network_or_the_module(tmp_path):
    _, callback, path = fitted(tmp_path)
    root = Path(__file__).parents[2]
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, str(path), str(tmp_path / "out.pt")]
    subprocess.run(command, check=True, cwd=root, capture_output=True, timeout=120)
    found = torch.load(tmp_path / "out.pt", weights_only=True)
    assert [alpha for alpha, _, _ in found] == [0.0, 0.5, 1.0] * 2
    for alpha, at_level, materialized in found:
        expected = outputs(callback.subspace_model, alpha)
        for output in (at_level, materialized):
            assert (output - expected).abs().max() <= OUTPUT_TOLERANCE * expected.abs().max()


def test_a_point_subspace(tmp_path):
    _, callback, path = fitted(tmp_path, lcs(subspace="point", mode=Structured(min_width=0.5)))
    model = SubspaceModel.from_checkpoint(path, Net())
    assert (model.subspace, model.mode) == ("point", Structured(min_width=0.5))
    assert torch.equal(outputs(model, 0.0), outputs(callback.subspace_model, 0.0))
