"""Both names of Lightning, each a class tree of its own: ``lightning.pytorch`` and ``pytorch_lightning``."""

import csv
import functools
import importlib
import logging

import pytest
import torch
from torch import nn

from lightning_lcs import BatchNormRecalibration, LCSCallback, SubspaceModel, TradeoffMonitor
from lightning_lcs.loggers import wandb
from tests.integration.support import Net, digits, lcs, loader

# Losses near 2.3: Lightning averages those of alpha = 1 in float32 at the end of fit, the curve averages in float64.
METRIC_TOLERANCE = 1e-5


def namespace(name):
    pytest.importorskip(name.partition(".")[0], reason=f"{name} is not installed: its users are not tested")
    logging.getLogger(name).setLevel(logging.ERROR)
    return importlib.import_module(name)


class Body:
    """A user's module but for its base class."""

    def __init__(self, lr=0.1, callbacks=()):
        super().__init__()
        self.save_hyperparameters("lr")
        self.net = Net()
        self.callbacks = list(callbacks)

    def configure_callbacks(self):
        return self.callbacks

    def training_step(self, batch, batch_idx):
        batch = batch["a"] if isinstance(batch, dict) else batch
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", nn.functional.cross_entropy(self.net(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.hparams.lr, momentum=0.9)


def module_class(pl):
    """A user's module as a class of their namespace."""
    return type("Theirs", (Body, pl.LightningModule), {})


def data_of(pl, train=lambda: loader(digits(0, 48))):
    class Data(pl.LightningDataModule):
        def train_dataloader(self):
            return train()

        def val_dataloader(self):
            return loader(digits(48, 40))

    return Data()


