"""cPreResNet, the CIFAR network of arXiv 2110.04252: a pre-activation ResNet of bottlenecks (arXiv 1603.05027).

timm has no such network for small images. The depth is ``9 * blocks + 2``: three stages of ``blocks`` bottlenecks.
"""

import torch
from torch import Tensor, nn


class Bottleneck(nn.Module):
    """Three times norm, ReLU and convolution (1x1, 3x3, 1x1), plus the input."""

    def __init__(self, inputs: int, planes: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * planes
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, planes, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, outputs, 1, bias=False)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the feature maps, at half the size if the stride is 2."""
        y = self.conv1(self.bn1(x).relu())
        y = self.conv2(self.bn2(y).relu())
        return self.conv3(self.bn3(y).relu()) + self.shortcut(x)


class PreResNet(nn.Module):
    """A network that maps images of 32 x 32 pixels to logits.

    Weights have torch's own initialisation; docs/results.md says what else was tried, and with what result.

    Args:
        blocks: The number of bottlenecks per stage; 2 gives the paper's cPreResNet20.
        num_classes: The number of classes.
    """

    def __init__(self, blocks: int = 2, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        layers: list[nn.Module] = []
        inputs = 16
        for planes, stride in ((16, 1), (32, 2), (64, 2)):
            for block in range(blocks):
                layers.append(Bottleneck(inputs, planes, stride if block == 0 else 1))
                inputs = 4 * planes
        self.blocks = nn.Sequential(*layers)
        self.bn = nn.BatchNorm2d(inputs)
        self.head = nn.Linear(inputs, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        features: Tensor = self.bn(self.blocks(self.conv1(x))).relu()
        return torch.flatten(self.head(features.mean((2, 3))), 1)
