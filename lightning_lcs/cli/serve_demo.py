"""``lightning-lcs serve-demo``: a controller keeps a network within a latency target under changing CPU load."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from lightning_lcs.cli import parsing
from lightning_lcs.cli.serving import Burners, images_for, schedule, serve, shown
from lightning_lcs.cli.serving_report import by_phase, plot_served, write_served
from lightning_lcs.control.controller import RuntimeController, measure_profile
from lightning_lcs.control.latency_target import LatencyTarget
from lightning_lcs.control.sensors import usable_cpus
from lightning_lcs.model import SubspaceModel
from lightning_lcs.subspace.modes import Structured

# The default target as a multiple of the latency of the full network without load.
_ROOM = 1.3


def serve_demo(args: Sequence[str]) -> None:
    """Run the command; the file may be the first argument, without ``--file``.

    Args:
        args: The command's name, and what follows it.
    """
    rest = list(args[1:])
    if rest and not rest[0].startswith("-"):
        rest = ["--file", *rest]
    parsing.call(run, [args[0], *rest])


def run(
    file: Path | None = None,
    seconds: float = 60.0,
    target_ms: float | None = None,
    output: Path = Path("runs/serve-demo"),
    batch_size: int = 16,
    threads: int = 1,
    epochs: int = 3,
) -> None:
    """Serve real images under changing CPU load; a controller changes alpha to keep the latency within a target.

    Writes serving.csv, serving.png and recording.jsonl. Without a FILE, a small subspace is first trained on
    scikit-learn's digits, and saved as model.lcs beside its curve.csv. With a FILE, images of the shape of its input
    are served. Their labels mean nothing to the network, so that the agreement with the full network is reported
    instead of the accuracy.

    Args:
        file: A file from SubspaceModel.save. "--file" may be left out.
        seconds: The time of serving: without load, with one load process per CPU, without, with two per CPU, without.
        target_ms: The latency target in ms. The default is 1.3 times the full network's latency.
        output: The folder for the written files.
        batch_size: The number of images per forward.
        threads: The threads of torch. More than one per free CPU is slower under load.
        epochs: The number of epochs of the training without a FILE.
    """
    for name, value in (("seconds", seconds), ("batch_size", batch_size), ("threads", threads), ("epochs", epochs)):
        if value <= 0:
            raise ValueError(f"{name}={value!r} should be above 0")
    if target_ms is not None and not target_ms > 0:
        raise ValueError(f"target_ms={target_ms!r} should be above 0")
    if file is not None and not file.exists():
        raise FileNotFoundError(f"{file} does not exist: give a file that SubspaceModel.save wrote")
    console = Console()
    output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(threads)
    path = _trained(output, epochs, console) if file is None else file
    net = SubspaceModel.load(path)
    images = images_for(net.parts[0].network.example_inputs()[0], batch_size)
    if file is not None:
        images = images._replace(labels=None)
    right = "agreement" if images.labels is None else "accuracy"
    with torch.inference_mode():
        profile = measure_profile(net, images.batches[0])
        full = net.materialize(1.0)
    highest = profile[max(profile)]
    target = _ROOM * highest if target_ms is None else target_ms
    console.print(
        f"{path}: a batch of {batch_size} takes {profile[min(profile)]:.1f} ms at the lowest level and "
        f"{highest:.1f} ms at full width. Target: {target:.1f} ms{'' if target_ms else f', {_ROOM} times the latter'}."
    )
    phases = schedule(seconds, usable_cpus())
    policy = LatencyTarget(latency_ms=target, profile=profile)
    controller = RuntimeController(net, [policy], levels=sorted(profile), recording=output / "recording.jsonl")
    with controller, Burners() as burners, shown(console, target, seconds, right) as show:
        served = serve(
            controller,
            full,
            images,
            phases,
            pause_s=1e-3 * target,
            probe_s=max(0.5, seconds / 100.0),
            clock=time.monotonic,
            sleep=time.sleep,
            load=burners.set,
            show=show,
        )
    window = sum(len(batch) for batch in images.batches)
    written = [
        write_served(served, target, window, output / "serving.csv"),
        plot_served(
            served, phases, target, output / "serving.png", window=window, right=right, title=f"Serving {images.what}"
        ),
        output / "recording.jsonl",
    ]
    console.print(_table(by_phase(served, phases, target), right))
    console.print(f"Written: {', '.join(map(str, written))}")


def _trained(folder: Path, epochs: int, console: Console) -> Path:
    """Train a small subspace on the digits, save it, and return the path of the file."""
    from lightning_lcs.callbacks.lcs import LCSCallback
    from lightning_lcs.cli.digits import train_on_digits
    from lightning_lcs.training.options import Recalibration

    console.print("Training resnet10t on scikit-learn's digits as a compressible subspace ...")
    mode = Structured(min_width=0.125)
    callback = LCSCallback(mode=mode, alphas=3, recalibration=Recalibration(images=1024, levels=7))
    path = folder / "model.lcs"
    train_on_digits(callback, epochs, folder, console.is_terminal).save(path)
    return path


def _table(rows: Sequence[dict[str, float]], right: str) -> Table:
    table = Table(title="Batches within the target, and accuracy by phase")
    for heading in ("seconds", "load processes", "controlled", "full network", "mean alpha", right, f"{right}, full"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            f"{row['begin_s']:.0f} to {row['end_s']:.0f}",
            f"{row['processes']:.0f}",
            *(f"{row[name]:.0%}" for name in ("in_target", "full_in_target")),
            f"{row['alpha']:.2f}",
            *(f"{row[name]:.1%}" for name in ("accuracy", "full_accuracy")),
        )
    return table
