"""The accuracy-efficiency curve: right values, and nothing of the user's disturbed by measuring it."""

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from tests.integration.support import Module, Net, digits, lcs, loader, trainer

# Means of float32 losses near 2.3, in batches of another size.
LOSS_TOLERANCE = 1e-5
# Accuracies are counts over 40 images, averaged in float32 at alpha = 1 and in float64 elsewhere.
ACCURACY_TOLERANCE = 1e-6


def evaluated(model, dataset):
    """Accuracy and loss over a data set, at the level set."""
    images, labels = dataset.tensors
    with torch.no_grad():
        logits = model(images)
    accuracy = (logits.argmax(1) == labels).float().mean()
    return accuracy.item(), nn.functional.cross_entropy(logits, labels).item()


@pytest.mark.parametrize("subspace", ["line", "point"])
def test_values_are_those_of_an_independent_evaluation(tmp_path, train, val, subspace):
    callback = lcs(alphas=5, subspace=subspace)
    trainer(tmp_path, callback, max_epochs=4).fit(Module(), train, val)
    model = callback.subspace_model.eval()
    assert [point.alpha for point in callback.curve] == [0.0, 0.25, 0.5, 0.75, 1.0]
    for point in callback.curve:
        with model.at_alpha(point.alpha):
            accuracy, loss = evaluated(model, val.dataset)
        assert abs(point.metrics["val_acc"] - accuracy) <= ACCURACY_TOLERANCE
        assert abs(point.metrics["val_loss"] - loss) <= LOSS_TOLERANCE
        assert set(point.metrics) == {"val_acc", "val_loss"}
        assert point.width == 0.25 + 0.75 * point.alpha
        assert point.latency_ms > 0.0
        assert model.efficiency(point.alpha).params == point.params
    assert len({point.metrics["val_loss"] for point in callback.curve}) == 5


class Recorded(Callback):
    """The user's validation metrics after every epoch."""

    def __init__(self):
        self.seen = []

    def on_validation_end(self, trainer, pl_module):
        kept = {k: v.item() for k, v in trainer.callback_metrics.items() if not k.startswith("lcs/")}
        self.seen.append(kept)


class Dropping(Module):
    """Draws random numbers in every step."""

    def training_step(self, batch, batch_idx):
        images, labels = batch
        return super().training_step((images + 0.1 * torch.randn_like(images), labels), batch_idx)


def fit_with_monitors(folder, val, every_n_epochs):
    torch.manual_seed(7)
    module, recorded = Dropping(lr=0.3), Recorded()
    stopping = EarlyStopping("val_loss", patience=1, min_delta=0.05)
    best = ModelCheckpoint(folder, monitor="val_acc", mode="max", filename="{epoch}", save_top_k=2)
    callbacks = [lcs(every_n_epochs=every_n_epochs), recorded, stopping, best]
    run = trainer(folder, *callbacks, max_epochs=6, enable_checkpointing=True, num_sanity_val_steps=1)
    run.fit(module, loader(digits(0, 48), shuffle=True), val)
    return module, recorded.seen, stopping, best


def test_training_and_monitors_are_the_same_with_and_without_the_curve(tmp_path, val):
    often = fit_with_monitors(tmp_path / "often", val, 1)
    once = fit_with_monitors(tmp_path / "once", val, None)
    assert 0 < once[2].stopped_epoch < 5
    assert often[1] == once[1]
    for name, value in once[0].state_dict().items():
        assert torch.equal(often[0].state_dict()[name], value), name
    for (name, a), (_, b) in zip(often[0].named_parameters(), once[0].named_parameters(), strict=True):
        assert torch.equal(a, b), name
    assert often[2].stopped_epoch == once[2].stopped_epoch
    assert often[2].best_score == once[2].best_score
    assert often[3].best_model_score == once[3].best_model_score
    assert [p.rsplit("/")[-1] for p in often[3].best_k_models] == [p.rsplit("/")[-1] for p in once[3].best_k_models]


def test_lists_filled_in_validation_are_left_as_they_were(tmp_path, train, val):
    class Appends(Module):
        def __init__(self):
            super().__init__()
            self.outputs = []

        def validation_step(self, batch, batch_idx):
            super().validation_step(batch, batch_idx)
            self.outputs.append(len(batch[0]))

        def on_validation_epoch_end(self):
            self.log("images", float(sum(self.outputs)))
            self.outputs.clear()

    module, callback = Appends(), lcs()
    trainer(tmp_path, callback).fit(module, train, val)
    assert module.outputs == []
    assert [point.metrics["images"] for point in callback.curve] == [40.0, 40.0, 40.0]


