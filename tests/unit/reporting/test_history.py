"""All curves of a run as a file."""

import dataclasses

import pytest

from lightning_lcs.reporting.comparison import mean_curve
from lightning_lcs.reporting.history import Evaluation, followed, read_history, write_history
from lightning_lcs.subspace.curves.curve import metric_names
from lightning_lcs.subspace.curves.curve_file import read_csv, read_curves, rows, write_csv
from tests.unit.reporting.test_curve import CURVE, point

SHORT = [point(a, val_acc=0.5 + a / 4) for a in (0.0, 1.0)]


def evaluation(step, stage="fit", curve=SHORT):
    return Evaluation(curve=curve, stage=stage, epoch=step // 10, step=step)


def test_what_is_written_is_read_again(tmp_path):
    given = [evaluation(10), evaluation(20), evaluation(20, "test")]
    path = write_history(given, tmp_path / "curves.csv")
    assert read_history(path) == given


def test_one_evaluation_too(tmp_path):
    assert read_history(write_history([evaluation(7)], tmp_path / "curves.csv")) == [evaluation(7)]


def test_metrics_that_a_level_lacks_stay_away(tmp_path):
    found = read_history(write_history([evaluation(7, curve=CURVE)], tmp_path / "curves.csv"))
    assert [dict(p.metrics) for p in found[0].curve] == [dict(p.metrics) for p in CURVE]


def test_a_run_that_goes_on_replaces_what_it_repeats():
    later = evaluation(20, curve=[dataclasses.replace(p, params=1) for p in SHORT])
    kept = followed([evaluation(10), evaluation(20), evaluation(30), evaluation(30, "test")], later)
    assert kept == [evaluation(10), evaluation(30, "test"), later]


def test_a_file_of_curves_without_times_is_refused(tmp_path):
    with pytest.raises(ValueError, match="does not say when"):
        read_history(write_csv({"": SHORT}, tmp_path / "curve.csv"))


def test_several_curves_of_one_file(tmp_path):
    path = write_csv({"a": SHORT, "b": CURVE[:1]}, tmp_path / "curve.csv")
    assert read_curves(path) == {"a": SHORT, "b": CURVE[:1]}
    with pytest.raises(ValueError, match="several curves"):
        read_csv(path)
    assert read_curves(write_csv({"": SHORT}, path)) == {"": SHORT}


def test_a_file_without_curves_is_refused(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("step,train_loss\n1,2.0\n")
    with pytest.raises(ValueError, match="holds no curve"):
        read_curves(path)


def test_the_weights_of_a_curve_stay_in_its_files(tmp_path):
    curve = [dataclasses.replace(p, weights=f"{n:016d}") for n, p in enumerate(SHORT)]  # fingerprints of digits only
    assert read_csv(write_csv({"": curve}, tmp_path / "curve.csv")) == curve
    assert read_curves(write_csv({"a": curve, "b": SHORT}, tmp_path / "both.csv")) == {"a": curve, "b": SHORT}
    assert read_history(write_history([evaluation(7, curve=curve)], tmp_path / "curves.csv"))[0].curve == curve
    assert "weights" not in write_csv({"": CURVE}, tmp_path / "curve.csv").read_text()
    assert "weights" not in rows({"": curve})[0]
    assert metric_names(read_csv(write_csv({"": curve}, tmp_path / "curve.csv"))) == ["val_acc"]
    assert [p.weights for p in mean_curve([curve, curve])] == ["", ""]


def test_a_metric_may_be_called_weights(tmp_path):
    named = [dataclasses.replace(p, metrics={"weights": 0.5}, weights="0" * 16) for p in SHORT]
    for curve in (named, [dataclasses.replace(p, weights="") for p in named]):
        found = read_csv(write_csv({"": curve}, tmp_path / "curve.csv"))
        assert [dict(p.metrics) for p in found] == [{"weights": 0.5}] * 2
