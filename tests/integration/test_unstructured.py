"""LCSCallback(mode="unstructured") in a user's project, on the digits."""

import copy

import pytest
import torch
from torch import nn

from lightning_lcs import LCSCallback, SubspaceModel, Unstructured
from lightning_lcs.functional.sampling import SAMPLERS, biased_endpoints, step_generator, uniform_draws
from tests.integration.support import Data, Module, Net, digits, group_norm, lcs, loader, trainer


def test_frequencies_of_the_samplers():
    steps = 4000
    biased = [biased_endpoints(step_generator(0, step), 1)[0] for step in range(steps)]
    uniform = [uniform_draws(step_generator(0, step), 1)[0] for step in range(steps)]
    # A quarter each, within four standard deviations of 0.0068.
    assert sum(a == 0.0 for a in biased) / steps == pytest.approx(0.25, abs=0.028)
    assert sum(a == 1.0 for a in biased) / steps == pytest.approx(0.25, abs=0.028)
    assert sum(0.0 < a < 0.5 for a in biased) / steps == pytest.approx(0.25, abs=0.028)
    assert not {0.0, 1.0} & set(uniform)
    assert sum(uniform) / steps == pytest.approx(0.5, abs=0.02)


def weighted_draws(generator, count):
    """What the default sampler draws: between the ends, the logarithm of the share that is kept is even."""
    drawn = SAMPLERS["weighted_draws"](generator, count)
    return [alpha if alpha in (0.0, 1.0) else (0.1 * 10.0**alpha - 0.1) / 0.9 for alpha in drawn]


@pytest.mark.parametrize(
    ("subspace", "sampler", "schedule"),
    [
        ("line", weighted_draws, "linear"),
        ("point", weighted_draws, "linear"),
        ("line", biased_endpoints, "linear"),
        ("point", uniform_draws, "delayed"),
    ],
)
def test_each_update_is_that_of_the_level_drawn(tmp_path, train, subspace, sampler, schedule):
    """Three steps of SGD by hand: sampled, warmed up, masked, one backward each."""
    torch.manual_seed(0)
    module = Module(Net(group_norm))
    mode = Unstructured(max_sparsity=0.9, dense=())
    own = SubspaceModel(copy.deepcopy(module.net), mode=mode, subspace=subspace, line={"parameters": "all"})
    given = {} if sampler is weighted_draws else {"sampler": sampler.__name__, "warmup_schedule": schedule}
    sampling = {"warmup": 0.5, **given}
    callback = lcs(mode=mode, subspace=subspace, line={"parameters": "all"}, sampling=sampling, alphas=2, seed=3)
    trainer(tmp_path, callback, max_steps=3).fit(module, loader(digits(0, 48)), loader(digits(48, 16)))
    own.train()
    for step, (images, labels) in enumerate(loader(digits(0, 48))):
        (alpha,) = sampler(step_generator(3, step), 1)
        done = step / 3
        strength = 1.0 if done >= 0.5 else (done / 0.5 if schedule == "linear" else 0.0)
        own.zero_grad()
        with own.runner.training_level(alpha, strength=strength):
            nn.functional.cross_entropy(own(images), labels).backward()
        with torch.no_grad():
            for parameter in own.parameters():
                if parameter.grad is not None:
                    parameter -= 0.1 * parameter.grad
    for (name, found), (_, expected) in zip(module.net.named_parameters(), own.module.named_parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("subspace", ["line", "point"])
def test_curve_and_checkpoint(tmp_path, train, val, subspace):
    module = Module()
    callback = lcs(mode="unstructured", subspace=subspace, alphas=3)
    run = trainer(tmp_path, callback, max_epochs=2, num_sanity_val_steps=1)
    run.fit(module, train, val)
    assert [point.sparsity for point in callback.curve] == pytest.approx([0.975, 0.4875, 0.0])
    assert [point.params for point in callback.curve] == sorted(point.params for point in callback.curve)
    assert callback.curve[-1].metrics["val_acc"] == pytest.approx(float(run.callback_metrics["val_acc"]))
    run.save_checkpoint(tmp_path / "last.ckpt")
    assert set(Module.load_from_checkpoint(tmp_path / "last.ckpt").state_dict()) == set(module.state_dict())
    model = SubspaceModel.from_checkpoint(tmp_path / "last.ckpt", Module())
    images = digits(0, 8).tensors[0]
    callback.subspace_model.eval()
    for alpha in (0.0, 0.5, 1.0):
        with torch.no_grad(), model.at_alpha(alpha), callback.subspace_model.at_alpha(alpha):
            assert torch.equal(model(images), callback.subspace_model(images))
    again = LCSCallback(mode="unstructured", subspace=subspace, alphas=3)
    trainer(tmp_path, again).validate(Module(), val, ckpt_path=tmp_path / "last.ckpt", verbose=False)
    for old, new in zip(callback.curve, again.curve, strict=True):
        assert old.metrics["val_acc"] == pytest.approx(new.metrics["val_acc"], abs=1e-6)


def test_full_level_has_fresh_statistics_although_no_step_visits_it(tmp_path, train, val):
    """A point draws its levels uniformly: the running statistics would stay those of the start."""
    module = Module()
    trainer(tmp_path, lcs(mode="unstructured", subspace="point", alphas=2)).fit(module, train, val)
    inputs = torch.cat([batch[0] for batch in loader(digits(0, 48))])
    with torch.no_grad():
        hidden = module.net.conv1(inputs)
    # 48 training images in batches of 16, each of the last weights.
    torch.testing.assert_close(module.net.norm1.running_mean, hidden.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)


def test_a_warm_up_over_data_without_a_length_says_what_is_missing(tmp_path, val):
    class Endless(torch.utils.data.IterableDataset):
        def __iter__(self):
            yield from digits(0, 48)

    with pytest.raises(ValueError, match="max_steps"):
        trainer(tmp_path, lcs(mode="unstructured")).fit(Module(), loader(Endless()), val)
    trainer(tmp_path, lcs(mode="unstructured", sampling={"warmup": 0})).fit(Module(), loader(Endless()), val)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"mode": "unstructured", "sampling": {"warmup": 1.5}}, "warmup=1.5"),
        ({"mode": "unstructured", "sampling": {"warmup_schedule": "cosine"}}, "warmup_schedule='cosine'"),
        ({"mode": "structured", "sampling": {"warmup": 0.5}}, "structured mode trains all widths"),
        ({"mode": "structured", "sampling": {"warmup_schedule": "cubic"}}, "structured mode trains all widths"),
        ({"sampling": {"sampler": "none"}}, "sampler='none'"),
        ({"mode": "unstructured", "sampling": {"alphas_per_step": 0}}, "alphas_per_step=0"),
    ],
)
def test_options_that_make_no_sense(options, match):
    with pytest.raises(ValueError, match=match):
        LCSCallback(**options)


def test_a_step_past_the_network_is_refused(tmp_path, train, val):
    class Past(Module):
        def training_step(self, batch, batch_idx):
            return self.net.conv1(batch[0]).mean()

    with pytest.raises(RuntimeError, match=r"Net.conv1 directly"):
        trainer(tmp_path, lcs(mode="unstructured", subspace="point")).fit(Past(), datamodule=Data())
