"""Two processes on the CPU against one, on the same global batches (see ranks.py)."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lightning_lcs import SubspaceModel
from tests.integration.ranks import BATCHES, GLOBAL_BATCH, Headed
from tests.integration.support import digits

# The sum of two halves of a batch against the whole, in float32, over eight steps: 3e-8 measured.
TOLERANCE = 1e-5
MODES = ("unstructured", "quantized")


def run(folder: Path, ranks: int, options: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """What every rank ended with, for each of several runs."""
    folder.mkdir()
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    command = [sys.executable, *launcher, "-m", "tests.integration.ranks", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    made = subprocess.run(
        [*command, json.dumps([{"ranks": ranks, **each} for each in options])],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=400,  # ranks that wait for each other would wait for ever
    )
    assert made.returncode == 0, made.stderr[-3000:]
    return [
        [torch.load(folder / str(number) / f"rank_{rank}.pt", weights_only=True) for rank in range(ranks)]
        for number in range(len(options))
    ]


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


# What one process and two run alike: for two, options of DDPStrategy.
ALIKE = [
    ({"subspace": "point"}, {}),
    ({"subspace": "point", "own_backward": True}, {}),
    ({"subspace": "point", "manual": True}, {}),
    ({"subspace": "line", "line": {"parameters": "all"}, "manual": True}, {"find_unused_parameters": True}),
    ({"subspace": "line", "trainer": {"accumulate_grad_batches": 2}}, {"gradient_as_bucket_view": True}),
    (
        {"subspace": "line", "line": {"parameters": "all", "diversity_weight": 0.0}},
        {"find_unused_parameters": True},
    ),
]
BY_MODE = [
    {"mode": mode, "subspace": "line", "sampling": {"warmup": 0}, "line": {"parameters": "all"}} for mode in MODES
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ddp")


@pytest.fixture(scope="module")
def alone(folder):
    """One process for all runs: it takes longer to start than a run takes."""
    return run(folder / "one", 1, [*[options for options, _ in ALIKE], BY_MODE[0]])


@pytest.fixture(scope="module")
def together(folder):
    options = [{**options, "ddp": ddp} for options, ddp in ALIKE]
    return run(folder / "two", 2, [*options, *BY_MODE, {"subspace": "line", "batch_norm": True, "files": True}])


def test_two_processes_train_as_one(alone, together):
    for (options, _), (one,), (first, second) in zip(ALIKE, alone[: len(ALIKE)], together[: len(ALIKE)], strict=True):
        # With manual optimization each level has a backward of its own, as the step says.
        check_one_and_two(one, first, second, backwards=3 if options.get("manual") else 1)


def check_one_and_two(one: dict[str, Any], first: dict[str, Any], second: dict[str, Any], backwards: int = 1) -> None:
    assert largest_difference(one["weights"], first["weights"]) <= TOLERANCE
    check_ranks_agree(first, second)
    # The curve is over the data of both ranks: the mean over all images.
    for alone, shared in zip(one["curve"], first["curve"], strict=True):
        assert alone == pytest.approx(shared, abs=TOLERANCE)
    # Once per optimizer step, not once per level and not once per micro-batch.
    assert first["synchronised"] == backwards * first["steps"] == backwards * one["steps"]


def test_other_modes_and_batch_norm(folder, alone, together):
    """One level per step, back-propagated by Lightning itself; and statistics that are reduced over ranks."""
    *by_mode, with_batch_norm = together[len(ALIKE) :]
    for first, second in by_mode:
        check_ranks_agree(first, second)
        assert first["synchronised"] == first["steps"]
        assert first["ranges"].keys() == second["ranges"].keys()
        for level, ranges in first["ranges"].items():
            assert largest_difference(ranges, second["ranges"][level]) == 0.0
    assert by_mode[1][0]["ranges"]
    (one,) = alone[-1]
    assert largest_difference(one["weights"], by_mode[0][0]["weights"]) <= TOLERANCE
    first, second = with_batch_norm
    check_ranks_agree(first, second)
    assert len(first["statistics"]) == 2
    path = folder / "two" / str(len(together) - 1) / "first.ckpt"
    module = Headed(nn.BatchNorm2d)
    model = SubspaceModel.from_checkpoint(path, module)
    assert not torch.equal(module.head.weight, first["weights"]["head.weight"]), "of an earlier epoch"
    assert model.statistics.keys() == first["statistics"].keys()
    assert model.runner.statistics_fit()
    # Of all images: those that both ranks collected from.
    images = digits(0, GLOBAL_BATCH * BATCHES).tensors[0]
    collected = model.statistics
    model.recalibrate(images.split(GLOBAL_BATCH // 2), list(collected))
    for level, tensors in collected.items():
        assert largest_difference(tensors, model.statistics[level]) <= TOLERANCE
    model = SubspaceModel.from_checkpoint(
        folder / "two" / str(len(together) - 1) / "last.ckpt", Headed(torch.nn.BatchNorm2d)
    )
    for level, tensors in model.statistics.items():
        assert largest_difference(tensors, first["statistics"][level]) == 0.0
