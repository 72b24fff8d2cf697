"""Progress of recalibration and of curves, beside Lightning's own bars."""

import io
import re
from types import SimpleNamespace

import pytest
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar
from rich.console import Console
from rich.progress import Progress

from lightning_lcs.training.curves.progress import counted, progress, show_curves, shown_bar
from tests.integration.support import Data, Module, lcs, trainer
from tests.unit.reporting.test_curve import CURVE


def shown(capsys):
    return capsys.readouterr().out


def whole_lines(text):
    """What stands on lines of its own: bars return to the start of a line or move the cursor to draw."""
    return [line.strip() for line in re.split(r"[\r\n]|\x1b\[[0-9;]*[A-Za-z]", text)]


def test_tqdm_shows_recalibration_and_curve_and_then_takes_them_away(tmp_path, capsys):
    run = trainer(tmp_path, lcs(), TQDMProgressBar(), enable_progress_bar=True)
    run.fit(Module(), datamodule=Data())
    text = shown(capsys)
    assert "Recalibration of batch norm, images:" in text
    assert "Curve, alpha 0.50 (2 of 2)" in text
    # Three batches at each of two levels: alpha = 1 was measured by the validation itself.
    assert re.search(r"Curve, alpha 0.50 \(2 of 2\): +50%.*\| 3/6 \[", text)
    box = [line for line in whole_lines(text) if line.startswith(("┏", "│", "└"))]
    assert len(box) == 5, "the table's lines are whole: nothing else is drawn on them"
    assert all(line.endswith(("┓", "│", "┘")) for line in box)
    assert "Curve, alpha" not in text.splitlines()[-1].rsplit("\r", 1)[-1]


def test_rich_shows_them_too(tmp_path, capsys):
    run = trainer(tmp_path, lcs(), RichProgressBar(), enable_progress_bar=True)
    run.fit(Module(), datamodule=Data())
    text = shown(capsys)
    assert sum(line.startswith("│") for line in whole_lines(text)) == 3
    bar = run.progress_bar_callback
    assert [task.description for task in bar.progress.tasks if task.visible and "Curve" in task.description] == []


@pytest.mark.parametrize("bar", [TQDMProgressBar(refresh_rate=0), None])
def test_without_bars_there_is_silence(tmp_path, capsys, bar):
    bars = {"enable_progress_bar": bar is not None}
    run = trainer(tmp_path, lcs(), *([bar] if bar else []), **bars)
    run.fit(Module(), datamodule=Data())
    run.validate(verbose=False, datamodule=Data(), model=Module())
    assert shown(capsys) == ""


def fake(bar, rank=0):
    return SimpleNamespace(progress_bar_callback=bar, is_global_zero=rank == 0)


class Rich:
    """As much of Lightning's bar as is used."""

    is_disabled = False

    def __init__(self):
        self.progress = Progress(console=Console(file=io.StringIO(), width=80))
        self.refreshed = 0

    def refresh(self):
        self.refreshed += 1


def test_a_task_counts_and_is_gone_after_an_error():
    bar = Rich()

    def fails_after_three():
        with progress(fake(bar), "Curve", 4) as advance:
            advance(0, "first")
            (task,) = bar.progress.tasks
            assert (task.description, task.completed, task.total) == ("first", 0, 4)
            assert list(counted("abc", advance, "second", lambda item: 1)) == ["a", "b", "c"]
            assert (task.description, task.completed) == ("second", 3)
            raise KeyError

    with pytest.raises(KeyError):
        fails_after_three()
    assert bar.progress.tasks == []
    assert bar.refreshed


@pytest.mark.parametrize("trainer_like", [fake(None), fake(Rich(), rank=1), fake(SimpleNamespace(is_disabled=True))])
def test_other_ranks_and_disabled_bars_stay_quiet(capsys, trainer_like):
    assert shown_bar(trainer_like) is None
    with progress(trainer_like, "Curve", float("inf")) as advance:
        advance(3, "doing")
    show_curves(trainer_like, {"": CURVE})
    assert shown(capsys) == ""


def test_a_bar_of_another_kind_prints_the_table_itself(capsys):
    bar = SimpleNamespace(is_disabled=False, print=print)
    with progress(fake(bar), "Curve", None) as advance:
        advance(1, "doing")
    show_curves(fake(bar), {"": CURVE})
    assert "Accuracy-efficiency curve" in shown(capsys)
