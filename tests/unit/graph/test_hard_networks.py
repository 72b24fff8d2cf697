"""Code found in published networks that a trace-and-slice easily gets wrong: it must stay right, or be kept whole."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from packaging.version import Version
from torch import Tensor, nn

from lightning_lcs.model import SubspaceModel
from tests.equivalence.masking import Survivors, masked_forward
from tests.helpers import BATCH_NORM_WARNING, WHOLE_WARNING, Lambda, at_width, relative, scramble

pytestmark = [pytest.mark.filterwarnings(BATCH_NORM_WARNING), pytest.mark.filterwarnings(WHOLE_WARNING)]

# float64 throughout: sums of at most a few hundred products in another order.
SLICED = 1e-12


def conv(out: int, into: int = 3, size: int = 3, **options: int) -> nn.Conv2d:
    return nn.Conv2d(into, out, size, **options)


def pooled(m: nn.Module, x: Tensor) -> Tensor:
    return m.head(x.mean((2, 3)))  # type: ignore[operator,return-value]


def learned_table() -> nn.Module:
    """Position embeddings resampled to the size of the input."""
    return Lambda(
        lambda m, x: pooled(m, m.a(x) + F.interpolate(m.table, size=(6, 6), mode="bilinear")),
        a=conv(8), table=nn.Parameter(torch.randn(1, 8, 4, 4)), head=nn.Linear(8, 5),
    )  # fmt: skip


def learned_image() -> nn.Module:
    """A generator that starts from a learned image."""
    return Lambda(
        lambda m, x: pooled(m, m.a(x) + m.b(m.image)),
        a=conv(8), b=conv(8, 8), image=nn.Parameter(torch.randn(1, 8, 8, 8)), head=nn.Linear(8, 5),
    )  # fmt: skip


def channels_into_pixels() -> nn.Module:
    """A pixel shuffle by hand, then a convolution."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = m.a(x).unflatten(1, (8, 2, 2)).permute(0, 1, 4, 2, 5, 3).reshape(-1, 8, 12, 12)  # type: ignore[operator]
        return pooled(m, m.b(x))  # type: ignore[operator]

    return Lambda(forward, a=conv(32), b=conv(6, 8), head=nn.Linear(6, 5))


def pooling_over_channels() -> nn.Module:
    return Lambda(
        lambda m, x: m.head(F.avg_pool1d(m.a(x).mean((2, 3)).unsqueeze(1), 2).flatten(1)),
        a=conv(8), head=nn.Linear(4, 5),
    )  # fmt: skip


def convolution_over_channels() -> nn.Module:
    return Lambda(
        lambda m, x: m.head(m.c(m.a(x).mean((2, 3)).unsqueeze(1)).flatten(1)),
        a=conv(8), c=nn.Conv1d(1, 1, 2, stride=2), head=nn.Linear(4, 5),
    )  # fmt: skip


def efficient_channel_attention() -> nn.Module:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = m.a(x)  # type: ignore[operator]
        return pooled(m, x * m.c(x.mean((2, 3)).unsqueeze(1)).sigmoid().view(-1, 8, 1, 1))  # type: ignore[operator]

    return Lambda(forward, a=conv(8), c=nn.Conv1d(1, 1, 3, padding=1), head=nn.Linear(8, 5))


def rms_norm_with_epsilon() -> nn.Module:
    return Lambda(
        lambda m, x: m.head(m.norm(m.a(x).flatten(2).transpose(1, 2)).mean(1)),
        a=conv(8), norm=nn.RMSNorm(8, eps=1e-3), head=nn.Linear(8, 5),
    )  # fmt: skip


def type_of_the_input() -> nn.Module:
    return Lambda(
        lambda m, x: m.head(m.a(x).mean((2, 3)) * m.scale.type_as(x)),
        a=conv(8), scale=nn.Parameter(torch.rand(8)), head=nn.Linear(8, 5),
    )  # fmt: skip


def squeezed_to_one_channel() -> nn.Module:
    return Lambda(
        lambda m, x: m.head(F.adaptive_avg_pool2d(m.a(x), 1).squeeze()), a=conv(4), head=nn.Linear(4, 5)
    )  # fmt: skip


