"""Families of timm, every check; the whole list runs in ``make coverage``."""

import pytest
import timm

from lightning_lcs.model import SubspaceModel
from tests.helpers import BATCH_NORM_WARNING
from tests.models.checks import build, examine, masked_run
from tests.models.families import FAMILIES, SHORTER
from tests.models.mistakes import broken_rules, wrong_slices

pytestmark = pytest.mark.filterwarnings(BATCH_NORM_WARNING)

# Different kinds of layers, one or two of each: what they have that others have not.
FEW = {
    "test_byobnet@32": "three kinds of bottlenecks",
    "edgenext_xx_small@32": "transposed attention",
    "gmlp_ti16_224@224": "gates over places",
    "hgnetv2_b0@32": "many branches joined",
    "lowformer_b0@32": "transposed convolutions in attention",
    "mobilevit_xxs@32": "channels moved into the batch",
    "pit_ti_224@224": "tokens pooled by grouped convolutions",
    "sequencer2d_s@32": "LSTMs",
    "test_nfnet@32": "scaled standardised weights",
    "test_vit@160": "fused attention, position table of another size",
}
# float64, sums in another order.
MASKED = 1e-9


@pytest.mark.parametrize("name", list(FEW), ids=lambda name: name.partition("@")[0])
def test_a_family(name: str) -> None:
    found = examine(*build(f"timm:{name}", **SHORTER.get(f"timm:{name}", {})))
    assert found.identity < MASKED
    assert found.trouble == ""
    assert found.masked is not None
    assert found.masked < MASKED
    assert found.ungraded == []
    assert max(found.params, found.macs) <= 0.42


def test_every_family_is_listed() -> None:
    assert set(FAMILIES) >= set(timm.list_modules())


@pytest.mark.parametrize("name", ["test_vit@160", "test_byobnet@32"])
def test_planted_mistakes_are_noticed(name: str) -> None:
    net, x = build(f"timm:{name}")
    model = SubspaceModel(net, x[:2], subspace="point").eval()
    slices = wrong_slices(model, x[:2], masked_run(model, x[:2]), count=8)
    rules = broken_rules(model, x[:2], count=8)
    assert len(slices) == 8
    assert len(rules) > 4
    assert [what for what, noticed in [*slices, *rules] if not noticed] == []
