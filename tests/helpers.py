"""What several test files share: comparison, scrambling, and small hand-written networks."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lightning_lcs.functional.quantization import fake_quantize
from lightning_lcs.functional.ranges import least_error_range
from lightning_lcs.model import SubspaceModel
from lightning_lcs.subspace.modes import Structured

# The warning that a level below 1 runs on batch-norm statistics of alpha = 1. Most tests compare levels with a network
# that has those statistics too, and mean to.
BATCH_NORM_WARNING = "ignore:running at alpha=:UserWarning"
# Of networks made to be left whole.
WHOLE_WARNING = "ignore:.*stay whole at every level:UserWarning"


def relative(ours: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest expected value; NaN anywhere is infinite."""
    assert ours.shape == expected.shape, f"{tuple(ours.shape)} against {tuple(expected.shape)}"
    difference = (ours - expected).abs().max() / expected.abs().max().clamp_min(torch.finfo(expected.dtype).tiny)
    return difference.item() if torch.isfinite(difference) else float("inf")


def rounded(weight: Tensor, bits: int) -> Tensor:
    """A weight as quantized mode rounds it by default: with a range of least error for each output in dimension 0."""
    return fake_quantize(weight, *least_error_range(weight, bits, per_channel=True), bits)


def first_of_two_levels(model: SubspaceModel, x: Tensor) -> Tensor:
    """The output at alpha = 0.3, after which the model has run at 0.6, too."""
    with torch.no_grad():
        model.set_alpha(0.3)
        first: Tensor = model(x)
        model.set_alpha(0.6)
        model(x)
    return first


def scramble(module: nn.Module) -> nn.Module:
    """Random norm parameters, biases and running statistics: at their initial values wrong slices go unnoticed."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim < 2:
                parameter.uniform_(0.5, 1.5)
        for name, buffer in module.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(std=0.3)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
    return module


def at_width(module: nn.Module, example: Tensor, width: float, **options: object) -> SubspaceModel:
    """A point subspace in evaluation whose level alpha = 0 has exactly ``width``."""
    options = {"subspace": "point", **options}
    return SubspaceModel(module, example, mode=Structured(min_width=width), **options).eval()  # type: ignore[arg-type]


class Chain(nn.Module):
    """Convolution, batch norm, ReLU, twice; pooling; a linear head. The widths are arguments."""

    def __init__(self, first: int = 8, second: int = 12, classes: int = 5) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, first, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.conv2 = nn.Conv2d(first, second, 3, stride=2, padding=1)
        self.bn2 = nn.BatchNorm2d(second)
        self.head = nn.Linear(second, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x)).relu()
        x = self.bn2(self.conv2(x)).relu()
        return self.head(x.mean((2, 3)))


class Mlp(nn.Module):
    """Linear layers with a layer norm; ``dropout`` for what differs in training."""

    def __init__(self, hidden: int = 16, dropout: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(6, hidden)
        self.norm = nn.LayerNorm(hidden)
        self.drop = nn.Dropout(dropout)
        self.fc2 = nn.Linear(hidden, 4)

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return self.fc2(self.drop(self.norm(self.fc1(x)).tanh())) * scale


class Joined(nn.Module):
    """Two branches joined: below full width the norm after them keeps two pieces, not a prefix."""

    def __init__(self, left: int = 8, right: int = 6) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, left, 3, padding=1)
        self.right = nn.Conv2d(3, right, 1)
        self.norm = nn.GroupNorm(1, left + right)
        self.mix = nn.Conv2d(left + right, 8, 1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.left(x), self.right(x)], 1)
        return self.head(self.mix(self.norm(x).relu()).mean((2, 3)))


class Lambda(nn.Module):
    """A forward given as a function of the module and its inputs; the layers as keyword arguments."""

    def __init__(self, function: Callable[..., object], /, **layers: nn.Module | nn.Parameter | Tensor) -> None:
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            if isinstance(layer, Tensor) and not isinstance(layer, nn.Parameter):
                self.register_buffer(name, layer)
            else:
                setattr(self, name, layer)

    def forward(self, *args: Tensor, **kwargs: Tensor) -> object:
        return self.function(self, *args, **kwargs)


class Nested(nn.Module):
    """Takes a mapping, a list and a setting, as networks for several modalities do."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.table = nn.Conv2d(3, 8, 3), nn.Linear(5, 8)
        self.joined, self.head = nn.Linear(16, 12), nn.Linear(12, 4)

    def forward(self, batch: dict[str, Tensor], extra: list[Tensor], squash: bool = False) -> dict[str, Tensor]:
        seen = self.image(batch["image"]).relu().mean((2, 3))
        joined = self.joined(torch.cat([seen, self.table(batch["table"]).relu()], 1)) + extra[0]
        return {"logits": self.head(joined.tanh() if squash else joined.relu())}
