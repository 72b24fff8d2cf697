"""The demo's table, summary and picture."""

import csv
import math

import pytest

from lightning_lcs.cli.serving_report import Phase, ServedBatch, by_phase, plot_served, running_accuracy, write_served

PHASES = [Phase(begin_s=0.0, end_s=5.0, processes=0), Phase(begin_s=5.0, end_s=10.0, processes=2)]


def batch(time_s, right=3, latency_ms=10.0, full_latency_ms=None, alpha=0.5):
    return ServedBatch(
        time_s=time_s,
        processes=0,
        alpha=alpha,
        latency_ms=latency_ms,
        full_latency_ms=full_latency_ms,
        images=4,
        right=right,
        full_right=4,
    )


def test_running_accuracy_is_that_of_the_last_images():
    served = [batch(index, right) for index, right in enumerate((4, 0, 4, 2, 2))]
    assert running_accuracy(served, 8) == [1.0, 0.5, 0.5, 0.75, 0.5]
    assert running_accuracy(served, 4) == [1.0, 0.0, 1.0, 0.5, 0.5]
    assert running_accuracy(served, 1000) == pytest.approx([1.0, 0.5, 2 / 3, 10 / 16, 12 / 20])
    assert running_accuracy(served, 8, full=True) == [1.0] * 5


def test_a_phase_is_summed_up_and_an_empty_one_is_unknown():
    served = [batch(1.0, latency_ms=10.0, full_latency_ms=30.0), batch(2.0, latency_ms=21.0, alpha=1.0)]
    first, second = by_phase(served, PHASES, 20.0)
    assert (first["in_target"], first["full_in_target"], first["alpha"]) == (0.5, 0.0, 0.75)
    assert (first["accuracy"], first["full_accuracy"]) == (0.75, 1.0)
    assert math.isnan(second["in_target"])


def test_table_and_picture(tmp_path):
    served = [batch(0.2 * index, latency_ms=10.0 + index % 7, full_latency_ms=20.0) for index in range(50)]
    path = write_served(served, 15.0, 16, tmp_path / "new" / "serving.csv")
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 50
    assert {row["target_ms"] for row in rows} == {"15.0"}
    assert float(rows[-1]["running_accuracy"]) == 0.75
    assert float(rows[-1]["full_running_accuracy"]) == 1.0
    drawn = plot_served(served, PHASES, 15.0, tmp_path / "serving.png", window=16)
    assert drawn.read_bytes().startswith(b"\x89PNG")
    plot_served([batch(1.0)], PHASES, 15.0, tmp_path / "one.png", window=16)  # and nothing measured of the full network
    with pytest.raises(ValueError, match="served is empty"):
        plot_served([], PHASES, 15.0, tmp_path / "none.png", window=16)
    assert not (tmp_path / "none.png").exists()
