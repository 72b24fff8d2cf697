"""``lightning-lcs serve-demo`` from the shell's side, in seconds; no statement about time is made here."""

import csv

import pytest
import torch
from torch import nn

from lightning_lcs import SubspaceModel, cli
from lightning_lcs.deploy.trace import read_trace, replay


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
    cli.run([*command, "--target-ms=5"])
    said = " ".join(capsys.readouterr().out.split())  # lines break where a path is long
    assert "agreement" in said
    assert "Target: 5.0 ms" in said
    with (output / "serving.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows
    assert {row["full_right"] for row in rows} == {"8"}
    assert (output / "serving.png").read_bytes().startswith(b"\x89PNG")
    recorded = read_trace(output / "trace.jsonl").decisions
    assert replay(output / "trace.jsonl") == list(recorded)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_without_a_file_a_subspace_is_trained_first(tmp_path, capsys):
    cli.run(["serve-demo", "--seconds=1", f"--output={tmp_path}", "--epochs=1"])
    assert "accuracy" in capsys.readouterr().out
    written = {"curve.csv", "model.lcs", "serving.csv", "serving.png", "trace.jsonl"}
    assert {path.name for path in tmp_path.iterdir()} >= written


def test_what_is_wrong_is_said_in_a_sentence(tmp_path, capsys):
    for arguments, match in (
        ([str(tmp_path / "none.lcs")], "does not exist"),
        (["--seconds=0"], "seconds=0"),
        (["--target_ms=-1"], "target_ms=-1"),
    ):
        with pytest.raises(SystemExit):
            cli.main(["serve-demo", *arguments, f"--output={tmp_path / 'out'}"])
        assert match in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