def test_a_history_kept_by_the_user_gets_no_entries_of_other_levels(tmp_path, train, val):
    class Keeps(Module):
        def __init__(self):
            super().__init__()
            self.history = []

        def on_validation_epoch_end(self):
            self.history.append(self.val_acc.compute().item())

    module = Keeps()
    trainer(tmp_path, lcs(every_n_epochs=1), max_epochs=2).fit(module, train, val)
    assert len(module.history) == 2


def test_a_best_value_kept_by_the_user_is_that_of_the_full_level(tmp_path, train, val):
    class Best(Module):
        def __init__(self):
            super().__init__()
            self.worst = 0.0

        def validation_step(self, batch, batch_idx):
            super().validation_step(batch, batch_idx)
            self.worst = max(self.worst, self.loss(self.net(batch[0]), batch[1]).item())

    module, callback = Best(), lcs()
    trainer(tmp_path, callback).fit(module, train, val)
    plain = Net().eval()
    plain.load_state_dict(module.net.state_dict())
    with torch.no_grad():
        expected = max(nn.functional.cross_entropy(plain(images), labels).item() for images, labels in val)
    assert module.worst == expected


def test_several_validation_loaders(tmp_path, train, val):
    class Several(Module):
        def __init__(self):
            super().__init__()
            self.accs = nn.ModuleList(MulticlassAccuracy(10, average="micro") for _ in range(2))

        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            logits = self.net(batch[0])
            self.accs[dataloader_idx](logits, batch[1])
            self.log("val_acc", self.accs[dataloader_idx])
            self.log("val_loss", self.loss(logits, batch[1]))
            self.log(f"images_{dataloader_idx}", float(len(batch[0])), reduce_fx="sum", add_dataloader_idx=False)

    callback, datasets = lcs(), [val.dataset, digits(200, 24)]
    trainer(tmp_path, callback).fit(Several(), train, [loader(dataset) for dataset in datasets])
    model = callback.subspace_model.eval()
    for point in callback.curve:
        for index, dataset in enumerate(datasets):
            with model.at_alpha(point.alpha):
                accuracy, loss = evaluated(model, dataset)
            assert abs(point.metrics[f"val_acc/dataloader_idx_{index}"] - accuracy) <= ACCURACY_TOLERANCE
            assert abs(point.metrics[f"val_loss/dataloader_idx_{index}"] - loss) <= LOSS_TOLERANCE
        assert (point.metrics["images_0"], point.metrics["images_1"]) == (40.0, 24.0)


def test_collections_dictionaries_and_reductions(tmp_path, train, val):
    class Logs(Module):
        def __init__(self):
            super().__init__()
            scores = {"top1": MulticlassAccuracy(10, average="micro"), "top5": MulticlassAccuracy(10, top_k=5)}
            self.scores = MetricCollection(scores, prefix="val_")

        def validation_step(self, batch, batch_idx):
            logits = self.net(batch[0])
            self.scores.update(logits, batch[1])
            self.log_dict({"count": float(len(batch[0])), "largest": logits.max()}, reduce_fx="max")
            self.log("val_loss", self.loss(logits, batch[1]), on_step=True, on_epoch=True)

        def on_validation_epoch_end(self):
            self.log_dict(self.scores.compute())
            self.scores.reset()

    callback = lcs()
    trainer(tmp_path, callback).fit(Logs(), train, val)
    model = callback.subspace_model.eval()
    for point in callback.curve:
        with model.at_alpha(point.alpha):
            accuracy, loss = evaluated(model, val.dataset)
            with torch.no_grad():
                largest = model(val.dataset.tensors[0]).max().item()
        assert abs(point.metrics["val_top1"] - accuracy) <= ACCURACY_TOLERANCE
        assert abs(point.metrics["val_loss"] - loss) <= LOSS_TOLERANCE
        assert abs(point.metrics["largest"] - largest) <= LOSS_TOLERANCE
        assert point.metrics["count"] == 16.0
        assert set(point.metrics) == {"val_top1", "val_top5", "val_loss", "count", "largest"}


def test_a_limit_on_validation_batches_holds_for_every_level(tmp_path, train, val):
    class Counts(Module):
        def validation_step(self, batch, batch_idx):
            super().validation_step(batch, batch_idx)
            self.log("images", float(len(batch[0])), reduce_fx="sum")

    callback = lcs()
    trainer(tmp_path, callback, limit_val_batches=2).fit(Counts(), train, val)
    assert [point.metrics["images"] for point in callback.curve] == [32.0, 32.0, 32.0]
