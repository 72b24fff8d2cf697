"""A tiny network for each group of rules, with what must be left of it at half width."""

import dataclasses
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.helpers import Lambda

IMAGE = (3, 3, 8, 8)


@dataclasses.dataclass
class Case:
    """A network, and what must be left of it at width .5: the shape of tensors, the kept indices of an axis."""

    make: Callable[[], nn.Module]
    shapes: dict[str, tuple[int, ...]]
    kept: dict[tuple[str, int], list[int]] = dataclasses.field(default_factory=dict)
    image: tuple[int, ...] = IMAGE


def pooled(m: nn.Module, x: Tensor) -> Tensor:
    return m.head(x.flatten(2).mean(2))  # type: ignore[operator,return-value]


def tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


class StandardisedConv(nn.Conv2d):
    """Weights with mean 0 and deviation 1, as in weight-standardised networks."""

    def forward(self, x: Tensor) -> Tensor:
        flat = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(flat, None, None, training=True, momentum=0.0, eps=1e-6).reshape_as(self.weight)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(channels, hidden, 1), nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.expand(self.reduce(x.mean((2, 3), keepdim=True)).relu()).sigmoid()


def conv(out: int, into: int = 3, size: int = 3, **options: int) -> nn.Conv2d:
    return nn.Conv2d(into, out, size, **options)


def between(layer: Callable[[], nn.Module], channels: int = 8, out: int = 8) -> Callable[[], nn.Module]:
    """A convolution, the layer in question, and a head."""
    return lambda: Lambda(lambda m, x: pooled(m, m.on(m.a(x))), a=conv(channels), on=layer(), head=nn.Linear(out, 5))


