"""ResNet-18 and VGG-19 for images of 32 x 32 pixels, as arXiv 2110.04252 trains them on CIFAR-10.

The networks in timm are made for 224 pixels: its ResNet shrinks images to a quarter before the first block, and its
VGG ends in two layers of 4,096 units.
"""

import torch
from timm.models.resnet import BasicBlock, ResNet
from torch import Tensor, nn

# The channels of each convolution; 0 stands for pooling.
VGG19_LAYERS = (64, 64, 0, 128, 128, 0, 256, 256, 256, 256, 0, 512, 512, 512, 512, 0, 512, 512, 512, 512)


class ResNet18(ResNet):
    """timm's ResNet-18 with a first convolution of 3 x 3, and without the pooling after it."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__(BasicBlock, (2, 2, 2, 2), num_classes=num_classes)
        self.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.maxpool = nn.Identity()


class VGG19(nn.Module):
    """Sixteen convolutions of 3 x 3 with batch norm, and one linear layer."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for outputs in VGG19_LAYERS:
            if outputs == 0:
                layers.append(nn.MaxPool2d(2))
                continue
            convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
            nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
            layers.extend((convolution, nn.BatchNorm2d(outputs), nn.ReLU()))
            inputs = outputs
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(inputs, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.head(torch.flatten(self.features(x).mean((2, 3)), 1))
        return logits
