"""Networks trained for a moment on real images, and quantized: what copies with integers are compared with."""

import timm
import torch
from torch import nn

from lightning_lcs import Quantized, SubspaceModel
from lightning_lcs.data import DigitsDataModule

SIZE = 32
NETWORKS = {
    "resnet10t": {"in_chans": 1},
    "vit_tiny_patch16_224": {"in_chans": 1, "img_size": SIZE, "depth": 2},
}
# Mean difference from the simulation, of the mean magnitude of the outputs: outputs of convolutions are rounded, too.
DIFFERENCE = 0.03
AGREEMENT = 0.98


def digits(size=SIZE):
    data = DigitsDataModule(32, size)
    data.setup("fit")
    return data


def trained(name, data, steps=40):
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=10, **NETWORKS[name])
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3)
    for _, (x, y) in zip(range(steps), data.train_dataloader(), strict=False):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x), y).backward()
        optimizer.step()
    return network.eval()


def quantized(network, batches, **options):
    model = SubspaceModel(network, mode=Quantized(**options), subspace="point").eval()
    model.recalibrate(batches, [1.0])
    return model
