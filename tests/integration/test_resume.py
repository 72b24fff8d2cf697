"""Killed anywhere and resumed: where a project resumes bit for bit without LCSCallback, so does it with it."""

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from tests.integration.support import Module, digits, lcs, loader, trainer

STEPS, EPOCHS = 3, 2  # per epoch; in all
# Losses near 2.3, averaged by Lightning in float32 and by the curve in float64. All else is bitwise.
METRIC_TOLERANCE = 1e-5

with_and_without = pytest.mark.parametrize("subspace", [None, "point", "line"], ids=["plain", "point", "line"])


class KilledError(Exception):
    pass


class Resumable(DataLoader):
    """A loader that goes on where it was, as Lightning wants it for checkpoints within an epoch."""

    given = 0

    def __iter__(self):
        start, self.given = self.given % STEPS, 0
        for index, batch in enumerate(super().__iter__()):
            if index >= start:
                self.given = index + 1
                yield batch

    def state_dict(self):
        return {"given": self.given}

    def load_state_dict(self, state):
        self.given = state["given"]


class Mine(Module):
    """A user's module; it can be killed in the n-th call of ``validation_step``."""

    kill_at = 0

    def validation_step(self, batch, batch_idx):
        # Not an attribute of the module: those are put back between levels.
        type(self).kill_at -= 1
        if type(self).kill_at == 0:
            raise KilledError
        super().validation_step(batch, batch_idx)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 0.01)


class KillAt(Callback):
    """Raises in a hook, at a global step."""

    def __init__(self, hook, step=0):
        def kill(trainer, *args):
            if trainer.global_step == step:
                raise KilledError

        setattr(self, hook, kill)


class SaveWhenKilled(Callback):
    """What ``OnExceptionCheckpoint`` does."""

    def __init__(self, path):
        self.path = path

    def on_exception(self, trainer, pl_module, exception):
        trainer.save_checkpoint(self.path)


class Run:
    """One run, to its end or until it is killed."""

    def __init__(self, folder, subspace, *others, path=None, killed=False, kind=Resumable):
        # A resumed run has none of its start in common with the first one.
        torch.manual_seed(0 if path is None else 1)
        self.module = Mine()
        recalibration = {"every_checkpoint": True}  # so that any file of a killed run can be looked at
        self.callback = lcs(subspace=subspace, every_n_epochs=1, recalibration=recalibration) if subspace else None
        self.trainer = trainer(
            folder,
            *([self.callback] if self.callback else []),
            *others,
            max_epochs=EPOCHS,
            enable_checkpointing=any(isinstance(other, ModelCheckpoint) for other in others),
        )
        loaders = kind(digits(0, 48), batch_size=16), loader(digits(48, 40))
        if killed:
            with pytest.raises(KilledError):
                self.trainer.fit(self.module, *loaders)
        else:
            self.trainer.fit(self.module, *loaders, ckpt_path=path)


def assert_same(a, b, where=""):
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for index, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}[{index}]")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    else:
        assert a == pytest.approx(b, abs=METRIC_TOLERANCE if where.startswith("/curve") else 0.0), where


def result(run, curve=True):
    """All that a run ends with. Parameters hold both endpoints, buffers the running statistics of alpha = 1."""
    found = {
        "parameters": dict(run.module.named_parameters()),
        "buffers": dict(run.module.net.named_buffers()),
        "optimizer": run.trainer.optimizers[0].state_dict(),
        "steps": run.trainer.global_step,
        "epochs": run.trainer.current_epoch,
    }
    if run.callback is not None:
        found["statistics"] = run.callback.subspace_model.statistics
        assert ("net.norm1.lcs_endpoint_0.weight" in found["parameters"]) == (run.callback.subspace == "line")
        assert found["statistics"].keys() == {0.0, 0.5}
        if curve:
            found["curve"] = [point.metrics for point in run.callback.curve]
            assert len(found["curve"]) == 3
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Uninterrupted runs, each made once."""
    made = {}

    def run(subspace):
        if subspace not in made:
            made[subspace] = result(Run(tmp_path_factory.mktemp("whole"), subspace))
        return made[subspace]

    return run


def each_step(folder):
    return ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1)


def each_epoch(folder):
    return ModelCheckpoint(folder, "{step}", save_top_k=-1)


@with_and_without
@pytest.mark.parametrize("step", range(1, STEPS * EPOCHS))
def test_killed_after_any_step(tmp_path, subspace, step, whole):
    """A checkpoint per step, and killed when the next batch comes."""
    kill = KillAt("on_train_batch_start", step)
    Run(tmp_path, subspace, kill, each_step(tmp_path), killed=True)
    resumed = Run(tmp_path, subspace, path=tmp_path / f"step={step}.ckpt")
    assert_same(result(resumed), whole(subspace))


@with_and_without
@pytest.mark.parametrize(
    ("hook", "step", "saving"),
    [
        ("on_validation_start", STEPS, each_step),
        ("on_train_epoch_start", STEPS, each_epoch),
        ("on_validation_end", 2 * STEPS, each_epoch),
        ("on_train_epoch_end", 2 * STEPS, each_epoch),
    ],
)
def test_killed_around_the_end_of_an_epoch(tmp_path, subspace, hook, step, saving, whole):
    Run(tmp_path, subspace, KillAt(hook, step), saving(tmp_path), killed=True)
    resumed = Run(tmp_path, subspace, path=tmp_path / f"step={STEPS}.ckpt")
    assert_same(result(resumed), whole(subspace))


@pytest.mark.parametrize("subspace", ["point", "line"])
@pytest.mark.parametrize("epoch", range(EPOCHS))
def test_killed_in_the_middle_of_a_curve(tmp_path, subspace, epoch, whole, monkeypatch):
    """In the second batch at alpha = 0.5; before come 3 at alpha = 1, those of the validation, and 3 at alpha = 0."""
    monkeypatch.setattr(Mine, "kill_at", epoch * 9 + 8)
    Run(tmp_path, subspace, each_step(tmp_path), killed=True)
    path = tmp_path / f"step={STEPS * (epoch + 1)}.ckpt"
    resumed = Run(tmp_path, subspace, path=path)
    assert_same(result(resumed), whole(subspace))


@with_and_without
def test_saved_by_the_exception_in_the_first_batch_of_an_epoch(tmp_path, subspace, whole):
    """The only batch after which a loader that starts anew gives what a loader that goes on would give."""
    path = tmp_path / "killed.ckpt"
    others = KillAt("on_train_batch_start", STEPS), SaveWhenKilled(path)
    Run(tmp_path, subspace, *others, killed=True, kind=DataLoader)
    resumed = Run(tmp_path, subspace, path=path, kind=DataLoader)
    assert_same(result(resumed), whole(subspace))


@pytest.mark.parametrize(
    ("subspace", "call"),
    [
        # The second batch of three in which Lightning validates, and one of the curve at alpha = 0.5.
        (None, 2),
        (None, 5),
        ("point", 2),
        ("point", 8),
        ("line", 2),
        ("line", 8),
        ("point", 9 + 2),
        ("line", 9 + 2),
        ("point", 9 + 8),
        ("line", 9 + 8),
    ],
)
def test_saved_by_the_exception_in_the_middle_of_evaluation(tmp_path, subspace, call, whole, monkeypatch):
    monkeypatch.setattr(Mine, "kill_at", call)
    path = tmp_path / "killed.ckpt"
    Run(tmp_path, subspace, SaveWhenKilled(path), killed=True, kind=DataLoader)
    resumed = Run(tmp_path, subspace, path=path, kind=DataLoader)
    assert_same(result(resumed), whole(subspace))