def trainer_of(pl, folder, *callbacks, **options):
    return pl.Trainer(
        accelerator="cpu",
        callbacks=list(callbacks),
        enable_checkpointing=any(isinstance(callback, pl.callbacks.Checkpoint) for callback in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **{"max_epochs": 1, "logger": False, "num_sanity_val_steps": 1, "log_every_n_steps": 1, **options},
    )


@pytest.fixture(params=["lightning.pytorch", "pytorch_lightning"])
def pl(request):
    """The namespace that the user imports."""
    return namespace(request.param)


@pytest.fixture
def theirs(pl):
    return module_class(pl)


@pytest.fixture
def data(pl):
    return data_of(pl)


@pytest.fixture
def trainer(pl, tmp_path):
    return functools.partial(trainer_of, pl, tmp_path)


def assert_equal(first, second):
    assert first.keys() == second.keys()
    assert len(first) > 0
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_fit_and_curve(tmp_path, pl, theirs, data, trainer):
    callback, module = lcs(), theirs()
    logger = pl.loggers.CSVLogger(tmp_path, "logs", "v")
    trainer(callback, logger=logger).fit(module, datamodule=data)
    assert [point.alpha for point in callback.curve] == [0.0, 0.5, 1.0]
    assert len({point.metrics["val_loss"] for point in callback.curve}) == 3
    assert all(not torch.equal(w0, w1) for w0, w1 in callback.subspace_model.endpoint_pairs())
    with (tmp_path / "logs" / "v" / "metrics.csv").open(newline="") as file:
        logged = [row["lcs/val_loss/mean"] for row in csv.DictReader(file) if row.get("lcs/val_loss/mean")]
    mean = sum(point.metrics["val_loss"] for point in callback.curve) / 3
    assert [float(value) for value in logged] == pytest.approx([mean])
    assert set(module.__dict__) == set(theirs().__dict__)


def test_both_names_train_alike(tmp_path):
    trained = []
    for name in ("lightning.pytorch", "pytorch_lightning"):
        pl = namespace(name)
        torch.manual_seed(4)
        module, callback = module_class(pl)(), lcs()
        trainer_of(pl, tmp_path, callback).fit(module, datamodule=data_of(pl))
        metrics = [point.metrics for point in callback.curve]
        trained.append((dict(module.named_parameters()), callback.subspace_model.statistics, metrics))
    assert_equal(trained[0][0], trained[1][0])
    for alpha, tensors in trained[0][1].items():
        assert_equal(tensors, trained[1][1][alpha])
    assert trained[0][2] == trained[1][2]


def test_checkpoint_and_resume(tmp_path, pl, theirs, data, trainer):
    saving = pl.callbacks.ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    whole, callback = theirs(), lcs()
    trainer(callback, saving, max_epochs=2).fit(whole, datamodule=data)
    resumed, again = theirs(), lcs()
    trainer(again, max_epochs=2).fit(resumed, datamodule=data, ckpt_path=tmp_path / "epoch=0.ckpt")
    assert_equal(dict(whole.named_parameters()), dict(resumed.named_parameters()))
    assert [point.metrics for point in callback.curve] == [point.metrics for point in again.curve]
    for module in (Net(), theirs()):
        model = SubspaceModel.from_checkpoint(tmp_path / "epoch=1.ckpt", module)
        assert model.statistics.keys() == callback.subspace_model.statistics.keys() == {0.0, 0.5}
        for alpha, tensors in callback.subspace_model.statistics.items():
            assert_equal(tensors, model.statistics[alpha])


def test_load_from_checkpoint(tmp_path, pl, theirs, data, trainer):
    saving = pl.callbacks.ModelCheckpoint(tmp_path, "weights", save_weights_only=True)
    module = theirs(lr=0.2)
    trainer(lcs(), saving).fit(module, datamodule=data)
    loaded = theirs.load_from_checkpoint(tmp_path / "weights.ckpt")
    assert loaded.hparams.lr == 0.2
    assert_equal(module.state_dict(), loaded.state_dict())
    assert not any("lcs" in name for name, _ in loaded.named_parameters())


def test_validate_from_a_checkpoint(tmp_path, pl, theirs, data, trainer):
    saving = pl.callbacks.ModelCheckpoint(tmp_path, "model")
    callback, again = lcs(), lcs()
    trainer(callback, saving).fit(theirs(), datamodule=data)
    trainer(again).validate(theirs(), datamodule=data, ckpt_path=tmp_path / "model.ckpt", verbose=False)
    for found, expected in zip(again.curve, callback.curve, strict=True):
        assert found.metrics == pytest.approx(expected.metrics, abs=METRIC_TOLERANCE)


@pytest.mark.parametrize("name", ["ModelPruning"])
def test_what_is_refused(pl, theirs, data, trainer, name):
    kind = getattr(pl.callbacks, name, None)
    if kind is None:
        pytest.skip(f"{pl.__name__} {pl.__version__} has no {name}")
    options = {"ModelPruning": {"pruning_fn": "l1_unstructured"}}
    with pytest.raises(ValueError, match=f"{name} .*: take it out of the trainer"):
        trainer(lcs(), kind(**options.get(name, {}))).fit(theirs(), datamodule=data)


@pytest.mark.parametrize("subspace", ["line", "point"])
@pytest.mark.parametrize("name", ["EMAWeightAveraging", "StochasticWeightAveraging"])
def test_averages_are_saved(pl, theirs, data, trainer, tmp_path, name, subspace):
    kind = getattr(pl.callbacks, name, None)
    if kind is None:
        pytest.skip(f"{pl.__name__} {pl.__version__} has no {name}")
    averages = kind() if name == "EMAWeightAveraging" else kind(swa_lrs=0.1, swa_epoch_start=1)
    saving = pl.callbacks.ModelCheckpoint(tmp_path, filename="model")
    callback = lcs(subspace=subspace)
    trainer(callback, averages, saving).fit(theirs(), datamodule=data)
    opened = SubspaceModel.from_checkpoint(tmp_path / "model.ckpt", theirs())
    assert opened.runner.statistics_fit()
    assert callback.curve[0].weights == opened.runner.fingerprint()


def test_configure_callbacks(theirs, data, trainer):
    """The module brings the callback itself, and its helpers."""
    callback, helpers = LCSCallback(), (BatchNormRecalibration([0.0]), TradeoffMonitor([0.0, 1.0]))
    trainer().fit(theirs(callbacks=[callback, *helpers]), datamodule=data)
    assert [point.alpha for point in callback.curve] == [0.0, 1.0]
    assert helpers[1].curve == callback.curve
    assert set(callback.subspace_model.statistics) == {0.0}


def test_early_stopping_and_a_best_checkpoint(tmp_path, pl, theirs, data, trainer):
    stopping = pl.callbacks.EarlyStopping("lcs/val_loss/mean", min_delta=10.0, patience=1)
    best = pl.callbacks.ModelCheckpoint(tmp_path, "best", monitor="lcs/val_loss/mean")
    run = trainer(stopping, lcs(every_n_epochs=1), best, max_epochs=5)
    run.fit(theirs(), datamodule=data)
    assert run.current_epoch == 2
    assert SubspaceModel.from_checkpoint(tmp_path / "best.ckpt", Net()).statistics


def test_loaders_in_a_combined_loader(pl, theirs, trainer):
    """Recalibration by a trainer that has not trained reads the user's own loaders."""
    loaders = {"a": loader(digits(0, 48)), "b": loader(digits(0, 32))}
    data, callback = data_of(pl, lambda: pl.utilities.CombinedLoader(loaders, "min_size")), lcs(subspace="point")
    trainer(callback).validate(theirs(), datamodule=data, verbose=False)
    assert len(callback.curve) == 3


def test_wandb(tmp_path, pl, theirs, data, trainer, monkeypatch):
    """The panels go to the experiment of a WandbLogger, whichever name it was imported by."""

    class Logger(pl.loggers.WandbLogger):
        """Without a run of W&B."""

        name, version, save_dir, experiment = "name", "version", str(tmp_path), "experiment"

        def __init__(self):
            self.logged = {}

        def log_metrics(self, metrics, step=None):
            self.logged.update(metrics)

        def log_hyperparams(self, *args):
            pass

        def finalize(self, status):
            pass

    drawn = []
    monkeypatch.setattr(wandb, "log_curve", lambda experiment, *_: drawn.append(experiment))
    logger = Logger()
    trainer(lcs(), logger=logger).fit(theirs(), datamodule=data)
    assert "lcs/val_loss/mean" in logger.logged
    assert drawn == ["experiment"]
