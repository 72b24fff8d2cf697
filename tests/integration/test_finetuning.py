"""Backbones that are frozen at first: a second endpoint is frozen, released and trained as its partner."""

import pytest
import torch
from lightning.pytorch.callbacks import BackboneFinetuning, ModelCheckpoint
from torch import nn

from tests.integration.beside import Endpoints, Mine, assert_same_training, either_order
from tests.integration.support import Net, group_norm, lcs, trainer


class Backbone(Mine):
    """A backbone and a head; the optimizer gets what is trainable of ``of``, "all" or "head" (both are documented)."""

    def __init__(self, norm, of):
        super().__init__(nn.Identity())
        full = Net(norm)
        layers = [full.conv1, full.norm1, nn.ReLU(), full.conv2, full.norm2, nn.ReLU()]
        self.backbone = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(8, 10)
        self.net.forward = lambda x: self.head(self.backbone(x))
        self.of = of

    def configure_optimizers(self):
        trained = self.parameters() if self.of == "all" else self.head.parameters()
        return torch.optim.SGD([p for p in trained if p.requires_grad], 0.1, momentum=0.9)


def moved(before, after):
    return [
        (not torch.equal(w0, v0), not torch.equal(w1, v1)) for (w0, w1), (v0, v1) in zip(before, after, strict=True)
    ]


def fit(folder, module, line_parameters, first=True, train_bn=True, saving=(), path=None, **options):
    callback = lcs(target="backbone", line={"parameters": line_parameters})
    watching = Endpoints(callback)
    other = BackboneFinetuning(1, backbone_initial_lr=0.1, train_bn=train_bn)
    order = [other, callback, watching, *saving] if first else [callback, other, watching, *saving]
    run = trainer(folder, *order, enable_checkpointing=bool(saving), **options)
    run.fit(module, ckpt_path=path)
    return watching, run


@pytest.mark.filterwarnings("ignore:.*stay whole at every level.*was never trained:UserWarning")
@pytest.mark.filterwarnings("ignore:The provided params to be frozen already exist:UserWarning")
@either_order
@pytest.mark.parametrize("line_parameters", ["norm", "all"])
@pytest.mark.parametrize(
    ("norm", "of", "train_bn"),
    [
        (group_norm, "all", True),
        (nn.BatchNorm2d, "all", True),
        (nn.BatchNorm2d, "head", True),
        (nn.BatchNorm2d, "head", False),
    ],
    ids=["group-norm", "batch-norm-from-the-start", "batch-norm", "frozen-batch-norm"],
)
def test_frozen_and_then_trained(tmp_path, first, line_parameters, norm, of, train_bn):
    torch.manual_seed(3)
    watching, _ = fit(tmp_path, Backbone(norm, of), line_parameters, first, train_bn, max_epochs=2)
    start, middle, end = watching.seen
    frozen, released = moved(start, middle), moved(middle, end)
    # Lightning leaves batch norms trainable while it freezes the rest.
    assert any(w1 for _, w1 in frozen) == (norm is nn.BatchNorm2d and of == "all")
    assert any(w1 for _, w1 in released) or line_parameters == "norm"
    assert all(w0 == w1 for w0, w1 in frozen + released)
    if train_bn:  # else Lightning leaves out batch norms, but not what is inside them: it is frozen there
        assert all(count0 == count1 for count0, count1 in watching.groups[-1])


@pytest.mark.parametrize("line_parameters", ["norm", "all"])
def test_resuming_while_it_is_frozen(tmp_path, line_parameters):
    """Resumed after the release, Lightning itself leaves a backbone frozen."""

    def run(module, name, path=None):
        saving = ModelCheckpoint(tmp_path, name, save_top_k=-1)
        fit(tmp_path, module, line_parameters, saving=[saving], path=path, max_epochs=3)
        return module

    whole = run(Backbone(group_norm, "all"), "{epoch}")
    resumed = run(Backbone(group_norm, "all"), "again", tmp_path / "epoch=0.ckpt")
    assert_same_training(resumed, whole)
