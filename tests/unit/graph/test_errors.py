"""What can't be traced is an error that says where in the user's code, and what can be done instead."""

import inspect
import re
import warnings
from collections.abc import Callable

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from lightning_lcs.graph.tracing.errors import TraceError
from lightning_lcs.model import SubspaceModel
from tests.helpers import BATCH_NORM_WARNING, WHOLE_WARNING, Chain, Lambda, relative

pytestmark = [pytest.mark.filterwarnings(BATCH_NORM_WARNING), pytest.mark.filterwarnings(WHOLE_WARNING)]
X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
# The traced graph against the network's own code.
SAME_OPS = 1e-5


class Net(nn.Module):
    """A convolution and a head; subclasses differ in what they do between."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3)
        self.head = nn.Linear(8, 5)


class Decides(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        if x.sum() > 0:  # here
            x = 2 * x
        return self.head(x.mean((2, 3)))


class CutsByItem(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        rows = int(x.abs().max().item()) + 1  # here
        return self.head(x[:, :, :rows].mean((2, 3)))


class LoopsByValue(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        for _ in range(int(x.abs().sum())):  # here
            x = x * 0.9
        return self.head(x.mean((2, 3)))


class LoopsOverSamples(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return torch.stack([self.head(sample.mean((1, 2))) for sample in x])  # here


class StoredBatch(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x.reshape(11, 3, 8, 8))  # here
        return self.head(x.mean((2, 3)))


class DropsSamples(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        x = x[x.mean((1, 2, 3)) > 0]  # here
        return self.head(x.mean((2, 3)))


class LeavesTorch(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        x = torch.from_numpy(x.detach().numpy() + 1)  # here
        return self.head(x.mean((2, 3)))


class Wrong(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.a(x).mean(2))  # here


REFUSED = [Decides, CutsByItem, LoopsByValue, LoopsOverSamples, StoredBatch, DropsSamples, LeavesTorch, Wrong]


def marked(kind: type) -> str:
    """The line of a class that is marked, as errors quote it."""
    lines, first = inspect.getsourcelines(kind)
    number = next(i for i, line in enumerate(lines) if "# here" in line)
    return f"{__file__}:{first + number}: {lines[number].partition('  # here')[0].strip()}"


@pytest.mark.parametrize("kind", REFUSED)
def test_the_error_quotes_the_line_and_says_what_to_do(kind: type[Net], capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(TraceError) as raised:
        SubspaceModel(kind(), torch.randn(11, 3, 8, 8), subspace="point")
    text = str(raised.value)
    assert marked(kind) in text
    assert text.startswith(kind.__name__)
    assert "target=" in text
    assert "unstructured or quantized mode" in text
    # Torch's own message may follow, chained, but is neither in the text nor printed.
    assert len(text.splitlines()) == 1
    assert len(text) < 800
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", [Decides, LeavesTorch])
def test_torch_s_own_error_is_chained(kind: type[Net]) -> None:
    with pytest.raises(TraceError) as raised:
        SubspaceModel(kind(), X, subspace="point")
    assert raised.value.__cause__ is not None


@pytest.mark.parametrize("kind", [Decides, CutsByItem, LoopsByValue, LoopsOverSamples, LeavesTorch])
@pytest.mark.parametrize("mode", ["unstructured", "quantized"])
def test_the_modes_that_the_error_names_do_run_it(kind: type[Net], mode: str) -> None:
    class Larger(kind):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 8, 3), nn.Conv2d(8, 8, 1))

    model = SubspaceModel(Larger(), mode=mode, subspace="point").eval()
    model.recalibrate([X], 2)
    model.set_alpha(0.5)
    assert model(X).shape == (4, 5)


def test_the_line_may_be_in_a_library() -> None:
    net = timm.create_model("resnet10t", num_classes=5)
    net.layer2[0].bn2 = Wrong()
    with pytest.raises(TraceError, match=re.escape(marked(Wrong))):
        SubspaceModel(net, torch.randn(2, 3, 32, 32))
    net.layer2[0].bn2 = nn.Conv2d(9, 9, 1)
    with pytest.raises(TraceError, match=r"timm/models/resnet\.py:\d+: x = self\.bn2"):
        SubspaceModel(net, torch.randn(2, 3, 32, 32))


def test_a_network_of_torch_s_modules_alone_has_a_line_of_torch_s() -> None:
    with pytest.raises(TraceError, match=r"torch/nn/modules/\w+\.py:\d+: "):
        SubspaceModel(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(9, 8, 3)), X, subspace="point")


def test_a_value_of_a_tensor_as_a_number_is_traced() -> None:
    def scaled(m: nn.Module, x: Tensor) -> Tensor:
        x = m.a(x)  # type: ignore[operator]
        return m.head(x.mean((2, 3)) / x.detach().abs().max().item())  # type: ignore[operator,return-value]

    net = Lambda(scaled, a=nn.Conv2d(3, 8, 3), head=nn.Linear(8, 5)).eval()
    model = SubspaceModel(net, X, subspace="point").eval()
    for x in (X, 3 * X):
        with torch.no_grad():
            assert relative(model.materialize(1.0)(x), net(x)) < SAME_OPS


# -- kinds of tensors -------------------------------------------------------------------------------------------------


def quantized_statically() -> nn.Module:
    net: nn.Module = nn.Sequential(
        torch.ao.quantization.QuantStub(), nn.Conv2d(3, 8, 3), nn.Flatten(), torch.ao.quantization.DeQuantStub()
    ).eval()
    net.qconfig = torch.ao.quantization.get_default_qconfig("onednn")
    prepared = torch.ao.quantization.prepare(net)
    prepared(X)
    return torch.ao.quantization.convert(prepared)  # type: ignore[no-any-return]


def quantized_dynamically() -> nn.Module:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(288, 5))
    return torch.ao.quantization.quantize_dynamic(net, {nn.Linear})  # type: ignore[no-any-return]


@pytest.mark.parametrize("make", [quantized_statically, quantized_dynamically])
def test_a_quantized_network_is_refused(make: Callable[[], nn.Module]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch.ao, which is deprecated
        net = make()
    with pytest.raises(ValueError, match=r"Sequential is quantized already \(\d.* is of torch\.ao.*floating point"):
        SubspaceModel(net, subspace="point")


@pytest.mark.parametrize("holder", ["parameter", "buffer"])
def test_complex_tensors_are_refused(holder: str) -> None:
    net = Chain()
    value = torch.randn(4, dtype=torch.cfloat)
    if holder == "parameter":
        net.head.extra = nn.Parameter(value)
    else:
        net.head.register_buffer("extra", value)
    with pytest.raises(
        ValueError, match=r"head\.extra of Chain is complex \(torch\.complex64\).*view_as_real.*target="
    ):
        SubspaceModel(net, subspace="point")


def test_complex_inputs_and_results_are_sliced_as_others() -> None:
    def spectrum(m: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        x = m.b(m.a(x.abs()).relu())  # type: ignore[operator]
        return m.head(x.mean((2, 3))), torch.fft.rfft2(m.c(x))  # type: ignore[operator]

    net = Lambda(
        spectrum, a=nn.Conv2d(3, 8, 3), b=nn.Conv2d(8, 8, 3), c=nn.Conv2d(8, 2, 1), head=nn.Linear(8, 5)
    ).train()
    x = torch.complex(X, -X)
    model = SubspaceModel(net, x, subspace="point").eval()
    with torch.no_grad():
        for ours, expected in zip(model.materialize(1.0)(x), net(x), strict=True):
            assert relative(ours, expected) < SAME_OPS
        model.set_alpha(0.0)
        assert model(x)[1].is_complex()
    assert model.efficiency(0.0).params < 0.5 * model.efficiency(1.0).params


def test_whole_numbers_as_inputs_are_sliced_as_others() -> None:
    net = nn.Sequential(nn.Embedding(10, 8), nn.Flatten(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 5)).eval()
    x = torch.randint(0, 10, (3, 4), generator=torch.Generator().manual_seed(0))
    model = SubspaceModel(net, x, subspace="point").eval()
    with torch.no_grad():
        assert relative(model.materialize(1.0)(x), net(x)) < SAME_OPS
        model.set_alpha(0.0)
        assert model(x).shape == (3, 5)
    assert model.efficiency(0.0).params < 0.5 * model.efficiency(1.0).params


def test_a_call_without_a_tensor_is_refused() -> None:
    net = Lambda(lambda m, count: m.head(torch.ones(count, 8)), head=nn.Linear(8, 5))
    model = SubspaceModel(net, subspace="point")
    model.set_alpha(0.5)
    with pytest.raises(TraceError, match=r"called without a tensor \(.*\): there is no batch dimension.*target="):
        model(3)


def test_parameters_without_values_are_refused_until_they_have_some() -> None:
    model = SubspaceModel(Chain().to("meta"), subspace="point").eval()
    model.set_alpha(0.5)
    with pytest.raises(TraceError, match=r"conv1\.weight of Chain is on the device 'meta'.*to_empty.*load_state_dict"):
        model(X)
    model.to_empty(device="cpu")
    model.module.load_state_dict(Chain().state_dict())
    assert model(X).shape == (4, 5)


def test_lazy_layers_are_refused_until_they_have_run() -> None:
    net = nn.Sequential(nn.LazyConv2d(8, 3), nn.ReLU(), nn.LazyConv2d(8, 3), nn.Flatten(), nn.LazyLinear(5)).eval()
    model = SubspaceModel(net, subspace="point").eval()
    with model.at_alpha(0.5), pytest.raises(TraceError, match=r"0\.weight of Sequential has no shape yet.*alpha = 1"):
        model(X)
    model(X)
    with model.at_alpha(0.5):
        assert model(X).shape == (4, 5)


def test_a_network_without_parameters_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Sequential has no parameters, so there is nothing to compress.*target="):
        SubspaceModel(nn.Sequential(nn.ReLU(), nn.Flatten()), subspace="point")


def test_a_line_of_torchvision_is_not_taken_for_torchs() -> None:
    net = torchvision.models.get_model("squeezenet1_1", weights=None, num_classes=3)
    with pytest.raises(TraceError, match=r"torchvision/models/squeezenet\.py:\d+: x = self\.features\(x\)"):
        SubspaceModel(net, X, subspace="point")


def test_the_nodes_of_a_graph_are_no_batch() -> None:
    def messages(m: nn.Module, nodes: Tensor, edges: Tensor) -> Tensor:
        return m.head(torch.zeros_like(nodes).index_add(0, edges[1], nodes[edges[0]]))  # type: ignore[operator]

    net = Lambda(messages, head=nn.Linear(6, 3))
    with pytest.raises(TraceError, match=r"does not run on two samples.*such as the nodes of a graph, .*unstructured"):
        SubspaceModel(net, (torch.randn(7, 6), torch.tensor([[1, 5], [4, 6]])), subspace="point")
