"""Lean imports and the direction of imports, each with a check that it can fail."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import lightning_lcs
import lightning_lcs.callbacks

ROOT = Path(lightning_lcs.__file__).parents[1]
HEAVY = ("lightning", "pytorch_lightning", "timm", "wandb", "torchmetrics", "matplotlib")


def test_the_core_imports_nothing_heavy():
    code = (
        "import sys, lightning_lcs, lightning_lcs.model, lightning_lcs.subspace.calibration\n"
        "import lightning_lcs.callbacks, lightning_lcs.utils.timing\n"
        "from lightning_lcs import Line, Loss, Recalibration, Sampling\n"
        f"assert not set({HEAVY!r}) & set(sys.modules), set({HEAVY!r}) & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_check_sees_a_heavy_import():
    code = f"import sys, lightning_lcs.wrapper\nassert not set({HEAVY!r}) & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], stderr=subprocess.DEVNULL).returncode != 0


def test_every_public_name_is_there_and_an_unknown_one_is_named():
    for name in lightning_lcs.__all__:
        assert getattr(lightning_lcs, name).__name__ == name
    with pytest.raises(AttributeError, match=r"nothing.*SubspaceModel"):
        _ = lightning_lcs.nothing


def test_a_folder_hands_on_its_public_names():
    assert lightning_lcs.callbacks.LCSCallback is lightning_lcs.LCSCallback
    assert set(lightning_lcs.callbacks.__all__) <= set(dir(lightning_lcs.callbacks))
    with pytest.raises(AttributeError, match=r"'lightning_lcs.callbacks' has no attribute 'Monitor'.*TradeoffMonitor"):
        _ = lightning_lcs.callbacks.Monitor


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("graph/channels/dims.py", "import lightning_lcs.model"),
        ("model.py", "import timm"),
        ("callbacks/lcs.py", "import wandb"),
    ],
)
def test_a_broken_contract_is_reported(tmp_path, file, line):
    shutil.copytree(ROOT / "lightning_lcs", tmp_path / "lightning_lcs", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    environment = {"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"}
    kept = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert kept.returncode == 0, kept.stdout
    broken = tmp_path / "lightning_lcs" / file
    broken.write_text(
        broken.read_text().replace(
            "from __future__ import annotations", f"from __future__ import annotations\n{line}", 1
        )
    )
    failed = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert failed.returncode != 0
    assert "BROKEN" in failed.stdout
