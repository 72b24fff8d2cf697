"""The examples run as a newcomer runs them."""

import csv
import functools
import re
import runpy
import subprocess
import sys
from pathlib import Path

import lightning
import pytest
import timm
import torch
import wandb

import lightning_lcs
from lightning_lcs.data import DigitsDataModule
from tests.integration.shortened import QuickCallback, ShortTrainer

ROOT = Path(__file__).parents[2]


@pytest.fixture
def example(tmp_path, monkeypatch):
    """Runs an example's ``main`` with a short trainer and a quick callback, on its own real images."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lightning, "Trainer", ShortTrainer)
    monkeypatch.setattr(lightning_lcs, "LCSCallback", QuickCallback, raising=False)

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *arguments, "--epochs", "1", "--folder", str(tmp_path / "out")])
        runpy.run_path(str(ROOT / "examples" / f"{name}.py"), run_name="__main__")
        return tmp_path / "out"

    return run


@pytest.mark.parametrize("mode", ["structured", "unstructured", "quantized"])
def test_adopt(example, capsys, mode):
    folder = example("adopt", "--mode", mode)
    assert (folder / "last.ckpt").exists()
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("alpha")]
    sizes = [int(line.split()[-2].replace(",", "")) for line in said]
    assert len(sizes) == 3
    assert sizes == sorted(sizes, reverse=True)


def test_segmentation(example):
    rows = list(csv.DictReader((example("segmentation") / "curve.csv").read_text().splitlines()))
    assert [round(float(row["width"]), 3) for row in rows] == [0.25, 0.625, 1.0]
    assert all(0.0 <= float(row["val_iou"]) <= 1.0 for row in rows)


def test_quantized_for_an_npu(example, capsys):
    assert (example("quantized_for_npu", "--agreement", "0") / "int8.onnx").exists()
    said = capsys.readouterr().out
    assert re.search(r"Within 1\.0% of the best: [3-8] bits", said)
    assert re.search(r"[01]\.\d{4} of the validation images right in onnxruntime", said)


def test_sparse_for_storage(example, capsys):
    folder = example("sparse_for_storage")
    sizes = [(folder / f"{alpha}.safetensors").stat().st_size for alpha in (0.0, 0.1, 0.25, 0.5)]
    assert sizes == sorted(sizes)
    assert sizes[0] < 0.4 * sizes[-1]
    # The densest level's weights, thresholds, and the statistics of each level; not every level's weights.
    assert (folder / "levels.safetensors").stat().st_size < 0.7 * sum(sizes)
    assert capsys.readouterr().out.count("val_acc 0.") == 4


def test_wandb(example, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    try:
        assert list(example("wandb_curve").rglob("*.wandb"))
    finally:
        wandb.finish()  # the next test would log to the same run


def test_pytorch_lightning(example, monkeypatch):
    pytest.importorskip("pytorch_lightning", minversion="2.0", reason="pytorch_lightning 2 is not installed")
    import pytorch_lightning as pl

    short = functools.partial(
        pl.Trainer,
        accelerator="cpu",
        limit_train_batches=2,
        limit_val_batches=1,
        enable_progress_bar=False,
        logger=False,
    )
    monkeypatch.setattr(pl, "Trainer", short)
    assert (example("pytorch_lightning_project") / "curve.csv").exists()


def test_every_example_is_short():
    for file in (ROOT / "examples").glob("*.py"):
        assert len(file.read_text().splitlines()) < 100, file.name


def test_a_network_is_deployed_and_controlled(tmp_path):
    tiny = ["--model=test_resnet", "--epochs=1", "--batches=0.1", "--rounds=1", f"--folder={tmp_path}"]
    command = [sys.executable, "examples/deploy_and_control.py", *tiny]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "a replay makes the same decisions: True" in done.stdout
    assert {path.name for path in tmp_path.iterdir()} >= {"curve.csv", "model.lcs", "recording.jsonl"}


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
    with pytest.raises(ValueError, match="do not fit this network"):
        example.load_in_order(timm.create_model("test_byobnet"), weights)
    assert example.change_at_full_width(net, "given", images) < 1e-5
    # Sorted channels are summed in another order.
    assert example.change_at_full_width(net, "importance", images) < 1e-4
    data = DigitsDataModule(image_size=16, batch_size=256)
    accuracy = example.finetune(net, "importance", data, epochs=1, seed=0)
    assert list(accuracy) == [1.0, 0.5, 0.25]
    assert all(0.0 <= value <= 1.0 for value in accuracy.values())
    assert (tmp_path / "runs/pretrained/importance_0/curve.csv").exists()
