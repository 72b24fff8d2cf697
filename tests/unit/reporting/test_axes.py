"""The axis of a mode of the user's own in tables, files, plots, W&B and the report."""

import csv
import io
import json
import math

import pytest
from rich.console import Console

from lightning_lcs.loggers.wandb import series_of
from lightning_lcs.reporting import level_axis as axes_of_curves
from lightning_lcs.reporting.comparison import by_axis
from lightning_lcs.reporting.history import Evaluation, read_history, write_history
from lightning_lcs.reporting.html import page
from lightning_lcs.reporting.level_axis import level_axis
from lightning_lcs.reporting.plots import curve_figure
from lightning_lcs.reporting.runs import Run
from lightning_lcs.reporting.terminal import print_curves, print_levels
from lightning_lcs.subspace.axis import Axis
from lightning_lcs.subspace.curves.curve import CurvePoint, Efficiency
from lightning_lcs.subspace.curves.curve_file import read_csv, read_curves, write_csv
from lightning_lcs.subspace.curves.level_table import make_table, table_from_data, table_to_data
from lightning_lcs.subspace.modes import Structured

RANK = Axis("rank_share", "Share of ranks", unit="%", format=".1f", full=100.0)


def cost(alpha: float, **changed: float) -> Efficiency:
    fields = {"width": 1.0, "sparsity": 0.0, "bit_width": 32, "params": 10, "macs": 20, "size_bytes": 4000} | changed
    return Efficiency(alpha=alpha, **fields, settings={"rank_share": 25.0 + 75.0 * alpha})


def point(alpha: float, **changed: float) -> CurvePoint:
    return CurvePoint(**vars(cost(alpha, **changed)), latency_ms=math.nan, metrics={"val_acc": 0.5 + 0.4 * alpha})


CURVE = [point(alpha, macs=int(20 + 80 * alpha)) for alpha in (0.0, 0.5, 1.0)]


@pytest.fixture
def registered(monkeypatch):
    known = axes_of_curves.axes()
    monkeypatch.setattr(axes_of_curves, "axes", lambda: {**known, "rank_share": RANK})


def plain(alpha: float, **changed: float) -> CurvePoint:
    fields = {"width": 1.0, "sparsity": 0.0, "bit_width": 32, "params": 10, "macs": 20, "size_bytes": 40} | changed
    return CurvePoint(alpha=alpha, **fields, latency_ms=math.nan, metrics={})


@pytest.mark.parametrize(
    ("curve", "name"),
    [
        (CURVE, "rank_share"),
        ([plain(0.0, width=0.5), plain(1.0)], "width"),
        ([plain(0.0, sparsity=0.9), plain(1.0)], "sparsity"),
        ([plain(0.0, bit_width=3), plain(1.0, bit_width=8)], "bit_width"),
        ([plain(1.0, bit_width=8)], "bit_width"),
        ([plain(1.0)], "width"),
        ([], "width"),
    ],
)
def test_the_axis_is_the_one_along_which_levels_differ_from_the_full_network(curve, name):
    assert level_axis([curve]).name == name


def test_an_axis_that_is_not_registered_here_has_its_name_as_label():
    assert level_axis([CURVE]) == Axis("rank_share", "rank share")


def test_files_hold_the_axis_between_the_other_axes_and_the_counts(tmp_path):
    path = write_csv({"": CURVE}, tmp_path / "curve.csv")
    header = next(csv.reader(path.read_text().splitlines()))
    assert header[:6] == ["alpha", "width", "sparsity", "bit_width", "rank_share", "params"]
    found = read_csv(path)
    assert [p.settings for p in found] == [{"rank_share": 25.0}, {"rank_share": 62.5}, {"rank_share": 100.0}]
    assert found[0].metrics == {"val_acc": 0.5}
    both = write_csv({"ours": CURVE, "plain": [plain(1.0)]}, tmp_path / "both.csv")
    assert read_curves(both)["plain"][0].settings == {}
    evaluations = [Evaluation(curve=CURVE, stage="fit", epoch=0, step=4)]
    again = read_history(write_history(evaluations, tmp_path / "curves.csv"))
    assert again[0].curve[1].settings == {"rank_share": 62.5}


def test_tables_in_the_terminal_show_the_axis_with_its_format_and_unit(registered):
    console = Console(file=io.StringIO(), width=200)
    print_curves({"": CURVE}, console)
    print_levels(make_table(CURVE, Structured(), lambda alpha: next(p for p in CURVE if p.alpha == alpha)), console)
    text = console.file.getvalue()
    assert text.count("rank_share") == 2
    assert text.count("62.5 %") == 2
    assert "width" not in text


def test_plots_wandb_and_comparisons_have_the_axis(registered):
    left = curve_figure({"ours": CURVE}, "val_acc").axes[0]
    assert left.get_xlabel() == "Share of ranks (%)"
    assert list(left.lines[0].get_xdata()) == [25.0, 62.5, 100.0]
    assert series_of({"ours": CURVE}, "rank_share", "val_acc") == {"ours": ([25.0, 62.5, 100.0], [0.5, 0.7, 0.9])}
    assert list(by_axis({"ours": [CURVE], "narrow": [[plain(0.0, width=0.5), plain(1.0)]]})) == ["rank_share", "width"]


def test_the_report_charts_and_lists_the_axis(registered, tmp_path):
    text = page([Run(name="low rank", path=tmp_path, curves={"": CURVE})], "", "val_acc")
    data = json.loads(text.partition('id="data">')[2].partition("</script>")[0])
    assert data["axes"]["rank_share"] == {
        "label": "Share of ranks",
        "short": "Share of ranks",
        "form": "plain",
        "unit": "%",
        "level": True,
    }
    assert [p["rank_share"] for p in data["series"][0]["points"]] == [25.0, 62.5, 100.0]
    assert "<th scope='col'>Share of ranks <span>%</span></th>" in text
    assert "<td>62.5</td>" in text


def test_the_level_table_of_a_file_holds_the_axis():
    table = make_table([0.0, 1.0], Structured(), cost)
    rows = json.loads(json.dumps(table_to_data(table), allow_nan=False))
    assert [row["settings"] for row in rows] == [{"rank_share": 25.0}, {"rank_share": 100.0}]
    assert [level.settings for level in table_from_data(rows)] == [level.settings for level in table]
    for broken in ({"rank_share": math.inf}, {"rank_share": "25"}, {"width": 0.5}, {"Rank!": 1.0}, [1.0]):
        with pytest.raises(ValueError, match="settings do not map"):
            table_from_data([{**rows[0], "settings": broken}])


def test_a_table_from_a_curve_of_another_model_names_the_axis():
    other = [CurvePoint(**{**vars(p), "settings": {"rank_share": 7.0}}) for p in CURVE]
    with pytest.raises(ValueError, match=r"has rank_share=7\.0, and this model has 25\.0"):
        make_table(other, Structured(), cost)


def test_a_table_is_made_from_the_path_of_a_curve_file(tmp_path):
    fitting = [point(alpha) for alpha in (0.0, 1.0)]
    path = write_csv({"": fitting}, tmp_path / "curve.csv")
    for given in (path, str(path)):
        table = make_table(given, Structured(), cost)
        assert [(level.name, level.metrics["val_acc"]) for level in table] == [("small", 0.5), ("full", 0.9)]
    with pytest.raises(FileNotFoundError, match=r"levels='.*none.csv' does not exist: give the path of a curve.csv"):
        make_table(str(tmp_path / "none.csv"), Structured(), cost)
