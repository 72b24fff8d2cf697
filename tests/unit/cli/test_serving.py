"""The demo's parts with a fake clock: what is served, when load runs, what is shown."""

import io

import pytest
import torch
from rich.console import Console

from lightning_lcs.cli.serving import Burners, Images, digits, images_for, photos, picture, schedule, serve, shown
from lightning_lcs.control.controller import RuntimeController
from tests.unit.control.simulated import Clock


class Counting:
    """Takes 10 ms at full width, 5 at the lowest; right at full width, wrong on the first class below it."""

    def __init__(self, clock):
        self.clock = clock
        self.alpha = 1.0

    def set_alpha(self, alpha):
        self.alpha = alpha

    def __call__(self, batch):
        self.clock.now += 1e-3 * (5.0 + 5.0 * self.alpha)
        logits = torch.nn.functional.one_hot(batch[:, 0, 0, 0].long(), 3).float()
        return logits if self.alpha == 1.0 else torch.cat([torch.zeros(len(batch), 1), logits[:, 1:] + 0.5], 1)


@pytest.fixture
def run():
    clock, loads, shows = Clock(), [], []
    net = Counting(clock)
    half = lambda view: 0.0 if view.readings.time_s > 100.5 else 1.0  # noqa: E731
    controller = RuntimeController(net, [half], levels=[0.0, 1.0], clock=clock, read=dict)
    labels = [torch.tensor([0, 1, 2, 0]), torch.tensor([2, 2, 1, 1])]
    batches = [values.float().view(-1, 1, 1, 1) for values in labels]

    def full(batch):
        clock.now += 0.02
        return torch.nn.functional.one_hot(batch[:, 0, 0, 0].long(), 3)

    served = serve(
        controller,
        full,
        Images(batches, labels, "numbers"),
        schedule(2.0, 2),
        pause_s=0.01,
        probe_s=0.5,
        clock=clock,
        sleep=lambda seconds: setattr(clock, "now", clock.now + seconds),
        load=lambda count: loads.append((round(clock.now, 1), count)),
        show=lambda found: shows.append(len(found)),
    )
    return served, loads, shows


def test_load_comes_and_goes_on_its_schedule_and_ends(run):
    served, loads, shows = run
    assert [count for _, count in loads] == [2, 0, 4, 0, 0]
    assert {batch.processes for batch in served} == {0, 2, 4}
    assert shows == list(range(1, len(served) + 1))
    assert served[-1].time_s < 2.0


def test_what_is_given_up_is_counted_beside_what_full_width_has(run):
    served, _, _ = run
    assert {batch.full_right for batch in served} == {4}
    at_full = {batch.right for batch in served if batch.alpha == 1.0}
    below = [batch.right for batch in served if batch.alpha == 0.0]
    assert at_full == {4}
    assert below
    assert min(below) == 2  # the two of the first class
    assert {round(batch.latency_ms, 6) for batch in served} == {10.0, 5.0}
    probes = [batch.full_latency_ms for batch in served if batch.full_latency_ms is not None]
    assert probes == pytest.approx([20.0] * 4)


def test_images_fit_the_network():
    grey = images_for([torch.zeros(2, 1, 12, 12)], 8)
    assert grey.batches[0].shape == (8, 1, 12, 12)
    assert len(grey.labels) == len(grey.batches)
    assert len(digits((8, 16), 4).batches[0][0, 0]) == 8
    colour = photos((10, 14), 4, batches=2)
    assert [batch.shape for batch in colour.batches] == [(4, 3, 10, 14)] * 2
    assert colour.labels is None
    assert all(torch.equal(a, b) for a, b in zip(colour.batches, photos((10, 14), 4, batches=2).batches, strict=True))
    for example in ([torch.zeros(2, 5)], [torch.zeros(2, 4, 8, 8)], [torch.zeros(1), torch.zeros(1)]):
        with pytest.raises(ValueError, match="serve-demo only has images"):
            images_for(example, 4)


def test_load_processes_end_with_the_block():
    with Burners() as burners:
        burners.set(2)
        started = list(burners.running)
        burners.set(1)
        assert [process.poll() is None for process in started] == [True, False]
    assert all(process.poll() is not None for process in started)


def test_drawn_in_a_terminal_and_quiet_elsewhere(run):
    served, _, _ = run
    for terminal, silent in ((False, True), (True, False)):
        console = Console(file=io.StringIO(), force_terminal=terminal, width=90)
        with shown(console, 8.0, 2.0, "accuracy") as show:
            for count in range(1, len(served)):
                show(served[:count])
        assert (console.file.getvalue() == "") == silent
    console = Console(file=io.StringIO(), width=90)
    console.print(picture(served, 8.0, 2.0, "accuracy"))
    text = console.file.getvalue()
    assert "target 8.0 ms" in text
    assert "full network 100.0%" in text
