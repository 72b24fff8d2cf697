"""Interleaved timing: every contender once per round, medians of many rounds, quoted as ratios."""

import statistics
import time
from collections.abc import Callable

import timm
import torch
from timm.models.resnet import BasicBlock, ResNet
from torch import nn

ALPHAS = (0.0, 1 / 3, 2 / 3, 1.0)
WIDTHS = (0.25, 0.5, 0.75, 1.0)


def medians(
    contenders: dict[str, Callable[[], object]],
    rounds: int,
    after: Callable[[], object] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Median seconds of each contender, all of them run once per round; ``after`` follows each run, untimed."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for call in contenders.values():
        call()
        after()
    for _ in range(rounds):
        for name, call in contenders.items():
            start = clock()
            call()
            times[name].append(clock() - start)
            after()
    return {name: statistics.median(values) for name, values in times.items()}


def resnet10t_at(width: float, in_chans: int = 1) -> nn.Module:
    """timm's resnet10t, natively built with this share of its channels."""
    return ResNet(
        BasicBlock,
        (1, 1, 1, 1),
        num_classes=10,
        in_chans=in_chans,
        stem_width=round(32 * width),
        stem_type="deep_tiered",
        avg_down=True,
        channels=tuple(round(c * width) for c in (64, 128, 256, 512)),
    )


def images(batch: int, channels: int, size: int) -> torch.Tensor:
    """Random images."""
    return torch.randn(batch, channels, size, size)


def resnet10t() -> nn.Module:
    """timm's resnet10t for Fashion-MNIST."""
    return timm.create_model("resnet10t", in_chans=1, num_classes=10)
