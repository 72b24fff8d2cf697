"""Files of unstructured and quantized subspaces, which are loaded into the user's own network."""

import pytest
import torch
from torch import nn

from lightning_lcs import Quantized, SubspaceModel, Unstructured
from tests.helpers import Chain, Mlp, relative, scramble
from tests.unit.io.lcs_files import rewritten

# The same operations on equal tensors, aligned otherwise in memory, by another path through the code.
SAME_OPS = 1e-5


class Untraceable(nn.Module):
    """Its forward depends on the values of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Chain(8, 12)

    def forward(self, x):
        return self.net(x) if x.sum() > 0 else self.net(-x)


def trained(mode, subspace):
    torch.manual_seed(3)
    model = SubspaceModel(scramble(Untraceable()), mode=mode, subspace=subspace, line={"start": "independent"})
    with torch.no_grad():
        for w0, _ in model.endpoint_pairs():
            w0.add_(0.1 * torch.randn_like(w0))
    model.start_endpoints()
    model.eval().recalibrate([torch.randn(8, 3, 8, 8)], [0.0, 0.5, 1.0])
    return model


@pytest.mark.parametrize("subspace", ["line", "point"])
@pytest.mark.parametrize("mode", ["unstructured", "quantized", Unstructured(max_sparsity=0.9), Quantized(max_bits=6)])
def test_every_level_comes_back_into_the_users_module(tmp_path, mode, subspace):
    model = trained(mode, subspace)
    model.save(tmp_path / "m.lcs", class_names=["a"])
    loaded = SubspaceModel.load(tmp_path / "m.lcs", module=Untraceable())
    x = torch.randn(4, 3, 8, 8)
    with torch.no_grad():
        for alpha in (0.0, 0.3, 0.5, 1.0):
            with model.at_alpha(alpha), loaded.at_alpha(alpha):
                assert relative(model(x), loaded(x)) < SAME_OPS
    assert loaded.class_names == ("a",)
    assert len({level.size_bytes for level in loaded.levels}) == len(loaded.levels)
    assert loaded.set_level(loaded.levels[0].name).alpha == loaded.alpha


@pytest.fixture
def file(tmp_path):
    trained("unstructured", "line").save(tmp_path / "m.lcs")
    return tmp_path / "m.lcs"


def test_without_the_module_the_error_asks_for_it(file):
    with pytest.raises(ValueError, match=r"unstructured.*module="):
        SubspaceModel.load(file)


def test_a_module_for_a_structured_file_is_refused(tmp_path):
    SubspaceModel(Mlp(), torch.randn(2, 6), subspace="point").save(tmp_path / "s.lcs")
    with pytest.raises(ValueError, match="holds its network"):
        SubspaceModel.load(tmp_path / "s.lcs", module=Mlp())


@pytest.mark.parametrize("module", [Chain(8, 12), Mlp(), nn.Linear(3, 2)])
def test_another_architecture_is_refused_and_left_as_it_was(file, module):
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(ValueError, match="different tensors"):
        SubspaceModel.load(file, module=module)
    assert before.keys() == module.state_dict().keys()
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert not any("endpoint" in name for name, _ in module.named_modules())


@pytest.mark.parametrize(
    "change",
    [
        lambda h: h.update(line_parameters="all"),
        lambda h: h.update(mode={"name": "unstructured", "scope": "nothing"}),
        lambda h: h.update(statistics=[0.0]),
        lambda h: h.update(shapes={}),
        lambda h: h.update(norm="group"),
        lambda h: h.update(subspace="circle"),
    ],
)
def test_a_header_that_does_not_fit_is_refused_and_the_module_left_as_it_was(file, tmp_path, change):
    module = Untraceable()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(ValueError, match="can't be loaded"):
        SubspaceModel.load(rewritten(file, tmp_path / "bad.lcs", change), module=module)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert before.keys() == module.state_dict().keys()


def test_converted_norms_are_converted_again(tmp_path):
    torch.manual_seed(0)
    model = SubspaceModel(Untraceable(), mode="unstructured", subspace="point", norm="instance").eval()
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad(), model.at_alpha(0.5):
        expected = model(x)
        model.save(tmp_path / "m.lcs", levels=[0.5])
        loaded = SubspaceModel.load(tmp_path / "m.lcs", module=Untraceable())
        loaded.set_alpha(0.5)
        assert relative(loaded(x), expected) < SAME_OPS
