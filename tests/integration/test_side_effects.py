"""What a user's module sees of training at several levels: nothing but alpha = 1."""

import copy

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import nn

from lightning_lcs import SubspaceModel
from tests.integration.support import Module, Net, digits, lcs, loader, trainer

# A mean of float32 losses near 2.3, in another order.
LOSS_TOLERANCE = 1e-5
# Lightning makes it on first use.
LAZY = {"_hparams"}


def fit_at_rate_0(folder, train, val, callbacks):
    torch.manual_seed(3)
    module = Module(lr=0.0)
    run = trainer(folder, *callbacks, logger=CSVLogger(folder, "logs", ""), max_epochs=2)
    run.fit(module, train, val)
    table = (folder / "logs" / "metrics.csv").read_text().splitlines()
    columns = table[0].split(",")
    rows = [dict(zip(columns, line.split(","), strict=True)) for line in table[1:]]
    return module, run, [{k: v for k, v in row.items() if not k.startswith("lcs/")} for row in rows]


def test_the_users_numbers_and_statistics_are_those_of_the_full_level(tmp_path, train, val):
    plain, plain_run, plain_rows = fit_at_rate_0(tmp_path / "plain", train, val, [])
    ours, our_run, our_rows = fit_at_rate_0(tmp_path / "ours", train, val, [lcs(subspace="point")])
    our_rows = [row for row in our_rows if any(v for k, v in row.items() if k not in ("epoch", "step"))]
    # "Bitwise" is meant: at alpha = 1 the user's own forward runs.
    assert our_rows == plain_rows
    names = {"train_loss_step", "train_loss_epoch", "train_acc_step", "train_acc_epoch", "val_acc", "val_loss"}
    assert names <= plain_rows[0].keys()
    for name in names:
        assert our_run.logged_metrics[name] == plain_run.logged_metrics[name]
        assert our_run.callback_metrics[name] == plain_run.callback_metrics[name]
    buffers = dict(ours.net.named_buffers())
    for name, value in plain.net.named_buffers():
        assert torch.equal(buffers[name], value), name
    assert buffers["norm1.num_batches_tracked"] == 6


def test_losses_of_the_levels_below_one_are_logged(tmp_path, train, val):
    torch.manual_seed(3)
    module = Module(lr=0.0)
    model = SubspaceModel(copy.deepcopy(module.net), subspace="point").train()
    with model.at_alpha(0.0):
        smallest = [nn.functional.cross_entropy(model(images), labels) for images, labels in train]
    run = trainer(tmp_path, lcs(subspace="point"))
    run.fit(module, train, val)
    logged = run.callback_metrics
    assert abs(logged["lcs/train_loss/alpha_000"] - torch.stack(smallest).mean()) <= LOSS_TOLERANCE
    assert torch.isfinite(logged["lcs/train_loss/sampled"])


def test_lists_filled_in_training_step_hold_the_full_level_only(tmp_path, train, val):
    class Appends(Module):
        def __init__(self):
            super().__init__(lr=0.0)
            self.losses = []
            self.seen = []

        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            self.losses.append(loss.detach())
            return loss

        def on_train_epoch_end(self):
            self.seen.append(len(self.losses))
            self.losses.clear()

    module = Appends()
    trainer(tmp_path, lcs(every_n_epochs=1), max_epochs=2).fit(module, train, val)
    assert module.seen == [3, 3]


def test_counters_and_best_values_count_the_full_level_only(tmp_path, train, val):
    class Counts(Module):
        def __init__(self):
            super().__init__()
            self.steps = 0
            self.register_buffer("images", torch.zeros((), dtype=torch.long))

        def training_step(self, batch, batch_idx):
            self.steps += 1
            self.images += len(batch[0])
            return super().training_step(batch, batch_idx)

    module = Counts()
    trainer(tmp_path, lcs(every_n_epochs=1)).fit(module, train, val)
    assert module.steps == 3
    assert module.images == 48


