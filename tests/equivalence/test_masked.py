"""Sliced networks against the full-size network with the removed channels masked; see masking.py."""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from lightning_lcs.graph.channels.plan import Indices, PlanAtWidth
from lightning_lcs.model import SubspaceModel
from tests.equivalence.masking import (
    MaskMismatchError,
    Masks,
    Survivors,
    kept_axis,
    kept_pieces,
    masked_forward,
    outer,
    prefix_masks,
    removed,
)
from tests.helpers import BATCH_NORM_WARNING, Chain, at_width, relative, scramble

pytestmark = pytest.mark.filterwarnings(BATCH_NORM_WARNING)

# float32, up to 50 layers deep, sums of up to 4,608 products in another order: up to 9e-7 was seen.
SLICED = 1e-5
ALPHAS = (0.0, 0.4)


def network(name: str, **options: Any) -> nn.Module:
    return scramble(timm.create_model(name, num_classes=10, **options)).eval()


def images(size: int = 32) -> Tensor:
    return torch.randn(3, 3, size, size)


def same_names(net: nn.Module, small: nn.Module, copies: Callable[[str, int], int]) -> dict[str, Tensor]:
    """Masks by shape, where axis ``k`` of a tensor keeps a prefix in each of ``copies(name, k)`` equal pieces."""
    shapes = {name: value.shape for name, value in small.state_dict().items()}
    masks = {}
    for name, value in net.state_dict().items():
        if name in shapes:
            sizes = zip(value.shape, shapes[name], strict=True)
            masks[name] = outer([kept_axis(*size, copies(name, axis)) for axis, size in enumerate(sizes)])
    return masks


def regnet_masks(net: nn.Module, small: nn.Module) -> dict[str, Tensor]:
    """The second convolution of a block is grouped, so that its inputs and outputs keep a prefix per group."""

    def copies(name: str, axis: int) -> int:
        path = name.split(".")
        grouped = path[2] in ("conv1", "conv2") or path[2:4] == ["se", "fc2"] if len(path) > 3 else False
        reads_grouped = path[2] == "conv3" or path[2:4] == ["se", "fc1"] if len(path) > 3 else False
        if (grouped and axis == 0) or (reads_grouped and axis == 1 and not name.endswith("bn.weight")):
            return net.get_submodule(".".join(path[:2])).conv2.conv.groups  # type: ignore[union-attr,return-value]
        return 1

    return same_names(net, small, copies)


def group_norm_masks(net: nn.Module, small: nn.Module) -> dict[str, Tensor]:
    """Every hidden channel passes a group norm of 32 groups: whatever shrinks keeps a prefix per group."""
    shapes = {name: value.shape for name, value in small.state_dict().items()}

    def copies(name: str, axis: int) -> int:
        return 32 if shapes[name][axis] < net.state_dict()[name].shape[axis] else 1

    return same_names(net, small, copies)


def densenet_masks(net: nn.Module, small: nn.Module) -> dict[str, Tensor]:
    """What enters a layer is the block's input and the outputs of the layers before it, a prefix of each."""
    full, cut = net.state_dict(), small.state_dict()

    def pieces(state: dict[str, Tensor], block: int, layers: int) -> list[int]:
        first = "features.conv0.weight" if block == 1 else f"features.transition{block - 1}.conv.weight"
        grown = [f"features.denseblock{block}.denselayer{k}.conv2.weight" for k in range(1, layers + 1)]
        return [state[name].shape[0] for name in (first, *grown)]

    def joined(name: str) -> tuple[int, int] | None:
        path = name.split(".")
        depth = [len(net.get_submodule(f"features.denseblock{block}")) for block in range(1, 5)]  # type: ignore[arg-type]
        if path[1].startswith("denseblock") and path[3] in ("norm1", "conv1"):
            return int(path[1].removeprefix("denseblock")), int(path[2].removeprefix("denselayer")) - 1
        if path[1].startswith("transition"):
            block = int(path[1].removeprefix("transition"))
            return block, depth[block - 1]
        return (4, depth[3]) if path[1] == "norm5" or path[0] == "classifier" else None

    masks = prefix_masks(net, small)
    for name in masks:
        where = joined(name)
        axis = 1 if full[name].ndim > 1 else 0
        if where is None or name == "classifier.bias" or full[name].ndim == 0:
            continue
        axes = [kept_axis(*sizes) for sizes in zip(full[name].shape, cut[name].shape, strict=True)]
        axes[axis] = kept_pieces(pieces(full, *where), pieces(cut, *where))
        masks[name] = outer(axes)
    return masks


