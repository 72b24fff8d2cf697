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
        "import sys, lightning_lcs, lightning_lcs.model, lightning_lcs.subspace.running.calibration\n"
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


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    """A copy of the package whose contracts hold, and count type-checking imports."""
    folder = tmp_path_factory.mktemp("copied")
    shutil.copytree(ROOT / "lightning_lcs", folder / "lightning_lcs", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    kept = check_contracts(folder)
    assert kept.returncode == 0, kept.stdout
    settings = (folder / "pyproject.toml").read_text()
    counted = settings.replace("exclude_type_checking_imports = true", "exclude_type_checking_imports = false")
    (folder / "pyproject.toml").write_text(counted)
    return folder


def check_contracts(folder):
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    environment = {"PYTHONPATH": str(folder), "PATH": "/usr/bin:/bin"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


ORDINARY = "import {}"
TYPE_CHECKING = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import {}"


@pytest.mark.parametrize("line", [ORDINARY, TYPE_CHECKING], ids=["ordinary", "type-checking"])
@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("graph.channels.dims", "lightning_lcs.model"),
        ("subspace.weights.norms", "lightning_lcs.io.checkpoint"),
        ("subspace.part", "lightning_lcs.subspace.mode"),
        ("training.data.loaders", "lightning_lcs.training.upkeep"),
        ("model", "timm"),
        ("callbacks.lcs", "wandb"),
    ],
)
def test_a_broken_contract_is_reported(copied, importer, imported, line):
    file = copied / "lightning_lcs" / f"{importer.replace('.', '/')}.py"
    before = file.read_text()
    future = "from __future__ import annotations"
    assert future in before
    try:
        file.write_text(before.replace(future, f"{future}\n{line.format(imported)}", 1))
        failed = check_contracts(copied)
    finally:
        file.write_text(before)
    assert failed.returncode != 0
    assert "BROKEN" in failed.stdout
    assert f"lightning_lcs.{importer} -> {imported} (l." in failed.stdout.replace("\n", " ")


def test_a_module_without_a_layer_is_reported(copied):
    (copied / "lightning_lcs" / "stray.py").write_text("")
    try:
        failed = check_contracts(copied)
    finally:
        (copied / "lightning_lcs" / "stray.py").unlink()
    assert failed.returncode != 0
    assert "stray" in failed.stdout
