"""Networks that are built late, and steps of other shapes than the usual one."""

import functools

import pytest
import torch
from torch import nn

from lightning_lcs import SubspaceModel
from tests.integration.support import Data, Module, Net, lcs, trainer
from tests.integration.test_targets import fit, sizes


class Late(Module):
    """Builds its network in ``setup`` or in ``configure_model``."""

    def __init__(self, where):
        super().__init__(net=nn.Identity())
        del self.net
        self.where = where
        self.net = None

    def build(self):
        if self.net is None:
            self.net = Net()

    def setup(self, stage):
        if self.where == "setup":
            self.build()

    def configure_model(self):
        if self.where == "configure_model":
            self.build()


@pytest.mark.parametrize("where", ["setup", "configure_model"])
def test_a_network_that_is_built_late(tmp_path, train, val, where):
    module = Late(where)
    callback = fit(tmp_path, module, train, val)
    assert callback.subspace_model.module is module.net
    assert all(not torch.equal(w0, w1) for w0, w1 in callback.subspace_model.endpoint_pairs())
    assert sizes(callback) == sorted(set(sizes(callback)))


@pytest.mark.parametrize("where", ["setup", "configure_model"])
def test_a_network_that_is_built_late_and_named(tmp_path, train, val, where):
    module = Late(where)
    assert fit(tmp_path, module, train, val, target="net").subspace_model.module is module.net


@pytest.mark.parametrize("where", ["setup", "configure_model"])
def test_a_checkpoint_of_a_network_that_is_built_late(tmp_path, train, val, where):
    run = trainer(tmp_path, lcs(), enable_checkpointing=True)
    module = Late(where)
    run.fit(module, train, val)
    path = run.checkpoint_callback.best_model_path
    callback, again = lcs(), Late(where)
    trainer(tmp_path, callback).validate(again, val, ckpt_path=path, verbose=False)
    first, second = run.callbacks[0].subspace_model.endpoint_pairs(), callback.subspace_model.endpoint_pairs()
    for (w0, w1), (v0, v1) in zip(first, second, strict=True):
        assert torch.equal(w0, v0)
        assert torch.equal(w1, v1)


def test_keyword_arguments_and_a_dictionary_of_outputs(tmp_path, train, val):
    class Keywords(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = Net()

        def forward(self, *, images, scale=1.0):
            logits = self.net(images) * scale
            return {"logits": logits, "confidence": logits.softmax(1).amax(1)}

    class Step(Module):
        def __init__(self):
            super().__init__(Keywords())

        def training_step(self, batch, batch_idx):
            output = self.net(images=batch[0], scale=2.0)
            return {"loss": self.loss(output["logits"], batch[1]), "confidence": output["confidence"].detach()}

        def validation_step(self, batch, batch_idx):
            self.log("val_loss", self.loss(self.net(images=batch[0], scale=2.0)["logits"], batch[1]))

    callback = fit(tmp_path, Step(), train, val)
    assert sizes(callback) == sorted(set(sizes(callback)))
    assert all(not torch.equal(w0, w1) for w0, w1 in callback.subspace_model.endpoint_pairs())


class SkipsAfterwards(Module):
    """Looks at the loss, and drops all batches but the first."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return None if batch_idx > 0 else loss


class SkipsBefore(Module):
    """Looks at the batch, and drops all but the first."""

    def training_step(self, batch, batch_idx):
        return None if batch_idx > 0 else super().training_step(batch, batch_idx)


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`:UserWarning")
@pytest.mark.parametrize("kind", [SkipsAfterwards, SkipsBefore])
def test_a_skipped_step_changes_nothing(tmp_path, train, val, kind):
    once, skipping = Module(), kind()
    skipping.load_state_dict(once.state_dict())
    trainer(tmp_path, lcs(), limit_train_batches=1).fit(once, train, val)
    trainer(tmp_path, lcs()).fit(skipping, train, val)
    for a, b in zip(once.net.parameters(), skipping.net.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`:UserWarning")
def test_a_skipped_micro_batch_while_gradients_accumulate(tmp_path, train, val):
    first, skipping = Module(), SkipsAfterwards()
    skipping.load_state_dict(first.state_dict())
    trainer(tmp_path, lcs(), limit_train_batches=1, accumulate_grad_batches=2).fit(first, train, val)
    trainer(tmp_path, lcs(), limit_train_batches=2, accumulate_grad_batches=2).fit(skipping, train, val)
    for a, b in zip(first.net.parameters(), skipping.net.parameters(), strict=True):
        assert torch.equal(a, b)


def decorate(step):
    """Users time, profile or guard their steps with decorators made by functools.wraps."""

    @functools.wraps(step)
    def wrapper(self, batch, batch_idx):
        return step(self, batch, batch_idx)

    return wrapper


class Decorated(Module):
    training_step = decorate(Module.training_step)
    validation_step = decorate(Module.validation_step)


def test_a_decorated_step(tmp_path, train, val):
    assert len(fit(tmp_path, Decorated(), train, val).curve) == 3


def test_a_decorated_step_outside_fit(tmp_path):
    callback = lcs(subspace="point")
    trainer(tmp_path, callback).validate(Decorated(), datamodule=Data(), verbose=False)
    assert len(callback.curve) == 3


def test_a_step_without_a_batch_index(tmp_path, train, val):
    class Short(Module):
        def training_step(self, batch):
            return super().training_step(batch, 0)

        def validation_step(self, batch):
            super().validation_step(batch, 0)

    callback = fit(tmp_path, Short(), train, val)
    assert "val_acc" in callback.curve[0].metrics


def test_a_step_that_takes_whatever_comes(tmp_path, train, val):
    class Loose(Module):
        def training_step(self, *args, **kwargs):
            return super().training_step(*args, **kwargs)

        def validation_step(self, *args, **kwargs):
            super().validation_step(*args, **kwargs)

    callback = fit(tmp_path, Loose(), train, val)
    assert "val_acc" in callback.curve[0].metrics


def test_a_module_that_holds_a_subspace_model_itself(tmp_path, train, val):
    module = Module(SubspaceModel(Net(), subspace="point"))
    callback = fit(tmp_path, module, train, val, subspace="point")
    assert callback.subspace_model is module.net
    with pytest.raises(ValueError, match=r"LCSCallback has subspace='line' and the module's SubspaceModel subspace='p"):
        fit(tmp_path, module, train, val)
