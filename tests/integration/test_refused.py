"""What does not go together with a sweep over levels: refused in one sentence, before anything is trained."""

from types import SimpleNamespace

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelPruning
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy

from lightning_lcs.training.checks import check_setup
from tests.integration.support import Module, lcs, trainer


def check_refused(folder, module, train, val, match, *others, before=(), **options):
    weights = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(ValueError, match=match):
        trainer(folder, *before, lcs(), *others, **options).fit(module, train, val)
    assert not {"training_step", "backward", "configure_optimizers", "on_load_checkpoint"} & set(module.__dict__)
    assert "forward" not in module.net.__dict__
    for name, value in module.state_dict().items():
        assert torch.equal(value, weights[name])


@pytest.mark.parametrize(
    "make",
    [
        lambda: ModelPruning("l1_unstructured", amount=0.5),
    ],
    ids=["pruning"],
)
def test_callbacks_in_either_order(tmp_path, train, val, make):
    other = make()
    check_refused(tmp_path, Module(), train, val, f"{type(other).__name__} .*: take it out of the trainer", other)
    first = make()
    check_refused(tmp_path, Module(), train, val, "take it out of the trainer", before=[first])


class Draws(Module):
    """Draws its batches itself."""

    def training_step(self, dataloader_iter):
        return super().training_step(next(dataloader_iter)[0], 0)


@pytest.mark.filterwarnings("ignore:You are using the `dataloader_iter` step flavor")
def test_a_step_that_draws_its_batches_itself(tmp_path, train, val):
    check_refused(tmp_path, Draws(), train, val, "takes dataloader_iter, and each level would take other batches")


@pytest.mark.parametrize("kind", [FSDPStrategy, DeepSpeedStrategy, ModelParallelStrategy])
def test_strategies(kind):
    # They can't be set up on this machine: an instance stands for one.
    run = SimpleNamespace(strategy=object.__new__(kind), callbacks=[])
    with pytest.raises(ValueError, match=f"{kind.__name__} .*: use strategy='ddp' or a single device"):
        check_setup(run, Module())


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"strategy": DDPStrategy(static_graph=True)}, "static_graph"),
        ({"sync_batchnorm": True, "strategy": "ddp"}, "sync_batchnorm"),
    ],
    ids=["static-graph", "sync-batchnorm"],
)
def test_options_of_ddp(tmp_path, options, match):
    run = L.Trainer(accelerator="cpu", devices=2, logger=False, default_root_dir=tmp_path, callbacks=[lcs()], **options)
    with pytest.raises(ValueError, match=match):
        check_setup(run, Module())


def test_plain_trainers_are_accepted(tmp_path):
    for options in (
        {},
        {"strategy": "ddp", "devices": 2},
        {"strategy": "ddp_find_unused_parameters_true", "devices": 2},
    ):
        check_setup(trainer(tmp_path, lcs(), **options), Module())
