"""The parts of ``lightning-lcs serve-demo``: images, CPU load, the serving loop, and its live display."""

from __future__ import annotations

import contextlib
import itertools
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text
from torch import Tensor

from lightning_lcs.cli.serving_report import Phase, ServedBatch
from lightning_lcs.control.controller import RuntimeController

# The process ends by itself when its parent has ended for any reason.
_BURN = "import os\nparent = os.getppid()\nwhile os.getppid() == parent:\n    for _ in range(1000000): pass"
# (Share of the whole time, load processes per CPU from then on).
_SCHEDULE = ((0.0, 0), (0.15, 1), (0.4, 0), (0.55, 2), (0.8, 0), (1.0, 0))
_BARS = " ▁▂▃▄▅▆▇█"


class Images(NamedTuple):
    """Batches of images, their labels (None if the network does not know them), and a description."""

    batches: list[Tensor]
    labels: list[Tensor] | None
    what: str


@dataclass
class Burners:
    """Child processes that each use up a CPU; all of them end with the block."""

    running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def set(self, count: int) -> None:
        """Start or stop processes until ``count`` of them run."""
        while len(self.running) < count:
            self.running.append(subprocess.Popen([sys.executable, "-S", "-c", _BURN]))
        for process in self.running[count:]:
            process.kill()
            process.wait()
        del self.running[count:]

    def __enter__(self) -> Burners:
        return self

    def __exit__(self, *_: object) -> None:
        self.set(0)


def schedule(seconds: float, cpus: int) -> list[Phase]:
    """The phases of the load: none, one load process per CPU, none, two per CPU, none."""
    return [
        Phase(begin_s=seconds * begin, end_s=seconds * end, processes=cpus * times)
        for (begin, times), (end, _) in itertools.pairwise(_SCHEDULE)
    ]


def digits(size: tuple[int, int], count: int) -> Images:
    """Enlarged validation images of scikit-learn's digits, in batches."""
    from lightning_lcs.data import DigitsDataModule

    data = DigitsDataModule(batch_size=count, image_size=size[0])
    data.setup("validate")
    pairs = [(images, labels) for images, labels in data.val_dataloader() if len(images) == count]
    batches = [torch.nn.functional.interpolate(images, size) for images, _ in pairs]
    return Images(batches, [labels for _, labels in pairs], "scikit-learn's digits")


