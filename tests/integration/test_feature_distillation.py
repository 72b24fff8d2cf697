"""Distillation of features: what modules inside the network return, at a level and at full width."""

import copy

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_lcs import Distillation, Loss, SubspaceModel
from tests.integration.support import Net, group_norm
from tests.integration.test_distillation import HALF_LINE, RUN_ON, SAME, WEIGHT, Doubles, step

pytestmark = pytest.mark.filterwarnings("ignore:no validation data")
MODULES = ["norm1", "conv2"]


def run(net: Net, channels: int, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """A network with the first channels of each layer, written out: its logits, and what two modules return."""
    k = channels
    x = functional.conv2d(x, net.conv1.weight[:k], padding=1)
    first = functional.group_norm(x, 1, net.norm1.weight[:k], net.norm1.bias[:k])
    second = functional.conv2d(first.relu(), net.conv2.weight[:k, :k], net.conv2.bias[:k], stride=2, padding=1)
    x = functional.group_norm(second, 1, net.norm2.weight[:k], net.norm2.bias[:k]).relu().mean((2, 3))
    return functional.linear(x, net.head.weight[:, :k], net.head.bias), {"norm1": first, "conv2": second}


def distance_by_hand(kind: str, ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for path, mine in ours.items():
        other = theirs[path].detach()[:, : mine.shape[1]]
        if kind == "mse":
            total = total + (mine - other).square().mean()
        else:
            products = (mine * other).sum((1, 2, 3)) / (mine.flatten(1).norm(dim=1) * other.flatten(1).norm(dim=1))
            total = total + 1.0 - products.mean()
    return total / len(ours)


@pytest.mark.parametrize("kind", ["mse", "cosine"])
@pytest.mark.parametrize("external", [False, True])
def test_narrow_levels_learn_the_channels_that_they_keep(tmp_path, kind, external):
    torch.manual_seed(0)
    module = Doubles()
    teacher = Net(group_norm).double() if external else None
    twin = copy.deepcopy(module.net)
    options = Distillation(loss="features", modules=MODULES, distance=kind, weight=WEIGHT, teacher=teacher)
    step(tmp_path, module, mode="structured", subspace="point", sampling=HALF_LINE, loss={"distillation": options})
    for channels, (images, labels) in zip((2, 5, 8), RUN_ON[-3:], strict=True):
        logits, features = run(twin, channels, images)
        loss = functional.cross_entropy(logits, labels)
        if channels < 8 or external:
            lesson = run(twin if teacher is None else teacher, 8, images)[1]
            loss = (1 - WEIGHT) * loss + WEIGHT * distance_by_hand(kind, features, lesson)
        (loss * (0.5 if channels == 8 else 0.25)).backward()
    for name, value in module.net.named_parameters():
        expected = twin.get_parameter(name) - twin.get_parameter(name).grad
        assert (value - expected).abs().max() <= SAME * expected.abs().max(), name


class Returns(nn.Module):
    """Returns what a module inside of it returns, beside its logits."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Net(group_norm)

    def forward(self, x):
        second = self.inner.conv2(self.inner.norm1(self.inner.conv1(x)).relu())
        return self.inner.head(self.inner.norm2(second).relu().mean((2, 3))), second


class OfTwo(Doubles):
    def training_step(self, batch, batch_idx):
        images, labels = batch
        return self.loss(self.net(images.double())[0], labels)


@pytest.mark.parametrize("mode", ["unstructured", "quantized"])
def test_features_are_as_if_the_network_returned_them(tmp_path, mode):
    trained = []
    for options in (
        {"loss": "features", "modules": ["inner.conv2"]},
        {"loss": lambda student, teacher: functional.mse_loss(student[1], teacher[1])},
    ):
        torch.manual_seed(0)
        trained.append(OfTwo(Returns()))
        sampling = {**HALF_LINE, "warmup": 0.0}
        step(tmp_path, trained[-1], mode=mode, subspace="point", sampling=sampling, loss={"distillation": options})
    for one, other in zip(trained[0].parameters(), trained[1].parameters(), strict=True):
        assert (one - other).abs().max() <= SAME * other.abs().max()


@pytest.mark.parametrize(
    ("name", "paths"),
    [
        ("resnet18", ["bn1", "layer2.0", "layer3.1.bn2", "layer4"]),  # some are changed in place afterwards
        ("mobilenetv3_small_050", ["blocks.0", "blocks.3", "conv_head"]),
        ("densenet121", ["features.denseblock1", "features.transition1"]),  # with concatenated channels
        ("vit_tiny_patch16_224", ["blocks.0", "blocks.5.attn", "norm"]),
    ],
)
def test_the_graph_finds_what_modules_return(name, paths):
    size = 224 if name.endswith("224") else 64
    torch.manual_seed(0)
    small = {"block_config": (2, 2, 2, 2), "growth_rate": 8} if name == "densenet121" else {}
    net = timm.create_model(name, num_classes=10, **small).train()
    for parameter in net.parameters():  # timm starts some scales at 0
        nn.init.normal_(parameter, std=0.05) if parameter.ndim < 2 else None
    images = torch.randn(2, 3, size, size)
    model = SubspaceModel(net, images, mode="structured", subspace="point").train()
    found = []
    # The level just below alpha = 1 has all channels, and runs as a graph.
    for alpha in (1.0, 1.0 - 1e-9, 0.0):
        with torch.no_grad(), model.runner.training_level(alpha), model.runner.recording(paths) as calls:
            model(images)
        found.append(calls[-1].features)
    own, graph, narrow = found
    for path in paths:
        scale = own[path].value.abs().max()
        assert (own[path].value - graph[path].value).abs().max() <= 1e-5 * scale, path
        assert narrow[path].value.numel() < 0.5 * own[path].value.numel(), path


class NotATensor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.twice = Returns()

    def forward(self, x):
        return self.twice(x)[0]


@pytest.mark.parametrize(
    ("net", "modules", "mode", "message"),
    [
        (None, ["conv3"], "structured", r"names 'conv3', which the network, Net, does not have \(did you mean 'conv"),
        (None, [""], "structured", r"names '', which the network.*paths of modules within it, such as 'conv1'"),
        (NotATensor, ["twice"], "unstructured", "features of 'twice' are not a tensor, but of type tuple"),
    ],
)
@pytest.mark.parametrize("start", [0.0, 0.9])
def test_modules_without_features_are_named(tmp_path, net, modules, mode, message, start):
    options = {"distillation": {"loss": "features", "modules": modules, "start": start}}
    sampling = {"sampler": [0.0, 1.0], **({} if mode == "structured" else {"warmup": 0.0})}
    with pytest.raises(ValueError, match=message):
        step(tmp_path, Doubles(net and net()), mode=mode, subspace="point", sampling=sampling, loss=options)


def test_a_teachers_features_have_the_shape_of_the_networks(tmp_path):
    teacher = Net(group_norm, first=4).double()
    options = Distillation(loss="features", modules={"norm1": "norm1"}, teacher=teacher)
    with pytest.raises(ValueError, match=r"'norm1' have shape \(16, 5, 8, 8\), and those of the teacher \(16, 4"):
        step(tmp_path, Doubles(), subspace="point", sampling=HALF_LINE, loss={"distillation": options})
    options = Distillation(loss="features", modules={"norm1": "norms"}, teacher=teacher)
    with pytest.raises(ValueError, match=r"names 'norms', which the teacher, Net, does not have"):
        step(tmp_path, Doubles(), subspace="point", sampling=HALF_LINE, loss={"distillation": options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "features"}, r"modules=\(\)\) do not go together.*give both"),
        ({"modules": ["layer3"]}, r"loss='logits', modules=\['layer3'\]\) do not go together"),
        ({"loss": "features", "modules": "layer3"}, r"modules='layer3'\) is one path; give a list, \['layer3'\]"),
        ({"distance": "cosine"}, r"distance='cosine'\) is of features, and loss is 'logits'"),
        ({"loss": "features", "modules": 5}, r"modules=5\) is not a list of paths"),
        ({"loss": "features", "modules": {"a": "b"}}, r"names modules of a teacher, and there is none"),
        ({"loss": "features", "modules": ["a"], "distance": "l1"}, r"distance='l1'\) is not known; choose 'mse'"),
    ],
)
def test_options_of_features(options, message):
    with pytest.raises(ValueError, match=message):
        Loss(distillation=options)
