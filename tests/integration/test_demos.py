"""``lightning-lcs demo`` and ``serve-demo`` from the shell's side, in seconds; no statement about time is made here."""

import csv
import functools

import pytest
import torch
from torch import nn

from lightning_lcs import LCSCallback, SubspaceModel
from lightning_lcs.cli import demo, digits, main
from lightning_lcs.control.recording import read_recording, replay
from lightning_lcs.data import DigitsDataModule


def small(channels):
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_a_file_is_served(tmp_path, capsys, channels):
    SubspaceModel(small(channels), torch.zeros(2, channels, 16, 16), subspace="point").eval().save(
        tmp_path / "model.lcs"
    )
    output = tmp_path / "out"
    command = ["serve-demo", str(tmp_path / "model.lcs"), "--seconds=1", f"--output={output}", "--batch_size=8"]
    main.run([*command, "--target-ms=5"])
    said = " ".join(capsys.readouterr().out.split())  # lines break where a path is long
    assert "agreement" in said
    assert "Target: 5.0 ms" in said
    with (output / "serving.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows
    assert {row["full_right"] for row in rows} == {"8"}
    assert (output / "serving.png").read_bytes().startswith(b"\x89PNG")
    recorded = read_recording(output / "recording.jsonl").decisions
    assert replay(output / "recording.jsonl") == list(recorded)


@pytest.fixture
def small_digits(monkeypatch):
    monkeypatch.setattr(digits, "DigitsDataModule", functools.partial(DigitsDataModule, image_size=8, batch_size=256))


class FewStatistics(LCSCallback):
    """Seven levels as ever, and statistics of two from 64 images."""

    def __init__(self, *args, **options):
        few = {"recalibration": {"levels": [0.0, 0.5], "images": 64}}
        super().__init__(*args, **{**options, **few})


def test_the_demo_writes_its_table_picture_and_file(tmp_path, capsys, monkeypatch, small_digits):
    monkeypatch.setattr(demo, "LCSCallback", FewStatistics)
    main.run(["demo", "--epochs=1", f"--output={tmp_path}"])
    rows = list(csv.DictReader((tmp_path / "curve.csv").read_text().splitlines()))
    assert [row["curve"] for row in rows] == ["subspace"] * 7 + ["plain, cut"] * 7
    assert all(0.0 <= float(row["val_acc"]) <= 1.0 and float(row["latency_ms"]) > 0.0 for row in rows)
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    levels = SubspaceModel.load(tmp_path / "model.lcs").levels
    assert [(level.name, level.width) for level in levels] == [("small", 0.25), ("medium", 0.625), ("full", 1.0)]
    said = capsys.readouterr().out
    assert "Accuracy-efficiency curve" in said
    assert f"lightning-lcs report {tmp_path / 'subspace'} {tmp_path / 'plain'}" in said
    assert {"curve.csv", "summary.json"} <= {path.name for path in (tmp_path / "plain").iterdir()}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_without_a_file_a_subspace_is_trained_first(tmp_path, capsys, small_digits):
    main.run(["serve-demo", "--seconds=1", f"--output={tmp_path}", "--epochs=1"])
    assert "accuracy" in capsys.readouterr().out
    written = {"curve.csv", "model.lcs", "serving.csv", "serving.png", "recording.jsonl"}
    assert {path.name for path in tmp_path.iterdir()} >= written


def test_what_is_wrong_is_said_in_a_sentence(tmp_path, capsys):
    for arguments, match in (
        (["serve-demo", str(tmp_path / "none.lcs")], "does not exist"),
        (["serve-demo", "--seconds=0"], "seconds=0"),
        (["serve-demo", "--target_ms=-1"], "target_ms=-1"),
        (["demo", "--epochs=0"], "epochs=0"),
    ):
        with pytest.raises(SystemExit):
            main.main([*arguments, f"--output={tmp_path / 'out'}"])
        assert match in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
