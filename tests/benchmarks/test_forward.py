"""Time of a compressed forward against the natively built narrow network."""

import pytest
import torch

from lightning_lcs import SubspaceModel
from tests.benchmarks.timing import ALPHAS, WIDTHS, images, medians, resnet10t, resnet10t_at

pytestmark = pytest.mark.benchmark
LIMIT = 1.03


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
