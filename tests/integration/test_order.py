"""``Structured(order="importance")`` in a user's project."""

import copy

import torch

from lightning_lcs import Structured, SubspaceModel
from tests.helpers import relative
from tests.integration.support import Module, digits, lcs, trainer

SORTED = Structured(order="importance")


def test_channels_are_sorted_before_the_first_step_and_never_again(tmp_path, train, val):
    module = Module(lr=0.0)
    before = copy.deepcopy(module.net).eval()
    images = digits(0, 8).tensors[0]
    callback = lcs(mode=SORTED, subspace="point")
    run = trainer(tmp_path, callback)
    run.fit(module, train, val)
    net = module.net.eval()
    assert not torch.equal(net.conv1.weight, before.conv1.weight)
    with torch.no_grad():
        # The running statistics have moved: compare in training, where a batch has its own.
        assert relative(net.train()(images), before.train()(images)) < 1e-5
    weights = net.conv1.weight.detach().clone()
    path = tmp_path / "last.ckpt"
    run.save_checkpoint(path)
    again = Module(lr=0.0)
    trainer(tmp_path, lcs(mode=SORTED, subspace="point"), max_epochs=2).fit(again, train, val, ckpt_path=path)
    assert torch.equal(again.net.conv1.weight, weights)
    run = trainer(tmp_path, callback)
    run.fit(module, train, val)
    assert torch.equal(module.net.conv1.weight, weights)
    assert SubspaceModel.from_checkpoint(path, Module()).mode == SORTED
