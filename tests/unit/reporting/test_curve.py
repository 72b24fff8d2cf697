"""Curves as data, tables, files and pictures."""

import csv
import io
import math

import pytest
from rich.console import Console

from lightning_lcs.reporting.log_keys import alpha_key, log_key, log_values
from lightning_lcs.reporting.plots import curve_figure, plot_curves
from lightning_lcs.reporting.terminal import print_curves, scaled
from lightning_lcs.subspace.curves.curve import CurvePoint, metric_names
from lightning_lcs.subspace.curves.curve_file import write_csv


def point(alpha: float, latency: float = 1.5, **metrics: float) -> CurvePoint:
    return CurvePoint(
        alpha=alpha,
        width=0.25 + 0.75 * alpha,
        sparsity=0.0,
        bit_width=32,
        params=int(1000 * (1 + alpha)),
        macs=int(1e6 * (1 + alpha)),
        size_bytes=4000,
        latency_ms=latency,
        metrics=metrics,
    )


CURVE = [
    point(0.0, val_acc=0.5, val_loss=2.0),
    point(0.5, math.nan, val_acc=0.7),
    point(1.0, val_acc=0.9, val_loss=1.0),
]


@pytest.mark.parametrize(
    ("alpha", "key"), [(0.0, "alpha_000"), (1 / 6, "alpha_017"), (0.5, "alpha_050"), (1.0, "alpha_100")]
)
def test_level_keys_are_hundredths(alpha, key):
    assert alpha_key(alpha) == key


def test_log_keys_hold_only_plain_characters():
    assert log_key("Val Acc/dataloader_idx_0", "mean") == "lcs/val_acc/dataloader_idx_0/mean"


def test_log_values_hold_each_level_and_the_mean_over_the_levels_measured():
    values = log_values(CURVE)
    assert values["lcs/val_acc/alpha_050"] == 0.7
    assert values["lcs/val_acc/mean"] == pytest.approx((0.5 + 0.7 + 0.9) / 3)
    assert values["lcs/val_loss/mean"] == 1.5
    assert "lcs/val_loss/alpha_050" not in values
    assert "lcs/latency_ms/alpha_050" not in values, "a latency that was not measured is not logged as a number"


def test_metric_names_keep_the_order_of_logging():
    assert metric_names(CURVE) == ["val_acc", "val_loss"]


def test_csv_holds_every_value_and_leaves_no_scratch_file(tmp_path):
    path = write_csv({"a": CURVE, "b": CURVE[:1]}, tmp_path / "deep" / "curve.csv")
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert [row["curve"] for row in rows] == ["a", "a", "a", "b"]
    assert float(rows[2]["val_acc"]) == 0.9
    assert int(rows[2]["params"]) == CURVE[2].params
    assert rows[1]["val_loss"] == ""
    assert [p.name for p in path.parent.iterdir()] == ["curve.csv"]


def test_a_failed_write_leaves_the_old_file_whole(tmp_path):
    path = write_csv({"": CURVE}, tmp_path / "curve.csv")
    before = path.read_text()
    with pytest.raises(AttributeError):
        write_csv({"": [object()]}, path)
    assert path.read_text() == before
    assert [p.name for p in tmp_path.iterdir()] == ["curve.csv"]


def test_table_shows_the_metrics_of_every_curve():
    console = Console(file=io.StringIO(), width=200)
    print_curves({"ours": CURVE, "theirs": [point(p.alpha, val_acc=0.1234) for p in CURVE]}, console)
    text = console.file.getvalue()
    assert "0.9000" in text
    assert text.count("0.1234") == 3
    assert "1.50 M" in text


def test_what_does_not_fit_the_terminal_goes_into_a_table_below():
    console = Console(file=io.StringIO(), width=60)
    curves = {"ours": CURVE, "theirs": [point(p.alpha, val_acc=0.1234, val_loss=0.5678) for p in CURVE]}
    print_curves(curves, console)
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 60
    for value, times in (("0.9000", 1), ("2.0000", 1), ("0.1234", 3), ("0.5678", 3), ("1.50 M", 1), ("1.50 ms", 2)):
        assert sum(line.count(value) for line in lines) == times, value
    rows = [line for line in lines if line.startswith("│ 0.500 ")]
    assert len(rows) == 2
    assert "0.7000" in rows[1]


@pytest.mark.parametrize(
    ("number", "text"), [(12, "12"), (1234, "1.23 k"), (5.5e6, "5.50 M"), (1.4e5, "140 k"), (2e9, "2.00 G")]
)
def test_counts_get_units(number, text):
    assert scaled(number) == text


def test_figure_draws_the_values_against_width_and_macs():
    figure = curve_figure({"ours": CURVE}, "val_acc")
    width, macs = (axes.lines[0] for axes in figure.axes)
    assert list(width.get_xdata()) == [0.25, 0.625, 1.0]
    assert list(macs.get_xdata()) == [1.0, 1.5, 2.0]
    assert list(width.get_ydata()) == [0.5, 0.7, 0.9]


def test_plot_writes_a_png_and_refuses_an_unknown_metric(tmp_path):
    assert plot_curves({"ours": CURVE}, "val_acc", tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="metric='nope'"):
        plot_curves({"ours": CURVE}, "nope", tmp_path / "b.png")
    assert not (tmp_path / "b.png").exists()