def photos(size: tuple[int, int], count: int, batches: int = 20) -> Images:
    """Crops of scikit-learn's two photographs, normalised as for ImageNet; they have no labels."""
    from lightning_lcs.data.digits import require_sklearn_datasets

    generator = torch.Generator().manual_seed(0)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    whole = [
        ((torch.tensor(p) / 255.0 - mean) / std).permute(2, 0, 1)
        for p in require_sklearn_datasets().load_sample_images().images
    ]
    crops = []
    for index in range(count * batches):
        photo = whole[index % len(whole)]
        side = min(photo.shape[1:])
        edge = int(torch.randint(side // 4, side + 1, (), generator=generator))
        top, left = (int(torch.randint(n - edge + 1, (), generator=generator)) for n in photo.shape[1:])
        crop = photo[None, :, top : top + edge, left : left + edge]
        crops.append(torch.nn.functional.interpolate(crop, size, mode="bilinear", antialias=True))
    return Images(list(torch.split(torch.cat(crops), count)), None, "crops of scikit-learn's photographs")


def images_for(example: Sequence[Any], count: int) -> Images:
    """Images in the shape that a network takes.

    Raises:
        ValueError: The network does not take batches of images with one or three channels.
    """
    shapes = [tuple(value.shape) if isinstance(value, Tensor) else value for value in example]
    if len(shapes) != 1 or len(shapes[0]) != 4 or shapes[0][1] not in (1, 3):
        raise ValueError(
            f"the network takes {shapes}: serve-demo only has images of shape (N, 1, H, W) and (N, 3, H, W)"
        )
    _, channels, height, width = shapes[0]
    return (digits if channels == 1 else photos)((height, width), count)


@torch.inference_mode()
def serve(
    controller: RuntimeController,
    full: Callable[[Tensor], Tensor],
    images: Images,
    phases: Sequence[Phase],
    *,
    pause_s: float,
    probe_s: float,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
    load: Callable[[int], None],
    show: Callable[[list[ServedBatch]], None],
) -> list[ServedBatch]:
    """Serve batch after batch until the last phase ends.

    Args:
        controller: The controller of the network, which decides after every batch.
        full: The full network, whose answers count as right if there are no labels.
        images: The images, which are served in turn, again and again.
        phases: The numbers of load processes over time.
        pause_s: The pause between two batches in seconds.
        probe_s: The time in seconds between two measurements of the full network on the batch just served.
        clock: Returns the time in seconds.
        sleep: Waits for a number of seconds.
        load: Sets the number of load processes.
        show: Is called after every batch with all batches so far.
    """
    answers = [full(batch).argmax(1) for batch in images.batches]
    truth = images.labels or answers
    served: list[ServedBatch] = []
    start, probed, running = clock(), -probe_s, 0
    while (now := clock() - start) < phases[-1].end_s:
        wanted = next(phase.processes for phase in phases if now < phase.end_s)
        if wanted != running:
            load(wanted)
            running = wanted
        index = len(served) % len(images.batches)
        batch, alpha = images.batches[index], controller.alpha
        begin = clock()
        logits = controller(batch)
        latency_ms = 1e3 * (clock() - begin)
        full_ms = None
        if now - probed >= probe_s:
            begin, probed = clock(), now
            full(batch)
            full_ms = 1e3 * (clock() - begin)
        served.append(
            ServedBatch(
                time_s=now,
                processes=running,
                alpha=alpha,
                latency_ms=latency_ms,
                full_latency_ms=full_ms,
                images=len(batch),
                right=int((logits.argmax(1) == truth[index]).sum()),
                full_right=int((answers[index] == truth[index]).sum()),
            )
        )
        controller.step()
        show(served)
        sleep(pause_s)
    load(0)
    return served


@contextlib.contextmanager
def shown(
    console: Console, target_ms: float, seconds: float, right: str
) -> Iterator[Callable[[list[ServedBatch]], None]]:
    """Show a live display in a terminal, updated four times a second; show nothing if the output is not a terminal."""
    if not console.is_terminal:
        yield lambda served: None
        return
    # The display is drawn between batches, because a thread would disturb the measured times.
    with Live(console=console, auto_refresh=False) as live:
        last = -1.0

        def show(served: list[ServedBatch]) -> None:
            nonlocal last
            if served[-1].time_s - last >= 0.25:
                last = served[-1].time_s
                live.update(picture(served, target_ms, seconds, right), refresh=True)

        yield show


def picture(served: Sequence[ServedBatch], target_ms: float, seconds: float, right: str) -> Group:
    """The last batches as a table for a terminal."""
    now, recent = served[-1], served[-60:]
    within = sum(batch.latency_ms <= target_ms for batch in recent) / len(recent)
    images = sum(batch.images for batch in recent)
    line = Text("")
    for batch in recent:
        height = min(int(batch.latency_ms / (2.0 * target_ms) * (len(_BARS) - 1)) + 1, len(_BARS) - 1)
        line.append(_BARS[height], "cyan" if batch.latency_ms <= target_ms else "bold yellow")
    table = Table.grid(padding=(0, 2))
    table.add_row("time", f"{now.time_s:.0f} of {seconds:.0f} s, {now.processes} load processes")
    table.add_row("latency", line)
    table.add_row("", f"{now.latency_ms:.1f} ms, target {target_ms:.1f} ms; {within:.0%} of these within it")
    table.add_row("alpha", Text("█" * max(1, round(40 * now.alpha)), "cyan") + Text(f" {now.alpha:.2f}"))
    own, full = (sum(getattr(batch, name) for batch in recent) / images for name in ("right", "full_right"))
    table.add_row(right, f"{own:.1%}; full network {full:.1%}")
    return Group(table)
