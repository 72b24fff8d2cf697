"""The examples run as a newcomer runs them."""

import csv
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_demo_writes_its_table_picture_and_checkpoint(tmp_path):
    command = [sys.executable, "examples/demo.py", "--epochs", "1", "--folder", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    rows = list(csv.DictReader((tmp_path / "curve.csv").read_text().splitlines()))
    assert [row["curve"] for row in rows] == ["subspace"] * 7 + ["plain, cut"] * 7
    assert all(0.0 <= float(row["val_acc"]) <= 1.0 and float(row["latency_ms"]) > 0.0 for row in rows)
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "lcs.ckpt").stat().st_size > 1e6
    assert "What to do next" in done.stdout
    assert "latency" in done.stdout