BATCH_NORM_ONLY = [
    pytest.param("resnet10t", {}, prefix_masks, id="resnet10t"),
    pytest.param("resnet18", {}, prefix_masks, id="resnet18"),
    pytest.param("resnetv2_50", {}, prefix_masks, id="resnetv2_50"),
    pytest.param("mobilenetv2_100", {}, prefix_masks, id="mobilenetv2_100"),
    # The head of 4,096 channels and 100 million parameters, which nothing here depends on, is made narrower.
    pytest.param("vgg11_bn", {"mlp_ratio": 1 / 64}, prefix_masks, id="vgg11_bn"),
    pytest.param("regnetx_002", {}, regnet_masks, id="regnetx_002"),
    # The same blocks, fewer of each: tracing 121 layers takes as long as all the other networks here.
    pytest.param("densenet121", {"block_config": (3, 4, 3, 2)}, densenet_masks, id="densenet"),
]
OTHER_NORMS = [
    pytest.param("resnetv2_50x1_bit", {}, group_norm_masks, id="resnetv2_50x1_bit"),
    pytest.param("convnext_atto", {}, prefix_masks, id="convnext_atto"),
    pytest.param("convnextv2_atto", {}, prefix_masks, id="convnextv2_atto"),
    pytest.param("regnety_002", {}, regnet_masks, id="regnety_002"),
    pytest.param("mobilenetv3_small_100", {}, prefix_masks, id="mobilenetv3_small_100"),
]
Rule = Callable[[nn.Module, nn.Module], dict[str, Tensor]]


@pytest.mark.parametrize(("name", "options", "rule"), BATCH_NORM_ONLY)
def test_batch_norm_networks_equal_the_full_one_with_removed_channels_zeroed(
    name: str, options: dict[str, Any], rule: Rule
) -> None:
    net, x = network(name, **options), images()
    model = SubspaceModel(net, x, subspace="point").eval()
    for alpha in ALPHAS:
        small = model.materialize(alpha)
        masks = rule(net, small)
        with torch.no_grad():
            ours, zeroed = small(x), removed(net, masks, mark=0.0)(x)
        assert relative(ours, zeroed) < SLICED
        assert relative(ours, masked_forward(net, masks, x)) < SLICED


@pytest.mark.parametrize(("name", "options", "rule"), OTHER_NORMS)
def test_other_norms_equal_the_full_network_with_statistics_over_kept_channels(
    name: str, options: dict[str, Any], rule: Rule
) -> None:
    net, x = network(name, **options), images()
    model = SubspaceModel(net, x, subspace="point").eval()
    for alpha in ALPHAS:
        small = model.materialize(alpha)
        with torch.no_grad():
            assert relative(small(x), masked_forward(net, rule(net, small), x)) < SLICED


@pytest.mark.parametrize(
    ("name", "rule"), [("resnet10t", prefix_masks), ("regnety_002", regnet_masks), ("test_byobnet", None)]
)
def test_masks_by_shape_are_those_of_numbered_entries(name: str, rule: Rule | None) -> None:
    net, x = network(name), images()
    small = SubspaceModel(net, x, subspace="point").eval().materialize(0.4)
    masks = Survivors(net, x).masks(0.4)
    if rule is not None:
        expected = rule(net, small)
        assert expected.keys() == masks.keys()
        assert [name for name in masks if not torch.equal(masks[name], expected[name])] == []
    with torch.no_grad():
        assert relative(small(x), masked_forward(net, masks, x)) < SLICED


