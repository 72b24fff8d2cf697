"""``lightning-lcs report``: from a trained run's files to one page."""

import dataclasses
import json
import re
import shutil

import pytest
from lightning.pytorch.loggers import CSVLogger

from lightning_lcs.cli.main import main
from lightning_lcs.reporting.history import read_history
from lightning_lcs.reporting.html import page
from lightning_lcs.reporting.pareto import pareto_front
from lightning_lcs.reporting.run_summary import name_method
from lightning_lcs.reporting.runs import read_runs
from lightning_lcs.subspace.curves.curve_file import write_csv
from tests.integration.support import Data, Module, lcs, trainer

# In the place of plotly's five megabytes.
NO_PLOTLY = "/* plotly */"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A line and a point, each measured after every epoch."""
    folder = tmp_path_factory.mktemp("runs")
    for subspace in ("line", "point"):
        logger = CSVLogger(folder, subspace, "")
        callback = lcs(subspace=subspace, every_n_epochs=1)
        trainer(folder, callback, logger=logger, max_epochs=2).fit(Module(), datamodule=Data())
    return folder


def data_of(text):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S).group(1))


def test_a_run_leaves_what_a_report_needs(folder):
    run = read_runs([folder / "line"])[0]
    assert [e.step for e in run.evaluations] == [3, 6]
    assert run.evaluations[-1].curve == run.curves[""]
    assert {e.stage for e in run.evaluations} == {"fit"}
    assert run.summary["settings"]["subspace"] == "line"
    assert run.summary["plan"]["compressed"]
    assert set(run.losses) >= {"lcs/train_loss/alpha_000", "train_loss_step"}


def test_the_page_holds_every_value_of_the_curves(folder):
    runs = read_runs([folder])
    text = page(runs, NO_PLOTLY)
    data = data_of(text)
    named = [("0.000", "small"), ("0.500", "medium"), ("1.000", "full")]
    assert re.findall(r"<tr[^>]*><th scope='row'>([\d.]+)</th><td>(\w+)</td>", text) == 2 * named
    assert [s["name"] for s in data["series"]] == ["line", "point"]
    for series, run in zip(data["series"], runs, strict=True):
        for shown, point in zip(series["points"], run.curves[""], strict=True):
            assert shown["metrics"] == point.metrics
            assert (shown["alpha"], shown["macs"], shown["latency_ms"]) == (point.alpha, point.macs, point.latency_ms)
    points = [p for run in runs for p in run.curves[""]]
    front = [3 * series + index for series, index in data["fronts"]["val_acc"]["macs"]]
    assert front == pareto_front(points, "macs", "val_acc")
    assert data["metric"] == "val_acc"
    assert data["metrics"] == {"val_acc": {"lower": False}, "val_loss": {"lower": True}}


def test_the_page_shows_every_level_over_training(folder):
    run = read_runs([folder / "line"])[0]
    (entry,) = data_of(page([run], NO_PLOTLY))["learning"]
    lines = entry["charts"]["val_acc"]
    assert [line["alpha"] for line in lines] == [0.0, 0.5, 1.0]
    for index, line in enumerate(lines):
        assert line["values"] == [[e.step, e.curve[index].metrics["val_acc"]] for e in run.evaluations]
    assert "training losses" in entry["charts"]


def test_the_tables_name_levels_tensors_settings_and_environment(folder):
    text = page(read_runs([folder / "line"]), NO_PLOTLY)
    body = text[text.index("<body>") :]
    for expected in (
        "0.625",
        "conv1.weight",
        "line parameters",
        "endpoint cosine",
        "python",
        "Nothing that could shrink",
    ):
        assert expected in body


def test_a_curve_on_test_data_stays_beside_the_other(tmp_path):
    module, callback = Module(), lcs()
    run = trainer(tmp_path, callback, logger=CSVLogger(tmp_path, "both", ""))
    run.fit(module, datamodule=Data())
    validated = (tmp_path / "both" / "curve.csv").read_text()
    run.test(module, datamodule=Data())
    assert (tmp_path / "both" / "curve.csv").read_text() == validated
    (found,) = read_runs([tmp_path])
    assert list(found.curves) == ["", "test"]
    assert found.curves["test"] == callback.curve != found.curves[""]
    (tmp_path / "both" / "curve.csv").unlink()
    (found,) = read_runs([tmp_path / "both"])
    assert found.curves == {"": callback.curve}


def test_runs_without_a_metric_in_common(folder):
    """A metric that is no loss comes first; who lacks it is said to, and its levels are compared by its own."""
    first, second = read_runs([folder])
    curve = [dataclasses.replace(p, metrics={"test/f1": p.metrics["val_acc"]}) for p in second.curves[""]]
    other = dataclasses.replace(second, curves={"": curve})
    text = page([first, other], NO_PLOTLY)
    assert data_of(text)["metric"] == "val_acc"
    assert "val_acc was not measured there" in text
    table = text[text.index("<summary>point</summary>") :]
    assert "at least as good a val_acc" not in table[: table.index("</details>")]


def test_a_curve_alone_makes_a_page_that_says_what_it_lacks(folder, tmp_path):
    alone = tmp_path / "alone.csv"
    alone.write_text((folder / "line" / "curve.csv").read_text())
    text = page(read_runs([alone]), NO_PLOTLY)
    assert data_of(text)["learning"] == []
    assert "there is no summary.json beside the curves" in text
    assert "Norm drift" not in text[text.index("<thead>") : text.index("</thead>")]


def test_nothing_is_fetched_from_a_network(folder):
    text = page(read_runs([folder]), NO_PLOTLY)
    assert not re.search(r"""(src|href)\s*=\s*["'](?!data:)""", text)
    assert not re.search(r"url\(|@import", text)


