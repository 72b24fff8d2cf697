"""Two processes on the CPU against one, on the same global batches (see ranks.py)."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_lcs import SubspaceModel
from tests.integration.ranks import Headed

# The sum of two halves of a batch against the whole, in float32, over eight steps: 3e-8 measured.
TOLERANCE = 1e-5


def run(folder: Path, ranks: int, **options: Any) -> list[dict[str, Any]]:
    """What every rank ended with."""
    folder.mkdir()
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    command = [sys.executable, *launcher, "-m", "tests.integration.ranks", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    made = subprocess.run(
        [*command, json.dumps({"ranks": ranks, **options})],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=400,  # ranks that wait for each other would wait for ever
    )
    assert made.returncode == 0, made.stderr[-3000:]
    return [torch.load(folder / f"rank_{rank}.pt", weights_only=True) for rank in range(ranks)]


def largest_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max((a[name].detach().double() - b[name].detach().double()).abs().max().item() for name in a)


def check_ranks_agree(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert largest_difference(a["weights"], b["weights"]) == 0.0
    assert a["statistics"].keys() == b["statistics"].keys()
    for level, tensors in a["statistics"].items():
        assert largest_difference(tensors, b["statistics"][level]) == 0.0
    # What a monitor of a checkpoint or early stopping sees is the same on all ranks, latency included.
    assert a["curve"] == b["curve"]
    assert a["monitored"] == b["monitored"]


@pytest.mark.parametrize(
    ("options", "ddp"),
    [
        ({"subspace": "point"}, {}),
        ({"subspace": "line", "trainer": {"accumulate_grad_batches": 2}}, {"gradient_as_bucket_view": True}),
        ({"subspace": "line", "line_parameters": "all", "diversity_weight": 0.0}, {"find_unused_parameters": True}),
    ],
    ids=["point", "line-accumulating", "line-over-all"],
)
def test_two_processes_train_as_one(tmp_path, options, ddp):
    one = run(tmp_path / "one", 1, **options)[0]
    first, second = run(tmp_path / "two", 2, ddp=ddp, **options)
    assert largest_difference(one["weights"], first["weights"]) <= TOLERANCE
    check_ranks_agree(first, second)
    # The curve is over the data of both ranks: the mean over all images.
    for alone, shared in zip(one["curve"], first["curve"], strict=True):
        assert alone == pytest.approx(shared, abs=TOLERANCE)
    # Once per optimizer step, not once per level and not once per micro-batch.
    assert first["synchronised"] == first["steps"] == one["steps"]


@pytest.mark.parametrize("mode", ["unstructured", "quantized"])
def test_other_modes(tmp_path, mode):
    """One level per step, back-propagated by Lightning itself."""
    first, second = run(tmp_path / "two", 2, mode=mode, subspace="line", warmup=0, line_parameters="all")
    check_ranks_agree(first, second)
    assert first["synchronised"] == first["steps"]
    assert first["ranges"].keys() == second["ranges"].keys()
    for level, ranges in first["ranges"].items():
        assert largest_difference(ranges, second["ranges"][level]) == 0.0
    if mode == "unstructured":
        one = run(tmp_path / "one", 1, mode=mode, subspace="line", warmup=0, line_parameters="all")[0]
        assert largest_difference(one["weights"], first["weights"]) <= TOLERANCE


def test_batch_norm_statistics_are_reduced_over_ranks(tmp_path):
    first, second = run(tmp_path / "two", 2, subspace="line", batch_norm=True)
    check_ranks_agree(first, second)
    assert len(first["statistics"]) == 2
    model = SubspaceModel.from_checkpoint(tmp_path / "two" / "last.ckpt", Headed(torch.nn.BatchNorm2d))
    for level, tensors in model.statistics.items():
        assert largest_difference(tensors, first["statistics"][level]) == 0.0
