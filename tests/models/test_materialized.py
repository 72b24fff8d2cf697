"""Networks cut from families of all kinds go where networks go, and need this package no longer."""

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lightning_lcs.model import SubspaceModel
from tests.helpers import BATCH_NORM_WARNING, relative
from tests.models.checks import HALF, build
from tests.models.families import SHORTER

pytestmark = pytest.mark.filterwarnings(BATCH_NORM_WARNING)

FAMILIES = [
    "timm:test_efficientnet@32",
    "timm:edgenext_xx_small@32",
    "timm:test_vit@160",
    "torchvision:shufflenet_v2_x0_5@64",
]
# Compiling takes longest; one with convolutions and one with attention.
COMPILED = ("timm:test_vit@160", "torchvision:shufflenet_v2_x0_5@64")
SAME_OPS = 1e-12  # in float64: copies, other threads, other batch sizes, compiled code
# Their code makes tensors of the type that they were traced in: lower precision is another network.
MAKE_TENSORS = ("edgenext", "test_vit")
SINGLE, HALF_PRECISION = 1e-4, 0.15  # float32 and bfloat16 against float64, through tens of layers

OPEN_WITHOUT_THE_PACKAGE = """
import pickle, sys
class Refuses:
    def find_spec(self, name, *rest):
        if name.partition(".")[0] in ("lightning_lcs", "timm", "lightning", "torchvision"):
            raise ImportError(name + " is not here")
sys.meta_path.insert(0, Refuses())
import torch
for path in sys.argv[1:]:
    with open(path, "rb") as file:
        net, x, expected = pickle.load(file)
    for _ in range(2):
        with torch.no_grad():
            assert (net(x) - expected).abs().max() < 1e-12 * expected.abs().max(), path  # other threads
        try:
            net.train()
        except RuntimeError as error:
            assert "was materialized for evaluation" in str(error)
        else:
            raise AssertionError(path)
        net = pickle.loads(pickle.dumps(net))  # and on to the next
assert not any(name.partition(".")[0] == "lightning_lcs" for name in sys.modules)
"""


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda spec: spec.partition(":")[2].partition("@")[0])
def cut(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, SubspaceModel, Tensor]:
    net, x = build(request.param, **SHORTER.get(request.param, {}))
    return request.param, SubspaceModel(net, x[:2], subspace="point").eval(), x


def pickled(small: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(small))  # type: ignore[no-any-return]


@torch.no_grad()
def test_it_goes_where_networks_go(cut: tuple[str, SubspaceModel, Tensor]) -> None:
    name, model, x = cut
    small = model.materialize(HALF)
    assert "lightning_lcs" not in small.code  # type: ignore[operator]
    expected = small(x)
    for twin in (copy.deepcopy(small), pickled(small), pickled(copy.deepcopy(small))):
        assert relative(twin(x), expected) < SAME_OPS
        assert twin.state_dict().keys() == small.state_dict().keys()
        assert str(twin.graph) == str(small.graph)
    batch = {0: torch.export.Dim("batch", min=2, max=64)}
    exported = torch.export.export(small, (x,), dynamic_shapes=(batch,), strict=False)
    assert relative(exported.module()(x[:2]), expected[:2]) < SAME_OPS
    if name not in COMPILED:
        return
    torch._dynamo.reset()
    assert relative(torch.compile(small, backend="eager")(x), expected) < SAME_OPS
    torch._dynamo.reset()


@torch.no_grad()
def test_another_process_opens_it_without_the_package(tmp_path: Path) -> None:
    paths = []
    for spec in ("timm:test_convnext@32", "torchvision:shufflenet_v2_x0_5@64"):
        net, x = build(spec)
        small = SubspaceModel(net, x[:2], subspace="point").eval().materialize(HALF)
        paths.append(tmp_path / f"{len(paths)}.pickle")
        paths[-1].write_bytes(pickle.dumps((small, x, small(x))))
    command = [sys.executable, "-c", OPEN_WITHOUT_THE_PACKAGE, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={}, check=False)
    assert done.returncode == 0, done.stderr


@torch.no_grad()
def test_it_moves_to_other_numbers(cut: tuple[str, SubspaceModel, Tensor]) -> None:
    name, model, x = cut
    expected = model.materialize(HALF)(x)
    # Moved before it is cut, any network runs.
    single = copy.deepcopy(model).to(torch.float32).materialize(HALF)
    assert relative(single(x.float()).double(), expected) < SINGLE
    short = copy.deepcopy(model).to(torch.bfloat16).materialize(HALF)(x.bfloat16())
    assert short.dtype == torch.bfloat16
    assert relative(short.double(), expected) < HALF_PRECISION
    # To more digits, cut ones go, too; to fewer, unless their code makes tensors.
    assert relative(copy.deepcopy(single).double()(x), expected) < SINGLE
    if any(part in name for part in MAKE_TENSORS):
        before = {key: value.dtype for key, value in single.state_dict().items()}
        with pytest.raises(RuntimeError, match=r"materialized in torch\.float32.*model\.to\(torch\.bfloat16\)\.mat"):
            single.to(torch.bfloat16)
        assert {key: value.dtype for key, value in single.state_dict().items()} == before
        assert relative(single(x.float()).double(), expected) < SINGLE
    else:
        assert relative(single.to(torch.bfloat16)(x.bfloat16()).double(), expected) < HALF_PRECISION
