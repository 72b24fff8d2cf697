"""Time of a compressed forward against the natively built narrow network."""

import time
from collections.abc import Callable

import pytest
import timm
import torch
from timm.models.resnet import BasicBlock, ResNet
from torch import nn

from lightning_lcs import Structured, SubspaceModel
from tests.benchmarks.timing import ALPHAS, WIDTHS, images, medians, resnet10t, resnet10t_at

pytestmark = pytest.mark.benchmark
LIMIT = 1.03
LEAST = 5e-3  # seconds of a forward for which the limit counts


@pytest.mark.parametrize("batch", [1, 32])
@pytest.mark.parametrize(("alpha", "width"), list(zip(ALPHAS, WIDTHS, strict=True))[:3])
@pytest.mark.filterwarnings("ignore:running at alpha")
def test_compressed_forward_is_as_fast_as_a_native_network(alpha, width, batch):
    x = images(batch, 1, 32)
    model = SubspaceModel(resnet10t(), x if batch > 1 else images(2, 1, 32), subspace="point").eval()
    native = resnet10t_at(width).eval()
    model.set_alpha(alpha)
    with torch.inference_mode():
        times = medians({"compressed": lambda: model(x), "native": lambda: native(x)}, rounds=600 // batch + 60)
    ratio = times["compressed"] / times["native"]
    compressed, plain = 1e3 * times["compressed"], 1e3 * times["native"]
    print(f"\nwidth {width}, batch {batch}: {compressed:.2f} / {plain:.2f} ms = {ratio:.3f}")
    assert ratio <= LIMIT


def resnet18d_at_half() -> nn.Module:
    """timm's resnet18d with half of its channels."""
    channels = (32, 64, 128, 256)
    return ResNet(BasicBlock, (2, 2, 2, 2), stem_width=16, stem_type="deep", avg_down=True, channels=channels)


# Name in timm, pixels, and how timm builds it with half of the channels; what it can't is cut out (materialized).
NATIVE: list[tuple[str, int, Callable[[], nn.Module] | None]] = [
    ("resnet18d", 160, resnet18d_at_half),
    ("convnext_atto", 160, lambda: timm.create_model("convnext_atto", dims=(20, 40, 80, 160))),
    ("vit_small_patch16_224", 224, lambda: timm.create_model("vit_small_patch16_224", embed_dim=192, num_heads=6)),
    ("mobilenetv3_large_100", 160, None),
    ("efficientnet_b0", 160, None),
]


@pytest.mark.parametrize(("name", "pixels", "narrow"), NATIVE, ids=[entry[0] for entry in NATIVE])
def test_half_the_width_of_networks_of_timm(name, pixels, narrow):
    x = images(8, 3, pixels)
    model = SubspaceModel(timm.create_model(name), x[:2], mode=Structured(min_width=0.5), subspace="point").eval()
    model.runner.evaluation.warns = False
    small = model.materialize(0.0)
    native = small if narrow is None else narrow().eval()
    assert sorted(p.shape for p in native.parameters()) == sorted(p.shape for p in small.parameters())
    model.set_alpha(0.0)
    for batch in (1, 8):
        part = x[:batch]
        contenders = {"compressed": lambda: model(part), "native": lambda: native(part)}  # noqa: B023
        with torch.inference_mode():
            # Of the processor: what else runs on the machine does not count.
            times = medians(contenders, rounds=60, clock=time.process_time)
        ratio, built = times["compressed"] / times["native"], "materialized" if narrow is None else "timm's"
        print(f"\n{name}, batch {batch}: {1e3 * times['native']:.1f} ms {built}, ratio {ratio:.3f}")
        assert ratio <= LIMIT or times["native"] < LEAST
