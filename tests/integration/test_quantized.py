"""LCSCallback(mode="quantized") in a user's project, on the digits."""

import pytest
import torch
from torch import nn

from lightning_lcs import LCSCallback, Quantized, SubspaceModel
from lightning_lcs.subspace.running.level_runner import LevelRunner
from tests.integration.support import Data, Module, Net, digits, group_norm, lcs, loader, trainer


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, group_norm], ids=["batch", "group"])
@pytest.mark.parametrize("subspace", ["line", "point"])
def test_curve_and_checkpoint(tmp_path, train, val, subspace, norm):
    module = Module(Net(norm))
    callback = LCSCallback(mode="quantized", subspace=subspace, recalibration={"levels": 3})
    run = trainer(tmp_path, callback, max_epochs=4, num_sanity_val_steps=1)
    run.fit(module, train, val)
    assert [point.bit_width for point in callback.curve] == [3, 4, 5, 6, 7, 8]
    # The user's own validation is that of the highest bit width.
    assert callback.curve[-1].metrics["val_acc"] == pytest.approx(float(run.callback_metrics["val_acc"]))
    run.save_checkpoint(tmp_path / "last.ckpt")
    content = torch.load(tmp_path / "last.ckpt", weights_only=True)
    for name, value in content["state_dict"].items():
        assert torch.equal(value, module.state_dict()[name])
    model = SubspaceModel.from_checkpoint(tmp_path / "last.ckpt", Module(Net(norm)))
    images = digits(0, 8).tensors[0]
    callback.subspace_model.eval()
    for alpha in (0.0, 0.5, 1.0):
        with torch.no_grad(), model.at_alpha(alpha), callback.subspace_model.at_alpha(alpha):
            assert torch.equal(model(images), callback.subspace_model(images))


def test_a_checkpoint_of_an_epoch_without_a_curve_holds_every_level(tmp_path, train, val):
    module, callback = Module(), lcs(mode="quantized", subspace="point", recalibration={"levels": 7})
    run = trainer(tmp_path, callback, max_epochs=2)

    class Saving(type(run.callbacks[0]).__mro__[1]):  # lightning's Callback
        def on_validation_end(self, trainer, pl_module):
            if trainer.current_epoch == 0:
                trainer.save_checkpoint(tmp_path / "first.ckpt")

    run.callbacks.append(Saving())
    run.fit(module, train, val)
    model = SubspaceModel.from_checkpoint(tmp_path / "first.ckpt", Module())
    assert len(model.statistics) == 6


def test_inputs_are_quantized_after_the_warm_up(tmp_path, train, val, monkeypatch):
    seen = []
    original = LevelRunner.training_level

    def spy(self, alpha, *gradients, strength=1.0, **options):
        seen.append((alpha, strength))
        return original(self, alpha, *gradients, strength=strength, **options)

    monkeypatch.setattr(LevelRunner, "training_level", spy)
    callback = lcs(mode=Quantized(min_bits=7), subspace="point", sampling={"warmup": 0.5})
    trainer(tmp_path, callback, max_epochs=2).fit(Module(), train, val)
    assert [strength for _, strength in seen] == [0.0, 0.0, 0.0, 1.0, 1.0, 1.0]
    assert {alpha for alpha, _ in seen} <= {0.5, 1.0}


def test_resuming_keeps_the_moving_ranges(tmp_path, train, val):
    def run(folder, epochs, **options):
        torch.manual_seed(0)
        module, callback = (
            Module(Net(group_norm)),
            lcs(mode="quantized", subspace="line", sampling={"warmup": 0}, alphas=2),
        )
        fit = trainer(folder, callback, max_epochs=epochs)
        fit.fit(module, loader(digits(0, 48)), loader(digits(48, 16)), **options)
        fit.save_checkpoint(folder / "last.ckpt")
        return module, callback

    whole, first = run(tmp_path / "whole", 4)
    run(tmp_path / "part", 2)
    resumed, second = run(tmp_path / "resumed", 4, ckpt_path=tmp_path / "part" / "last.ckpt")
    for (name, a), (_, b) in zip(whole.named_parameters(), resumed.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    assert first.subspace_model.runner.ranges.keys() == second.subspace_model.runner.ranges.keys()
    for level, ranges in first.subspace_model.runner.ranges.items():
        for name, value in ranges.items():
            assert torch.equal(value, second.subspace_model.runner.ranges[level][name])


def test_a_curve_midway_changes_nothing(tmp_path):
    def run(**options):
        torch.manual_seed(0)
        module = Module()
        trainer(tmp_path, lcs(mode="quantized", subspace="point", sampling={"warmup": 0}, **options), max_epochs=3).fit(
            module, datamodule=Data()
        )
        return module

    for a, b in zip(run().parameters(), run(every_n_epochs=1).parameters(), strict=True):
        assert torch.equal(a, b)


def test_each_layer_draws_bits_of_its_own(tmp_path, train, val, monkeypatch):
    seen = []
    original = LevelRunner.training_level

    def spy(self, *args, drawn=None, **options):
        seen.append(dict(drawn))
        return original(self, *args, drawn=drawn, **options)

    monkeypatch.setattr(LevelRunner, "training_level", spy)
    callback = lcs(mode="quantized", subspace="point", sampling={"sampler": "uniform_draws_per_layer", "warmup": 0.0})
    trainer(tmp_path, callback, max_epochs=4).fit(Module(Net(group_norm)), train, val)
    assert all(list(bits) == ["conv1", "conv2", "head"] for bits in seen)
    drawn = [tuple(bits.values()) for bits in seen]
    assert any(len(set(bits)) > 1 for bits in drawn)
    assert {b for bits in drawn for b in bits} == set(range(3, 9))
    again = lcs(mode="quantized", subspace="point", sampling={"sampler": "uniform_draws_per_layer", "warmup": 0.0})
    seen.clear()
    trainer(tmp_path, again, max_epochs=4).fit(Module(Net(group_norm)), train, val)
    assert [tuple(bits.values()) for bits in seen] == drawn


@pytest.mark.parametrize(("mode", "subspace"), [("quantized", "line"), ("unstructured", "point")])
def test_drawing_per_layer_is_refused_where_levels_are_not_bits_alone(mode, subspace):
    with pytest.raises(ValueError, match="needs mode='quantized' and subspace='point'"):
        LCSCallback(mode=mode, subspace=subspace, sampling={"sampler": "uniform_draws_per_layer"})