# -- negative controls: one tensor sliced wrongly must be detected ----------------------------------------------------


def cut_at_the_end(monkeypatch: pytest.MonkeyPatch, name: str, axis: int, size: int) -> None:
    """Let the plan keep a suffix of one axis of one tensor, where it would keep a prefix."""
    right = PlanAtWidth.of

    def wrong(self: PlanAtWidth, asked: str) -> Any:
        selection = list(right(self, asked))
        if asked == name:
            kept = selection[axis]
            assert isinstance(kept, int)
            selection[axis] = Indices(range(size - kept, size))
        return tuple(selection)

    monkeypatch.setattr(PlanAtWidth, "of", wrong)


def detected(net: nn.Module, small: nn.Module, masks: Masks, x: Tensor) -> tuple[bool, bool]:
    """Whether zeroing and masking notice that the sliced network is not the masked one."""
    with torch.no_grad():
        by_zeroing = relative(small(x), removed(net, masks, mark=0.0)(x)) > 100 * SLICED
        try:
            by_masking = relative(small(x), masked_forward(net, masks, x)) > 100 * SLICED
        except MaskMismatchError:
            by_masking = True
    return by_zeroing, by_masking


WRONG = [
    ("conv1.weight", 0),
    ("bn1.weight", 0),
    ("bn1.bias", 0),
    ("bn1.running_mean", 0),
    ("bn1.running_var", 0),
    ("conv2.weight", 0),
    ("conv2.weight", 1),
    ("conv2.bias", 0),
    ("head.weight", 1),
]


@pytest.mark.parametrize(("name", "axis"), WRONG)
def test_a_tensor_sliced_wrongly_is_detected(monkeypatch: pytest.MonkeyPatch, name: str, axis: int) -> None:
    net, x = scramble(Chain()).eval(), images(8)
    model = at_width(net, x, 0.5)
    masks = prefix_masks(net, model.materialize(0.0))
    assert detected(net, model.materialize(0.0), masks, x) == (False, False)
    cut_at_the_end(monkeypatch, name, axis, net.state_dict()[name].shape[axis])
    assert detected(net, model.materialize(0.0), masks, x) == (True, True)


@pytest.mark.parametrize(("name", "axis"), WRONG)
def test_masks_that_follow_a_wrong_slice_do_not_fit_together(
    monkeypatch: pytest.MonkeyPatch, name: str, axis: int
) -> None:
    net, x = scramble(Chain()).eval(), images(8)
    cut_at_the_end(monkeypatch, name, axis, net.state_dict()[name].shape[axis])
    with pytest.raises(MaskMismatchError):
        masked_forward(net, Survivors(net, x, mode={"min_width": 0.5}).masks(0.0), x)


@pytest.mark.parametrize("name", ["layer2.0.bn1.bias", "layer3.0.conv2.weight", "layer4.0.downsample.1.weight"])
def test_a_tensor_sliced_wrongly_deep_inside_a_network_is_detected(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    net, x = network("resnet10t"), images()
    model = SubspaceModel(net, x, subspace="point").eval()
    masks = prefix_masks(net, model.materialize(0.4))
    cut_at_the_end(monkeypatch, name, 0, net.state_dict()[name].shape[0])
    assert detected(net, model.materialize(0.4), masks, x) == (True, True)


def test_a_kept_channel_too_many_or_too_few_is_detected() -> None:
    net, x = scramble(Chain()).eval(), images(8)
    model = at_width(net, x, 0.5)
    for other in (at_width(net, x, 0.4), at_width(net, x, 0.6)):
        assert detected(net, other.materialize(0.0), prefix_masks(net, model.materialize(0.0)), x) == (True, True)