def channels_folded_into_the_batch() -> nn.Module:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        groups = m.a(x).reshape(x.shape[0] * 2, 4, 6, 6)  # type: ignore[operator]
        return m.head(groups.mean((2, 3)).reshape(x.shape[0], 8))  # type: ignore[operator,return-value]

    return Lambda(forward, a=conv(8), head=nn.Linear(8, 5))


def multi_head_attention() -> nn.Module:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = m.a(x).flatten(2).transpose(1, 2)  # type: ignore[operator]
        return m.head((x + m.attend(x, x, x)[0]).mean(1))  # type: ignore[operator,return-value]

    return Lambda(forward, a=conv(8), attend=nn.MultiheadAttention(8, 2, batch_first=True), head=nn.Linear(8, 5))


def attention_by_hand() -> nn.Module:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = m.a(x).flatten(2).transpose(1, 2)  # type: ignore[operator]
        q, k, v = m.qkv(x).reshape(x.shape[0], 36, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)  # type: ignore[operator]
        x = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape[0], 36, 8)
        return m.head(m.out(x).mean(1))  # type: ignore[operator,return-value]

    return Lambda(forward, a=conv(8), qkv=nn.Linear(8, 24), out=nn.Linear(8, 6), head=nn.Linear(6, 5))


def statistics_without_gradient() -> nn.Module:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = m.a(x)  # type: ignore[operator]
        with torch.no_grad():
            scale = x.abs().amax((1, 2, 3), keepdim=True)
        return pooled(m, x / scale)

    return Lambda(forward, a=conv(8), head=nn.Linear(8, 5))


def head_in_full_precision() -> nn.Module:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = m.a(x)  # type: ignore[operator]
        with torch.autocast("cpu", enabled=False):
            return pooled(m, x)

    return Lambda(forward, a=conv(8), head=nn.Linear(8, 5))


def bits_of_a_float() -> nn.Module:
    return Lambda(
        lambda m, x: pooled(m, (m.a(x).view(torch.int64) & -2).view(torch.float64)), a=conv(8), head=nn.Linear(8, 5)
    )


def slice_of_channels() -> nn.Module:
    return Lambda(lambda m, x: pooled(m, m.a(x)[:, 2:6]), a=conv(8), head=nn.Linear(4, 5))


def channels_changed_in_place() -> nn.Module:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = m.a(x)  # type: ignore[operator]
        x[:, 4:].mul_(2.0)
        return pooled(m, x)

    return Lambda(forward, a=conv(8), head=nn.Linear(8, 5))


def lstm() -> nn.Module:
    return Lambda(
        lambda m, x: m.head(m.rnn(m.a(x).flatten(2).transpose(1, 2))[0].mean(1)),
        a=conv(8), rnn=nn.LSTM(8, 8, batch_first=True), head=nn.Linear(8, 5),
    )  # fmt: skip


def glu() -> nn.Module:
    return Lambda(lambda m, x: pooled(m, F.glu(m.a(x), 1)), a=conv(8), head=nn.Linear(4, 5))


def embedding_bilinear() -> nn.Module:
    return Lambda(lambda m, x: m.b(m.a(x).mean((2, 3)), x.mean((2, 3))), a=conv(8), b=nn.Bilinear(8, 3, 5))


def weight_norm() -> nn.Module:
    return Lambda(
        lambda m, x: pooled(m, m.a(x)), a=nn.utils.parametrizations.weight_norm(conv(8)), head=nn.Linear(8, 5)
    )


def weights_used_twice() -> nn.Module:
    return Lambda(lambda m, x: F.linear(m.a(x.flatten(1)).relu(), m.a.weight.t()), a=nn.Linear(192, 8))


def batch_norm_of_cumulative_average() -> nn.Module:
    return Lambda(
        lambda m, x: pooled(m, m.n(m.a(x))), a=conv(8), n=nn.BatchNorm2d(8, momentum=None), head=nn.Linear(8, 5)
    )


NETWORKS = [
    learned_table,
    learned_image,
    channels_into_pixels,
    pooling_over_channels,
    convolution_over_channels,
    efficient_channel_attention,
    rms_norm_with_epsilon,
    type_of_the_input,
    squeezed_to_one_channel,
    channels_folded_into_the_batch,
    multi_head_attention,
    attention_by_hand,
    statistics_without_gradient,
    head_in_full_precision,
    bits_of_a_float,
    slice_of_channels,
    channels_changed_in_place,
    lstm,
    glu,
    embedding_bilinear,
    weight_norm,
    weights_used_twice,
    batch_norm_of_cumulative_average,
]


