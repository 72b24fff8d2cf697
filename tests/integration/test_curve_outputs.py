"""Where the curve goes: loggers, the CSV file, the terminal."""

import csv
import re

import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from lightning_lcs.reporting.plots import plot_curves
from tests.integration.support import Module, lcs, trainer

# TensorBoard keeps float32.
FLOAT32_TOLERANCE = 1e-6
KEYS = {f"lcs/{name}/{suffix}" for name in ("val_acc", "val_loss") for suffix in ("alpha_000", "alpha_050", "mean")}
KEYS |= {"lcs/val_acc/alpha_100", "lcs/val_loss/alpha_100", "lcs/latency_ms/alpha_050"}
COSTS = ("alpha", "width", "sparsity", "bit_width", "params", "macs", "size_bytes", "latency_ms")


def expected(curve):
    values = {}
    for name in ("val_acc", "val_loss"):
        for point in curve:
            values[f"lcs/{name}/alpha_{round(100 * point.alpha):03d}"] = point.metrics[name]
        values[f"lcs/{name}/mean"] = sum(point.metrics[name] for point in curve) / len(curve)
    return values


def test_csv_logger(tmp_path, train, val):
    callback = lcs()
    trainer(tmp_path, callback, logger=CSVLogger(tmp_path, "logs", "v")).fit(Module(), train, val)
    with (tmp_path / "logs" / "v" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    logged = {key: value for row in rows for key, value in row.items() if key.startswith("lcs/") and value}
    assert logged.keys() >= KEYS
    for key, value in expected(callback.curve).items():
        assert float(logged[key]) == value, key
    assert all(re.fullmatch(r"[a-z0-9_/]+", key) for key in logged)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_logger(tmp_path, train, val):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    callback = lcs(every_n_epochs=1)
    logger = TensorBoardLogger(tmp_path, "logs", "v")
    trainer(tmp_path, callback, logger=logger, max_epochs=2).fit(Module(), train, val)
    events = EventAccumulator(str(tmp_path / "logs" / "v"))
    events.Reload()
    assert set(events.Tags()["scalars"]) >= KEYS
    for key, value in expected(callback.curve).items():
        steps = events.Scalars(key)
        assert [event.step for event in steps] == [3, 6]
        assert abs(steps[-1].value - value) <= FLOAT32_TOLERANCE
    pictures = {name: [event.step for event in events.Images(name)] for name in events.Tags()["images"]}
    assert pictures == {"lcs/val_acc": [3, 6], "lcs/val_loss": [3, 6]}


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("logged", [True, False])
def test_curve_csv(tmp_path, train, val, logged):
    callback = lcs(alphas=[0.0, 0.3, 1.0])
    trainer(tmp_path, callback, logger=CSVLogger(tmp_path, "a", "b") if logged else False).fit(Module(), train, val)
    rows = read((tmp_path / "a" / "b" if logged else tmp_path) / "curve.csv")
    assert len(rows) == len(callback.curve) == 3
    for row, point in zip(rows, callback.curve, strict=True):
        assert set(row) == {*COSTS, *point.metrics, "weights"}
        assert row["weights"] == point.weights
        for name in COSTS:
            assert float(row[name]) == getattr(point, name)
        for name, value in point.metrics.items():
            assert float(row[name]) == value


def test_the_curve_can_be_drawn(tmp_path, train, val):
    callback = lcs()
    trainer(tmp_path, callback).fit(Module(), train, val)
    assert plot_curves({"subspace": callback.curve}, "val_acc", tmp_path / "curve.png").stat().st_size > 1000


def test_costs_grow_with_alpha(tmp_path, train, val):
    callback = lcs(alphas=5)
    trainer(tmp_path, callback).fit(Module(), train, val)
    for name in ("width", "params", "macs", "size_bytes"):
        values = [getattr(point, name) for point in callback.curve]
        assert values == sorted(set(values)), name
    full = callback.curve[-1]
    net = Module().net
    assert full.params == sum(p.numel() for p in net.parameters())
    # What evaluation reads: the batch norms' counters it does not.
    tensors = [*net.parameters(), *(b for b in net.buffers() if b.is_floating_point())]
    assert full.size_bytes == sum(t.numel() * t.element_size() for t in tensors)
    assert full.macs == 64 * 9 * 8 + 16 * 9 * 8 * 8 + 80
    assert (full.sparsity, full.bit_width) == (0.0, 32)


def test_the_terminal_shows_the_curve_with_the_progress_bar(tmp_path, train, val, capsys):
    trainer(tmp_path, lcs()).fit(Module(), train, val)
    assert "Accuracy-efficiency curve" not in capsys.readouterr().out
    trainer(tmp_path, lcs(), enable_progress_bar=True).fit(Module(), train, val)
    shown = capsys.readouterr().out
    assert "Accuracy-efficiency curve" in shown
    assert "0.625" in shown
