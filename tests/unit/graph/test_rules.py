"""Each group of rules on a tiny network of its own, against the masked full-size network."""

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from lightning_lcs.model import SubspaceModel
from tests.equivalence.masking import Survivors, masked_forward
from tests.helpers import BATCH_NORM_WARNING, WHOLE_WARNING, relative, scramble
from tests.unit.graph.cases import CASES, Case

pytestmark = [pytest.mark.filterwarnings(BATCH_NORM_WARNING), pytest.mark.filterwarnings(WHOLE_WARNING)]

# float64 throughout: sums of at most a few hundred products in another order.
SLICED = 1e-12
# Widths .25, .5 and .8.
ALPHAS = (0.0, 1 / 3, 11 / 15)


class KeptWhole(nn.Module):
    """An op without a rule: every channel that passes it is kept."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flip(1).flip(1)


@dataclasses.dataclass
class Prepared:
    case: Case
    net: nn.Module
    x: Tensor
    model: SubspaceModel
    survivors: Survivors


def prepare(name: str, whole: bool) -> Prepared:
    torch.manual_seed(0)
    case = CASES[name]
    net, x = case.make(), torch.randn(case.image, dtype=torch.float64)
    if whole:
        net.a = nn.Sequential(net.a, KeptWhole())  # type: ignore[arg-type]
    net = scramble(net).eval().double()
    return Prepared(case, net, x, SubspaceModel(net, x, subspace="point").eval(), Survivors(net, x))


@pytest.fixture(scope="module", params=CASES)
def prepared(request: pytest.FixtureRequest) -> Prepared:
    return prepare(request.param, whole=False)


@pytest.mark.parametrize("name", CASES)
def test_what_meets_channels_that_are_kept_whole_is_kept_whole_with_them(name: str) -> None:
    # Tensors that are cut alike by chance, because their sizes are equal, come apart here.
    prepared = prepare(name, whole=True)
    with torch.no_grad():
        ours = prepared.model.materialize(1 / 3)(prepared.x)
        masks = prepared.survivors.masks(1 / 3)
        assert relative(ours, masked_forward(prepared.net, masks, prepared.x)) < SLICED


def test_sliced_network_is_the_masked_one(prepared: Prepared) -> None:
    for alpha in ALPHAS:
        masks = prepared.survivors.masks(alpha)
        with torch.no_grad():
            ours = prepared.model.materialize(alpha)(prepared.x)
            assert relative(ours, masked_forward(prepared.net, masks, prepared.x)) < SLICED


def test_what_is_left_at_half_width(prepared: Prepared) -> None:
    assert prepared.model.mode.width(1 / 3) == 0.5
    small = prepared.model.materialize(1 / 3).state_dict()
    left = {name: tuple(small[name].shape) for name in prepared.case.shapes}
    assert left == prepared.case.shapes
    masks = prepared.survivors.masks(1 / 3)
    for (name, axis), indices in prepared.case.kept.items():
        kept = masks[name].transpose(0, axis).flatten(1).any(1) if masks[name].ndim > 1 else masks[name]
        assert kept.nonzero().flatten().tolist() == indices


def test_at_width_one_the_graph_is_the_network(prepared: Prepared) -> None:
    with torch.no_grad():
        assert relative(prepared.model.materialize(1.0)(prepared.x), prepared.net(prepared.x)) < SLICED


def test_running_at_a_level_is_running_its_materialized_network(prepared: Prepared) -> None:
    with torch.no_grad(), prepared.model.at_alpha(0.4):
        assert relative(prepared.model(prepared.x), prepared.model.materialize(0.4)(prepared.x)) < SLICED