@pytest.mark.parametrize("make", NETWORKS)
def test_sliced_network_is_the_masked_one(make: Callable[[], nn.Module]) -> None:
    net, x = scramble(make()).eval().double(), torch.randn(3, 3, 8, 8, dtype=torch.float64)
    model, survivors = SubspaceModel(net, x, subspace="point").eval(), Survivors(net, x)
    for alpha in (0.0, 1 / 3):
        with torch.no_grad():
            ours = model.materialize(alpha)(x)
            assert relative(ours, masked_forward(net, survivors.masks(alpha), x)) < SLICED
    with torch.no_grad():
        assert relative(model.materialize(1.0)(x), net(x)) < SLICED


class DropPath(nn.Module):
    """Stochastic depth as in timm."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * x.new_empty((x.shape[0], 1, 1, 1)).bernoulli_(0.9)


@pytest.mark.parametrize(
    "middle",
    [
        pytest.param(DropPath(), id="drop path"),
        pytest.param(Lambda(lambda m, x: x * x.mean((2, 3))[:, :, None, None]), id="index None"),
        pytest.param(Lambda(lambda m, x: x[:, :, 1:-1, 1:-1]), id="crop"),
        pytest.param(Lambda(lambda m, x: F.normalize(x, dim=1)), id="F.normalize"),
    ],
)
def test_what_does_not_touch_channels_does_not_keep_them_whole(middle: nn.Module) -> None:
    net = Lambda(lambda m, x: pooled(m, m.middle(m.a(x))), a=conv(8), middle=middle, head=nn.Linear(8, 5))
    model = at_width(net, torch.randn(3, 3, 8, 8), 0.5)
    assert model.materialize(0.0).state_dict()["head.weight"].shape == (5, 4)


def filled() -> nn.Module:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        extra = torch.ones(x.shape[0], 4, device=x.device, dtype=x.dtype)
        return m.head(m.a(x).mean((2, 3)) + m.b(extra))  # type: ignore[operator,return-value]

    return Lambda(forward, a=conv(8), b=nn.Linear(4, 8), head=nn.Linear(8, 5))


def test_tensors_made_in_forward_follow_the_dtype_of_the_input() -> None:
    net, x = filled(), torch.randn(3, 3, 8, 8)
    model = at_width(net, x, 0.5).double()
    with torch.no_grad(), model.at_alpha(0.0):
        assert model(x.double()).dtype == torch.float64


def test_tensors_made_in_forward_do_not_hinder_counting() -> None:
    # efficiency() runs the trace on tensors without data.
    assert at_width(filled(), torch.randn(3, 3, 8, 8), 0.5).efficiency(0.0).macs > 0


@pytest.mark.parametrize("cell", [nn.GRUCell, nn.LSTMCell, nn.RNNCell])
def test_a_loop_over_a_cell_is_that_over_a_native_small_cell(cell: type[nn.Module]) -> None:
    def steps(m: nn.Module, x: Tensor) -> Tensor:
        state = None
        for step in range(x.shape[1]):
            state = m.cell(x[:, step], state)  # type: ignore[operator]
        return m.head(state[0] if isinstance(state, tuple) else state)  # type: ignore[operator,return-value]

    def build(hidden: int) -> nn.Module:
        return scramble(Lambda(steps, cell=cell(6, hidden), head=nn.Linear(hidden, 5))).double().eval()

    x = torch.randn(3, 4, 6, dtype=torch.float64)
    small, native = SubspaceModel(build(16), x, subspace="point").eval().materialize(1 / 3), build(8)
    native.load_state_dict(small.state_dict())
    assert relative(small(x), native(x)) < SLICED


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.skipif(Version(torch.__version__) < Version("2.10"), reason="torch 2.9 can't trace an LSTM with proj_size")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias": False, "batch_first": True},
        {"num_layers": 2, "batch_first": True},
        {"num_layers": 3, "bidirectional": True, "bias": False},
    ],
    ids=str,
)
def test_around_a_recurrent_layer_with_a_projection_the_network_is_cut(options: Any) -> None:
    batch = 0 if options.get("batch_first") else 1

    def steps(m: nn.Module, x: Tensor) -> Tensor:
        out, states = m.rnn(m.b(m.a(x).relu()).movedim(0, batch))  # type: ignore[operator]
        seen = m.c(out).relu().mean(1 - batch)  # type: ignore[operator]
        return m.head(seen + sum(state.mean((0, 2)).unsqueeze(1) for state in states))  # type: ignore[operator,return-value]

    def build(hidden: int) -> nn.Module:
        layers = {"rnn": nn.LSTM(8, 16, proj_size=4, **options)}
        outputs = 8 if options.get("bidirectional") else 4
        layers |= {"a": nn.Linear(6, hidden), "b": nn.Linear(hidden, 8), "c": nn.Linear(outputs, hidden)}
        return scramble(Lambda(steps, **layers, head=nn.Linear(hidden, 5))).double().eval()

    x = torch.randn(3, 4, 6, dtype=torch.float64)
    model, native = at_width(build(16), x, 0.5), build(8)
    small = model.materialize(0.0)
    native.load_state_dict(small.state_dict())
    with torch.no_grad(), model.at_alpha(0.0):
        assert relative(small(x), native(x)) < SLICED
        assert relative(model(x), native(x)) < SLICED
    whole = model.plan.tensors_kept_whole()
    assert {whole[f"rnn.{name}"] for name, _ in native.rnn.named_parameters()} == {"lstm in rnn"}


@pytest.mark.parametrize(
    ("constant", "use"),
    [
        pytest.param(torch.tensor([8.0, 16.0]), lambda c, y: y * c[0], id="an entry"),
        pytest.param([torch.tensor(8.0), torch.ones(1)], lambda c, y: y * c[0] + c[1], id="a list of tensors"),
        pytest.param(torch.tensor([1, 3]), lambda c, y: y[..., c], id="indices"),
        pytest.param({"scale": torch.ones(4)}, lambda c, y: y * c["scale"].view(1, -1, 1, 1), id="in a mapping"),
    ],
)
def test_the_cost_of_a_network_with_a_tensor_that_is_a_plain_attribute(
    constant: object, use: Callable[[object, Tensor], Tensor]
) -> None:
    net = Lambda(lambda m, x: use(m.constant, m.b(m.a(x))), a=conv(8), b=conv(4, 8))  # type: ignore[operator]
    net.constant = constant  # type: ignore[assignment]
    x = torch.randn(2, 3, 8, 8)
    model = at_width(net, x, 0.5)
    assert [model.efficiency(alpha).macs for alpha in (0.0, 1.0)] == [
        36 * 27 * out + 16 * 9 * out * 4 for out in (4, 8)
    ]
    with torch.no_grad(), model.at_alpha(1.0):
        assert torch.equal(model(x), net(x))


def no_registers() -> nn.Module:
    """Register tokens of which there are none."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        tokens = torch.cat([m.registers.expand(x.shape[0], -1, -1), m.embed(x)], 1)  # type: ignore[operator]
        return m.head(tokens.relu())  # type: ignore[operator,return-value]

    return Lambda(forward, registers=nn.Parameter(torch.empty(1, 0, 8)), embed=nn.Linear(6, 8), head=nn.Linear(8, 4))


def no_inputs() -> nn.Module:
    """A layer for extra inputs of which there are none."""
    return Lambda(
        lambda m, x: m.head((m.embed(x) + m.extra(x[..., :0])).relu()),
        embed=nn.Linear(6, 8), extra=nn.Linear(0, 8), head=nn.Linear(8, 4),
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors is a no-op:UserWarning")
@pytest.mark.parametrize("make", [no_registers, no_inputs])
@pytest.mark.parametrize("mode", ["structured", "unstructured", "quantized"])
def test_a_parameter_without_entries(make: Callable[[], nn.Module], mode: str, tmp_path: Path) -> None:
    net, x = make(), torch.randn(2, 5, 6)
    model = SubspaceModel(net, x, mode=mode, subspace="point")
    model.recalibrate([x], alphas=[0.0, 1.0])
    model.eval()
    for alpha in (0.0, 1.0):
        with torch.no_grad(), model.at_alpha(alpha):
            assert torch.equal(model(x), model.materialize(alpha)(x))
    assert 0 < model.efficiency(0.0).size_bytes < model.efficiency(1.0).size_bytes
    model.save(tmp_path / "model.lcs", levels=[0.0, 1.0])
