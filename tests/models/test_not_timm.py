"""Networks that are not timm's: torchvision's, and what people write by hand."""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.video.mvit import MSBlockConfig, MViT

from lightning_lcs.model import SubspaceModel
from tests.helpers import BATCH_NORM_WARNING, Lambda, relative, scramble
from tests.models.checks import build, examine
from tests.models.mistakes import leaves

pytestmark = pytest.mark.filterwarnings(BATCH_NORM_WARNING)
# float64, sums in another order.
MASKED = 1e-9


def rand(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "name",
    [
        "resnet18@64",
        "shufflenet_v2_x0_5@64",
        "squeezenet1_1@96",
        "lraspp_mobilenet_v3_large@64",
        "deeplabv3_mobilenet_v3_large@64",
    ],
)
def test_torchvision(name: str) -> None:
    found = examine(*build(f"torchvision:{name}"))
    assert (found.trouble, found.ungraded) == ("", [])
    assert found.identity < MASKED
    assert found.masked is not None
    assert found.masked < MASKED
    assert max(found.params, found.macs) <= 0.4


class UNet(nn.Module):
    """Two levels down and up, skips joined, transposed convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = self.block(3, 8), self.block(8, 16)
        self.bottom = self.block(16, 32)
        self.up2, self.merge2 = nn.ConvTranspose2d(32, 16, 2, 2), self.block(32, 16)
        self.up1, self.merge1 = nn.ConvTranspose2d(16, 8, 2, 2), self.block(16, 8)
        self.out = nn.Conv2d(8, 4, 1)

    @staticmethod
    def block(into: int, out: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(into, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        first = self.down1(x)
        second = self.down2(nn.functional.max_pool2d(first, 2))
        bottom = self.bottom(nn.functional.max_pool2d(second, 2))
        x = self.merge2(torch.cat([self.up2(bottom), second], 1))
        result: Tensor = self.out(self.merge1(torch.cat([self.up1(x), first], 1)))
        return result


def autoencoder() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1), nn.GELU(), nn.Conv2d(16, 32, 3, 2, 1), nn.GELU(), nn.Flatten(),
        nn.Linear(32 * 64, 24), nn.Linear(24, 32 * 64), nn.Unflatten(1, (32, 8, 8)),
        nn.ConvTranspose2d(32, 16, 4, 2, 1), nn.GELU(), nn.ConvTranspose2d(16, 3, 4, 2, 1),
    )  # fmt: skip


def audio() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(2, 16, 9, 4, bias=False), nn.BatchNorm1d(16), nn.ReLU(), nn.Conv1d(16, 32, 5, 2, groups=4),
        nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(32, 6),
    )  # fmt: skip


def video() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(3, 8, 3, padding=1, bias=False), nn.BatchNorm3d(8), nn.ReLU(), nn.MaxPool3d(2),
        nn.Conv3d(8, 16, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(16, 6),
    )  # fmt: skip


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(24, 4, 48, dropout=0.0, batch_first=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of nested tensors, which are a matter of speed
        stack = nn.TransformerEncoder(layer, 2)
    return Lambda(
        lambda m, x: m.head(m.stack(m.embed(x)).mean(1)), embed=nn.Linear(7, 24), stack=stack, head=nn.Linear(24, 5)
    )


def video_transformer() -> nn.Module:
    """MViTv2 of torchvision with two blocks: a class token cut off and joined again, relative positions in place."""
    block = partial(MSBlockConfig, kernel_q=[3, 3, 3], kernel_kv=[3, 3, 3], stride_kv=[1, 2, 2])
    blocks = [
        block(num_heads=1, input_channels=16, output_channels=32, stride_q=[1, 1, 1]),
        block(num_heads=2, input_channels=32, output_channels=32, stride_q=[1, 2, 2]),
    ]
    return MViT((16, 16), 4, blocks, True, False, True, True, num_classes=5)


def two_calls() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.first(x).relu()
        return m.head(m.twice(m.twice(x).relu()).mean((2, 3)))

    return Lambda(forward, first=nn.Conv2d(3, 8, 3), twice=nn.Conv2d(8, 8, 3, padding=1), head=nn.Linear(8, 5))


def tied() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        hidden = nn.functional.linear(x, m.inner.weight).relu()
        return nn.functional.linear(m.mix(hidden).relu(), m.inner.weight.t())

    return Lambda(forward, inner=nn.Linear(12, 16, bias=False), mix=nn.Linear(16, 16))


HAND_WRITTEN = [
    pytest.param(UNet, rand(3, 3, 16, 16), 0.35, id="unet"),
    pytest.param(autoencoder, rand(3, 3, 32, 32), 0.55, id="autoencoder"),
    pytest.param(audio, rand(3, 2, 128), 0.5, id="audio"),
    pytest.param(video, rand(3, 3, 4, 8, 8), 0.45, id="video"),
    pytest.param(video_transformer, rand(2, 3, 4, 16, 16), 0.4, id="mvit"),
    pytest.param(two_calls, rand(3, 3, 8, 8), 0.55, id="called-twice"),
    pytest.param(tied, rand(3, 12), 0.55, id="tied"),
]


@pytest.mark.parametrize(("make", "x", "most"), HAND_WRITTEN)
def test_hand_written(make: Callable[[], nn.Module], x: Tensor, most: float) -> None:
    torch.manual_seed(0)
    found = examine(scramble(make()).double().eval(), x.double())
    assert (found.trouble, found.ungraded) == ("", [])
    assert found.identity < MASKED
    assert found.masked is not None
    assert found.masked < MASKED
    assert max(found.params, found.macs) <= most


def test_a_transformer_encoder_of_torch() -> None:
    # Its fused kernel for evaluation is no ATen op of the graph's: equal up to rounding.
    found = examine(encoder().eval(), rand(3, 6, 7), masked=False)
    assert found.identity < 1e-5
    assert found.ungraded == []
    assert max(found.params, found.macs) <= 0.4


def test_two_inputs_keywords_and_a_dict_come_and_go_as_they_were() -> None:
    def forward(m: Any, image: Tensor, *, table: Tensor, extra: dict[str, Tensor]) -> dict[str, Any]:
        hidden = torch.cat([m.image(image).relu().mean((2, 3)), m.table(table).relu()], 1)
        joined = m.joined(hidden).relu() + m.scale(extra["scale"])
        return {"classes": m.head(joined), "both": (m.other(joined), m.head(joined).softmax(1))}

    net = Lambda(
        forward, image=nn.Conv2d(3, 8, 3), table=nn.Linear(5, 8), joined=nn.Linear(16, 12), scale=nn.Linear(2, 12),
        head=nn.Linear(12, 4), other=nn.Linear(12, 3),
    ).eval()  # fmt: skip
    inputs = {"table": rand(6, 5), "extra": {"scale": rand(6, 2)}}
    model = SubspaceModel(net, subspace="point").eval()
    with torch.no_grad():
        expected = net(rand(6, 3, 8, 8), **inputs)
        model.set_alpha(0.3)
        found = model(rand(6, 3, 8, 8), **inputs)
    assert set(found) == {"classes", "both"}
    assert [leaf.shape for leaf in leaves(found)] == [leaf.shape for leaf in leaves(expected)]
    assert model.efficiency(0.3).params < 0.5 * model.efficiency(1.0).params


@pytest.mark.parametrize("wrap", [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm])
def test_parametrized_layers(wrap: Callable[[nn.Module], nn.Module]) -> None:
    net = nn.Sequential(
        wrap(nn.Conv2d(3, 8, 3)), nn.ReLU(), wrap(nn.Conv2d(8, 16, 3)), nn.ReLU(), nn.Flatten(), nn.Linear(256, 5)
    ).eval()
    x = rand(3, 3, 8, 8)
    model = SubspaceModel(net, x, subspace="point").eval()
    with torch.no_grad():
        assert relative(model(x), net(x)) == 0.0
        model.set_alpha(0.0)
        assert torch.isfinite(model(x)).all()
