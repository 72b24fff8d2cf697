"""Rules that users register: an op of their own is sliced, and a file holds it where they say so."""

import pytest
import torch
from torch import Tensor, nn

from lightning_lcs.graph.channels.rules import RULES, register_rule, rule
from lightning_lcs.graph.channels.rules.registry import IN_FILES
from lightning_lcs.model import SubspaceModel
from tests.helpers import WHOLE_WARNING


@torch.library.custom_op("lcs_tests::swish", mutates_args=())
def swish(x: Tensor) -> Tensor:
    return x * x.sigmoid()


@swish.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def _backward(ctx, grad):
    (x,) = ctx.saved_tensors
    share = x.sigmoid()
    return grad * (share + x * share * (1 - share))


swish.register_autograd(_backward, setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(torch.ops.lcs_tests.swish(self.a(x))).relu())


@pytest.fixture
def registered():
    """A registry that is the same again afterwards."""
    before, admitted = dict(RULES), set(IN_FILES)
    yield
    RULES.clear()
    RULES.update(before)
    IN_FILES.clear()
    IN_FILES.update(admitted)


def elementwise(call):
    return call.dims(call.arg(0, "x"))


def narrow_weight() -> tuple[int, ...]:
    model = SubspaceModel(Net(), torch.randn(2, 6), subspace="point").eval()
    return tuple(model.materialize(0.0).a.weight.shape)


@pytest.mark.filterwarnings(WHOLE_WARNING)
def test_an_op_without_a_rule_keeps_its_channels(registered):
    assert narrow_weight() == (8, 6)


@pytest.mark.parametrize(
    "op", ["lcs_tests::swish", "lcs_tests.swish", torch.ops.lcs_tests.swish, torch.ops.lcs_tests.swish.default]
)
def test_a_rule_of_the_users_slices_the_op(registered, op):
    register_rule(op, elementwise)
    assert narrow_weight() == (2, 6)
    x, model = torch.randn(4, 6), SubspaceModel(Net(), torch.randn(2, 6), subspace="point").eval()
    with torch.no_grad(), model.at_alpha(0.0):
        torch.testing.assert_close(model(x), model.materialize(0.0)(x))


def test_a_file_holds_the_op_only_where_its_rule_says_so(registered, tmp_path):
    register_rule("lcs_tests::swish", elementwise)
    model = SubspaceModel(Net(), torch.randn(2, 6), subspace="point").eval()
    with pytest.raises(ValueError, match=r"lcs_tests\.swish\.default is not allowed in a file"):
        model.save(tmp_path / "model.lcs")
    del RULES["lcs_tests.swish"]
    register_rule("lcs_tests::swish", elementwise, in_files=True)
    model.save(tmp_path / "model.lcs")
    x = torch.randn(4, 6)
    again = SubspaceModel.load(tmp_path / "model.lcs")
    with torch.no_grad():
        torch.testing.assert_close(again(x), model(x))
    IN_FILES.discard("lcs_tests.swish")
    with pytest.raises(ValueError, match="not allowed in a file"):
        SubspaceModel.load(tmp_path / "model.lcs")


def test_a_second_rule_of_an_op_is_refused(registered):
    with pytest.raises(ValueError, match=r"'relu' has a rule already: .*pointwise\.elementwise"):
        register_rule("aten::relu", elementwise)
    with pytest.raises(ValueError, match="'linear' has a rule already"):
        rule("linear", in_files=True)(elementwise)


def test_an_op_or_a_rule_of_another_kind_is_refused(registered):
    with pytest.raises(TypeError, match="op=7 is neither an op nor the name of one"):
        register_rule(7, elementwise)
    with pytest.raises(TypeError, match="rule=None can't be called"):
        register_rule("lcs_tests::swish", None)
