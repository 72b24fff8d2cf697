"""Trained models, and what comes out of their files."""

import torch
from torch import nn

from lightning_lcs import SubspaceModel
from tests.helpers import scramble

# Batch norms are folded into convolutions, tensors lie elsewhere in memory; relative to the largest output.
TOLERANCE = 1e-5
ALPHAS = (0.0, 0.25, 0.5, 1.0)


def trained(network, size, subspace="line", **options):
    torch.manual_seed(0)
    options = {"subspace": subspace, "line": {"start": "independent"}, **options}
    model = SubspaceModel(scramble(network), torch.randn(2, 3, size, size), **options).eval()
    with torch.no_grad():
        for w0, _ in model.endpoint_pairs():
            w0.add_(0.1 * torch.randn_like(w0))
    model.recalibrate([torch.randn(8, 3, size, size)], list(ALPHAS[:-1]))
    return model


def through_a_file(model, folder, layout="auto"):
    model.save(folder / "model.lcs", levels=[0.0, 1.0])
    return SubspaceModel.load(folder / "model.lcs", layout=layout)


class Grouped(nn.Module):
    """Grouped and depthwise convolutions with biases before their batch norms, one norm that can't be folded."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.stem_norm = nn.BatchNorm2d(16, eps=1e-3)
        self.deep = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.deep_norm = nn.BatchNorm2d(16, affine=False)
        self.groups = nn.Conv2d(16, 24, 3, padding=1, groups=4)
        self.groups_norm = nn.BatchNorm2d(24)
        self.before = nn.BatchNorm2d(24)
        self.head = nn.Linear(24, 5)

    def forward(self, x):
        x = self.stem_norm(self.stem(x)).relu()
        x = self.deep_norm(self.deep(x)).relu() + x
        x = self.groups(x)
        x = self.groups_norm(x).relu() + x  # the convolution's result is read twice
        return self.head(self.before(x).mean((2, 3)))
