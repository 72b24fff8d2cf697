"""The examples run as a newcomer runs them."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch

from lightning_lcs.data import DigitsDataModule

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


def test_a_pretrained_network_is_loaded_by_order_wrapped_and_finetuned(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    import finetune_pretrained as example

    torch.manual_seed(0)
    published = timm.create_model("test_efficientnet")
    weights = {f"_{name}": value for name, value in published.state_dict().items()}
    net = example.load_in_order(timm.create_model("test_efficientnet"), weights).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(net(images), published.eval()(images))
    with pytest.raises(ValueError, match="not of this network"):
        example.load_in_order(timm.create_model("test_byobnet"), weights)
    assert example.change_at_full_width(net, "given", images) < 1e-5
    # Sorted channels are summed in another order.
    assert example.change_at_full_width(net, "importance", images) < 1e-4
    data = DigitsDataModule(image_size=16, batch_size=256)
    accuracy = example.finetune(net, "importance", data, epochs=1, seed=0)
    assert list(accuracy) == [1.0, 0.5, 0.25]
    assert all(0.0 <= value <= 1.0 for value in accuracy.values())
    assert (tmp_path / "runs/pretrained/importance_0/curve.csv").exists()
