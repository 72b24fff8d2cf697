"""Networks under ``torch.compile``: they train as they do uncompiled, or the error says what to do."""

import pytest
import torch

from tests.integration.beside import Mine, fit
from tests.integration.support import lcs

# One step in float32 by compiled code, relative to the largest entry of each tensor.
COMPILED_TOLERANCE = 1e-5

pytestmark = [
    # Of the guard that looks for calls past the network's forward.
    pytest.mark.filterwarnings("ignore:Using `torch.compile.module.` when there are global hooks:UserWarning"),
    # Of the compiler, which looks at every tensor that it meets; and of torch 2.9's, at random numbers.
    pytest.mark.filterwarnings("ignore:Dynamo does not know how to trace the builtin:UserWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
]


@pytest.fixture(autouse=True)
def _nothing_compiled_before():
    torch.compiler.reset()


def in_place(module):
    module.net.compile(backend="aot_eager")
    return module


def wrapped(module):
    module.net = torch.compile(module.net, backend="eager")
    return module


def whole(module):
    return torch.compile(module, backend="eager")


def check_trained_as_uncompiled(folder, compiled, **options):
    limits = {"limit_train_batches": 1, "limit_val_batches": 1}
    # Two levels: every other one is compiled anew.
    few = {"sampling": {"sampler": [0.0, 1.0]}, "alphas": 2, "recalibration": {"levels": 2}}
    module, callback, _ = fit(folder, make=lambda: compiled(Mine()), callback=lcs(**few, **options), **limits)
    plain, plain_callback, _ = fit(folder, callback=lcs(**few), **limits)
    ours = {name.replace("_orig_mod.", ""): value for name, value in module.named_parameters()}
    theirs = dict(plain.named_parameters())
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert (ours[name] - value).abs().max() <= COMPILED_TOLERANCE * value.abs().max(), name
    assert len(callback.curve) == 2
    for found, expected in zip(callback.curve, plain_callback.curve, strict=True):
        assert found.metrics == pytest.approx(expected.metrics, rel=COMPILED_TOLERANCE)


def test_compiled_in_place(tmp_path):
    check_trained_as_uncompiled(tmp_path, in_place)


def test_a_compiled_module(tmp_path):
    check_trained_as_uncompiled(tmp_path, whole)


def test_a_wrapped_network_that_is_named(tmp_path):
    check_trained_as_uncompiled(tmp_path, wrapped, target="net._orig_mod")


def test_a_wrapped_network(tmp_path):
    try:
        check_trained_as_uncompiled(tmp_path, wrapped)
    except Exception as error:
        if "torch.compile" not in str(error):
            raise