def test_names_that_are_markup_stay_text(folder):
    run = read_runs([folder / "line"])[0]
    evil = "</script><b>&"
    renamed = type(run)(name=evil, path=run.path, curves=run.curves, summary=run.summary)
    text = page([renamed], NO_PLOTLY)
    assert evil not in text
    assert data_of(text)["series"][0]["name"] == evil


def test_the_command_writes_one_file(folder, tmp_path, capsys):
    pytest.importorskip("plotly")
    output = tmp_path / "deep" / "page.html"
    main(["report", str(folder / "line"), str(folder / "point"), "--output", str(output), "--metric", "val_loss"])
    assert capsys.readouterr().out.strip() == str(output)
    text = output.read_text()
    assert data_of(text)["metric"] == "val_loss"
    assert [path.name for path in output.parent.iterdir()] == ["page.html"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "does not exist"),
        (["empty"], "holds no curve.csv"),
        (["line", "--metric", "nope"], "metric='nope' is on none of the curves; they have val_"),
    ],
)
def test_what_can_not_be_shown_is_said_in_one_sentence(folder, tmp_path, monkeypatch, capsys, arguments, said):
    pytest.importorskip("plotly")
    (folder / "empty").mkdir(exist_ok=True)
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit) as left:
        main(["report", *arguments, "--output", str(tmp_path / "page.html")])
    assert left.value.code == 1
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "page.html").exists()


def test_a_file_of_several_curves_and_one_without_a_folder(folder, tmp_path):
    curve = read_runs([folder / "line"])[0].curves[""]
    both = write_csv({"ours": curve, "plain": curve}, tmp_path / "both.csv")
    data = data_of(page(read_runs([both]), NO_PLOTLY))
    assert [s["name"] for s in data["series"]] == ["ours", "plain"]
    data = data_of(page(read_runs([both, folder / "line"]), NO_PLOTLY))
    assert [s["name"] for s in data["series"]] == ["both: ours", "both: plain", "line"]


def test_validation_and_resumed_training_go_on_with_the_history(tmp_path):
    module, callback = Module(), lcs(every_n_epochs=1)
    run = trainer(tmp_path, callback, max_epochs=2)
    run.fit(module, datamodule=Data())
    run.save_checkpoint(tmp_path / "two.ckpt")
    trainer(tmp_path, lcs()).validate(Module(), datamodule=Data(), ckpt_path=tmp_path / "two.ckpt")
    found = read_history(tmp_path / "curves.csv")
    assert [(e.stage, e.step) for e in found][:2] == [("fit", 3), ("fit", 6)]
    assert [e.stage for e in found] == ["fit", "fit", "validate"]
    trainer(tmp_path, lcs(every_n_epochs=1), max_epochs=3).fit(
        Module(), datamodule=Data(), ckpt_path=tmp_path / "two.ckpt"
    )
    steps = [(e.stage, e.step) for e in read_history(tmp_path / "curves.csv")]
    assert sorted(steps) == [("fit", 3), ("fit", 6), ("fit", 9), ("validate", found[-1].step)]
    trainer(tmp_path, lcs()).fit(Module(), datamodule=Data())
    assert [(e.stage, e.step) for e in read_history(tmp_path / "curves.csv")] == [("fit", 3)], "a new run starts anew"


def test_the_folder_of_a_comparison_shows_each_run_by_its_method(folder, tmp_path):
    """METHOD-SEED.csv of each run, and beside it the folder of those that were trained by this version."""
    for method in ("plain", "us"):
        write_csv({"": read_runs([folder / "point"])[0].curves[""]}, tmp_path / "compare" / f"{method}-0.csv")
    shutil.copytree(folder / "point", tmp_path / "compare" / "plain-0")
    name_method(tmp_path / "compare" / "plain-0", "plain")
    runs = read_runs([tmp_path / "compare"])
    assert [run.name for run in runs] == ["plain-0", "us-0"]
    text = page(runs, NO_PLOTLY)
    assert [series["name"] for series in data_of(text)["series"]] == ["plain-0", "us-0"]
    subtitle = re.search(r'<p class="quiet">(.*?)</p>', text).group(1)
    assert "plain" in subtitle
    assert "structured point" not in subtitle


def test_the_title_counts_runs_and_their_curves(folder, tmp_path):
    curve = read_runs([folder / "line"])[0].curves[""]
    both = write_csv({"ours": curve, "plain": curve}, tmp_path / "both.csv")
    assert "<h1>2 runs compared</h1>" in page(read_runs([folder]), NO_PLOTLY)
    assert "<h1>3 curves of 2 runs compared</h1>" in page(read_runs([both, folder / "line"]), NO_PLOTLY)