CASES = {
    "conv": Case(between(lambda: conv(12, 8), out=12), {"a.weight": (4, 3, 3, 3), "on.weight": (6, 4, 3, 3)}),
    "conv1d": Case(
        lambda: Lambda(lambda m, x: pooled(m, m.a(x.flatten(2))), a=nn.Conv1d(3, 8, 3), head=nn.Linear(8, 5)),
        {"a.weight": (4, 3, 3), "head.weight": (5, 4)},
    ),
    "conv3d": Case(
        lambda: Lambda(
            lambda m, x: pooled(m, m.b(m.a(x[:, None]))),
            a=nn.Conv3d(1, 8, (1, 3, 3)), b=nn.Conv3d(8, 6, 3), head=nn.Linear(6, 5),
        ),
        {"b.weight": (3, 4, 3, 3, 3)},
    ),
    "same padding": Case(
        between(lambda: nn.Conv2d(8, 12, 3, padding="same"), out=12), {"on.weight": (6, 4, 3, 3)}
    ),
    "grouped": Case(
        between(lambda: conv(24, 12, groups=3), 12, 24),
        {"a.weight": (6, 3, 3, 3), "on.weight": (12, 2, 3, 3), "head.weight": (5, 12)},
        {("a.weight", 0): [0, 1, 4, 5, 8, 9], ("on.bias", 0): [0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19]},
    ),
    "two groupings": Case(
        between(lambda: nn.Sequential(conv(12, 12, groups=2), conv(12, 12, groups=4)), 12, 12),
        {"on.0.weight": (8, 3, 3, 3), "on.1.weight": (8, 2, 3, 3)},
    ),
    "depthwise": Case(between(lambda: conv(8, 8, groups=8)), {"on.weight": (4, 1, 3, 3), "head.weight": (5, 4)}),
    "depthwise with a multiplier": Case(
        between(lambda: conv(24, 8, groups=8), 8, 24),
        {"on.weight": (12, 1, 3, 3), "on.bias": (12,), "head.weight": (5, 12)},
        {("on.bias", 0): list(range(12))},
    ),
    "transposed": Case(between(lambda: nn.ConvTranspose2d(8, 6, 2, stride=2), 8, 6), {"on.weight": (4, 3, 2, 2)}),
    "flattened into linear": Case(
        lambda: Lambda(
            lambda m, x: m.head(m.fc(m.a(x).flatten(1)).relu()), a=conv(8), fc=nn.Linear(288, 10), head=nn.Linear(10, 5)
        ),
        {"a.weight": (4, 3, 3, 3), "fc.weight": (5, 144)},
        {("fc.weight", 1): list(range(144))},
    ),
    "flattened channels last": Case(
        lambda: Lambda(lambda m, x: m.head(m.a(x).permute(0, 2, 3, 1).flatten(1)), a=conv(8), head=nn.Linear(288, 5)),
        {"head.weight": (5, 144)},
        {("head.weight", 1): [8 * place + channel for place in range(36) for channel in range(4)]},
    ),
    "concatenation": Case(
        lambda: Lambda(
            lambda m, x: pooled(m, m.on(torch.cat([m.a(x), m.b(x)], 1))),
            a=conv(8), b=conv(6), on=conv(4, 14), head=nn.Linear(4, 5),
        ),
        {"a.weight": (4, 3, 3, 3), "b.weight": (3, 3, 3, 3), "on.weight": (2, 7, 3, 3)},
        {("on.weight", 1): [0, 1, 2, 3, 8, 9, 10]},
    ),
    "dense block": Case(
        lambda: Lambda(
            lambda m, x: (
                (one := torch.cat([m.a(x), m.b(m.a(x))], 1)), pooled(m, m.norm(torch.cat([one, m.c(one)], 1)).relu())
            )[1],
            a=conv(6), b=conv(4, 6, padding=1), c=conv(4, 10, padding=1), norm=nn.BatchNorm2d(14),
            head=nn.Linear(14, 5),
        ),
        {"c.weight": (2, 5, 3, 3), "norm.weight": (7,)},
        {("norm.running_var", 0): [0, 1, 2, 6, 7, 10, 11]},
    ),
    "chunks that gate": Case(
        lambda: Lambda(
            lambda m, x: (lambda u, v: pooled(m, u * v.sigmoid()))(*m.a(x).chunk(2, 1)),
            a=conv(16), head=nn.Linear(8, 5),
        ),
        {"a.weight": (8, 3, 3, 3), "head.weight": (5, 4)},
        {("a.bias", 0): [0, 1, 2, 3, 8, 9, 10, 11]},
    ),
    "uneven split": Case(
        lambda: Lambda(
            lambda m, x: (lambda u, v, w: pooled(m, torch.cat([w, u + w, v], 1)))(*m.a(x).split([4, 8, 4], 1)),
            a=conv(16), head=nn.Linear(16, 5),
        ),
        {"a.weight": (8, 3, 3, 3), "head.weight": (5, 8)},
        {("a.bias", 0): [0, 1, 4, 5, 6, 7, 12, 13], ("head.weight", 1): [0, 1, 4, 5, 8, 9, 10, 11]},
    ),
    "cut at places": Case(
        lambda: Lambda(
            lambda m, x: (lambda u, v: pooled(m, torch.cat([v, u], 1)))(*m.a(x).tensor_split([4], 1)),
            a=conv(12), head=nn.Linear(12, 5),
        ),
        {"a.weight": (6, 3, 3, 3), "head.weight": (5, 6)},
        {("a.bias", 0): [0, 1, 4, 5, 6, 7], ("head.weight", 1): [0, 1, 2, 3, 8, 9]},
    ),
    "written into a slice": Case(
        lambda: Lambda(
            lambda m, x: (y := m.a(x), y[:, :, 1:].copy_(m.b(x)[:, :, 1:]), pooled(m, y))[2],
            a=conv(8), b=conv(8), head=nn.Linear(8, 5),
        ),
        {"a.weight": (4, 3, 3, 3), "b.weight": (4, 3, 3, 3), "head.weight": (5, 4)},
    ),
    "permute and layer norm": Case(
        lambda: Lambda(
            lambda m, x: m.head(m.fc(m.norm(m.a(x).permute(0, 2, 3, 1))).mean((1, 2))),
            a=conv(8), norm=nn.LayerNorm(8), fc=nn.Linear(8, 12), head=nn.Linear(12, 5),
        ),
        {"norm.weight": (4,), "fc.weight": (6, 4)},
    ),
    "layer norm over an image": Case(between(lambda: nn.LayerNorm([8, 6, 6])), {"on.weight": (4, 6, 6)}),
    "rms norm": Case(
        lambda: Lambda(
            lambda m, x: m.head(m.on(tokens(m.a(x))).mean(1)), a=conv(8), on=nn.RMSNorm(8), head=nn.Linear(8, 5)
        ),
        {"on.weight": (4,)},
    ),
    "batch norm": Case(between(lambda: nn.BatchNorm2d(8)), {"on.running_mean": (4,), "on.weight": (4,)}),
    "instance norm": Case(between(lambda: nn.InstanceNorm2d(8, affine=True)), {"on.weight": (4,)}),
    "group norm of one group": Case(between(lambda: nn.GroupNorm(1, 8)), {"on.weight": (4,)}),
    "group norm of all groups": Case(between(lambda: nn.GroupNorm(8, 8)), {"on.weight": (4,)}),
    "group norm of some groups": Case(
        between(lambda: nn.GroupNorm(3, 12), 12, 12), {"on.weight": (6,)}, {("on.weight", 0): [0, 1, 4, 5, 8, 9]}
    ),
    "squeeze and excite": Case(
        between(lambda: SqueezeExcite(8, 6)), {"on.reduce.weight": (3, 4, 1, 1), "on.expand.weight": (4, 3, 1, 1)}
    ),
    "shortcut padded with channels": Case(
        lambda: Lambda(
            lambda m, x: pooled(m, m.b(m.a(x)) + F.pad(F.avg_pool2d(m.a(x), 3, 1, 1), (0, 0, 0, 0, 4, 4))),
            a=conv(8), b=conv(16, 8, padding=1), head=nn.Linear(16, 5),
        ),
        {"b.weight": (12, 4, 3, 3), "head.weight": (5, 12)},
        {("b.bias", 0): [0, 1, 2, 3, 4, 5, 6, 7, 12, 13, 14, 15]},
    ),
    "prelu per channel": Case(between(lambda: nn.PReLU(8)), {"on.weight": (4,)}),
    "prelu of one slope": Case(between(lambda: nn.PReLU()), {"on.weight": (1,), "a.weight": (4, 3, 3, 3)}),
    "weight standardisation": Case(between(lambda: StandardisedConv(8, 12, 3), 8, 12), {"on.weight": (6, 4, 3, 3)}),
    "pixels into channels": Case(
        lambda: Lambda(
            lambda m, x: pooled(
                m, m.on(m.a(x).view(-1, 8, 3, 2, 3, 2).permute(0, 1, 3, 5, 2, 4).reshape(-1, 32, 3, 3))
            ),
            a=conv(8), on=conv(6, 32), head=nn.Linear(6, 5),
        ),
        {"a.weight": (4, 3, 3, 3), "on.weight": (3, 16, 3, 3)},
        {("on.weight", 1): list(range(16))},
    ),
    "channel shuffle": Case(
        lambda: Lambda(
            lambda m, x: pooled(m, m.on(m.a(x).view(-1, 2, 4, 6, 6).transpose(1, 2).reshape(-1, 8, 6, 6))),
            a=conv(8), on=conv(6, 8), head=nn.Linear(6, 5),
        ),
        {"a.weight": (4, 3, 3, 3), "on.weight": (3, 4, 3, 3)},
        {("a.bias", 0): [0, 1, 4, 5], ("on.weight", 1): [0, 1, 2, 3]},
    ),
    "expanded token": Case(
        lambda: Lambda(
            lambda m, x: m.head(m.norm(torch.cat([m.token.expand(x.shape[0], -1, -1), tokens(m.a(x))], 1)).mean(1)),
            a=conv(8), token=nn.Parameter(torch.randn(1, 1, 8)), norm=nn.LayerNorm(8), head=nn.Linear(8, 5),
        ),
        {"token": (1, 1, 4), "norm.weight": (4,)},
    ),
    "expanded gate": Case(
        lambda: Lambda(
            lambda m, x: pooled(m, m.a(x) * m.gate(x).expand(-1, 8, -1, -1)),
            a=conv(8), gate=conv(1), head=nn.Linear(8, 5),
        ),
        {"a.weight": (4, 3, 3, 3), "gate.weight": (1, 3, 3, 3)},
    ),
    "mean over channels": Case(
        between(lambda: Lambda(lambda m, x: x - x.mean(1, keepdim=True))), {"head.weight": (5, 4)}
    ),
    "largest of channels": Case(
        between(lambda: Lambda(lambda m, x: x * x.max(1, keepdim=True)[0].sigmoid())), {"head.weight": (5, 4)}
    ),
    "largest of places": Case(
        lambda: Lambda(lambda m, x: m.head(m.a(x).flatten(2).max(2)[0]), a=conv(8), head=nn.Linear(8, 5)),
        {"a.weight": (4, 3, 3, 3), "head.weight": (5, 4)},
    ),
    "sampled at a grid": Case(
        between(
            lambda: Lambda(
                lambda m, x: F.grid_sample(x, m.grid.expand(x.shape[0], 5, 5, 2), align_corners=False),
                grid=torch.rand(1, 5, 5, 2) * 2 - 1,
            )
        ),
        {"a.weight": (4, 3, 3, 3), "head.weight": (5, 4)},
    ),
    "depthwise transposed": Case(
        between(lambda: nn.ConvTranspose2d(8, 8, 2, 2, groups=8)), {"a.weight": (4, 3, 3, 3), "on.weight": (4, 1, 2, 2)}
    ),
    "grouped transposed": Case(
        between(lambda: nn.ConvTranspose2d(12, 24, 2, 2, groups=3), 12, 24),
        {"a.weight": (6, 3, 3, 3), "on.weight": (6, 4, 2, 2), "head.weight": (5, 12)},
        {("a.weight", 0): [0, 1, 4, 5, 8, 9], ("on.bias", 0): [0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19]},
    ),
    "softmax over channels": Case(between(lambda: nn.Softmax(1)), {"head.weight": (5, 4)}),
    "sum of two radices": Case(
        between(lambda: Lambda(lambda m, x: x.view(x.shape[0], 2, 8, 6, 6).sum(1)), 16), {"a.weight": (8, 3, 3, 3)},
        {("a.bias", 0): [0, 1, 2, 3, 8, 9, 10, 11]},
    ),
    "layer scale": Case(
        between(
            lambda: Lambda(
                lambda m, x: x * m.scale + m.shift, scale=nn.Parameter(torch.rand(8, 1, 1)), shift=torch.rand(1)
            )
        ),
        {"on.scale": (4, 1, 1), "on.shift": (1,)},
    ),
    "buffer per channel": Case(
        between(lambda: Lambda(lambda m, x: x * m.table, table=torch.rand(8, 1, 1))), {"on.table": (4, 1, 1)}
    ),
}  # fmt: skip