def test_batch_norm_beside_the_network_is_written_once_per_step(tmp_path, train, val):
    class Siblings(Module):
        def __init__(self):
            super().__init__(lr=0.0)
            self.inputs, self.outputs = nn.BatchNorm2d(1, affine=False), nn.BatchNorm1d(10, affine=False)

        def training_step(self, batch, batch_idx):
            images, labels = batch
            return self.loss(self.outputs(self.net(self.inputs(images))), labels)

    module = Siblings()
    plain = copy.deepcopy(module)
    trainer(tmp_path, lcs(target="net")).fit(module, train, val)
    trainer(tmp_path).fit(plain, train, val)
    for ours, theirs in ((module.inputs, plain.inputs), (module.outputs, plain.outputs)):
        assert ours.num_batches_tracked == theirs.num_batches_tracked == 3
        torch.testing.assert_close([ours.running_mean, ours.running_var], [theirs.running_mean, theirs.running_var])


class Fails(Module):
    """Raises in the second pass of a step, which is at a level below 1."""

    def __init__(self, error):
        super().__init__()
        self.error = error
        self.passes = iter(range(1, 1000))  # an iterator is not set back between levels

    def training_step(self, batch, batch_idx):
        if next(self.passes) == 2:
            raise self.error
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize(
    ("error", "expected"), [(RuntimeError("the user's own"), RuntimeError), (KeyboardInterrupt(), SystemExit)]
)
def test_an_exception_leaves_the_module_without_patches(tmp_path, train, val, error, expected):
    module, callback = Fails(error), lcs()
    attributes, images = set(module.__dict__), digits(0, 4).tensors[0]
    with pytest.raises(expected):
        trainer(tmp_path, callback).fit(module, train, val)
    assert set(module.__dict__) - LAZY == attributes - LAZY
    assert not {"forward", "training_step"} & set(module.net.__dict__)
    assert callback.subspace_model.alpha == 1.0
    assert not nn.modules.module._global_forward_pre_hooks
    module.eval()
    untouched = Net().eval()
    untouched.load_state_dict(module.net.state_dict())
    assert torch.equal(module(images), untouched(images))
    # And training can start again.
    module.train()
    trainer(tmp_path, callback).fit(module, train, val)
    assert len(callback.curve) == 3


def test_a_fit_leaves_the_module_without_patches(tmp_path, train, val):
    module = Module()
    attributes = set(module.__dict__)
    trainer(tmp_path, lcs()).fit(module, train, val)
    assert set(module.__dict__) - LAZY == attributes - LAZY
    assert "forward" not in module.net.__dict__
    assert set(module.state_dict()) == set(Module().state_dict())


def test_fit_twice_goes_on_from_both_endpoints(tmp_path, train, val):
    module, callback = Module(), lcs()
    trainer(tmp_path, callback).fit(module, train, val)
    first = [(w0.detach().clone(), w1.detach().clone()) for w0, w1 in callback.subspace_model.endpoint_pairs()]
    count = len(list(module.parameters()))
    module.lr = 0.0
    trainer(tmp_path, callback).fit(module, train, val)
    for (w0, w1), (v0, v1) in zip(callback.subspace_model.endpoint_pairs(), first, strict=True):
        assert torch.equal(w0, v0)
        assert torch.equal(w1, v1)
        assert not torch.equal(w0, w1)
    assert len(list(module.parameters())) == count
    assert len(callback.curve) == 3


def test_the_same_trainer_can_train_on(tmp_path, train, val):
    module, callback = Module(), lcs()
    run = trainer(tmp_path, callback)
    run.fit(module, train, val)
    run.fit_loop.max_epochs = 2
    before = module.net.conv1.weight.detach().clone()
    run.fit(module, train, val)
    assert run.current_epoch == 2
    assert not torch.equal(module.net.conv1.weight, before)


def test_a_second_callback_adds_no_further_endpoints(tmp_path, train, val):
    module = Module()
    trainer(tmp_path, lcs()).fit(module, train, val)
    count = len(list(module.parameters()))
    second = lcs(line={"parameters": "norm"})
    trainer(tmp_path, second, limit_train_batches=1).fit(module, train, val)
    assert len(list(module.parameters())) == count


def test_a_loader_given_as_a_keyword_and_several_training_loaders(tmp_path, train, val):
    class Pair(Module):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch["a"], batch_idx) + super().training_step(batch["b"], batch_idx)

    callback = lcs()
    loaders = {"a": train, "b": loader(digits(100, 32))}
    trainer(tmp_path, callback).fit(Pair(), train_dataloaders=loaders, val_dataloaders=val)
    assert len(callback.curve) == 3
