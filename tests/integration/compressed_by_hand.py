"""Networks compressed by hand, which levels are compared with."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from lightning_lcs import SubspaceModel
from lightning_lcs.functional.quantization import fake_quantize
from tests.helpers import rounded

# The same operations on equal tensors, aligned otherwise in memory, by another path through the code.
SAME_OPS = 1e-5


def images(count: int = 6) -> Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def quantized_by_hand(model: SubspaceModel, alpha: float) -> nn.Module:
    """The network with every compressed weight rounded, and the inputs of the layers that have ranges."""
    twin, level, part = copy.deepcopy(model.module), model.mode.snap(alpha), model.parts[0]
    for name in part.compressed:
        weight = twin.get_parameter(name)
        bits = int(part.pinned.get(name, model.mode.bit_width(alpha)))
        with torch.no_grad():
            weight.copy_(rounded(weight, bits))
        path = name.rpartition(".")[0]
        if f"{path}.input_range" in model.statistics[level]:
            low, high = model.statistics[level][f"{path}.input_range"].unbind()
            twin.get_submodule(path).register_forward_pre_hook(
                lambda _, args, grid=(low, high, bits): (fake_quantize(args[0], *grid), *args[1:])
            )
    return twin


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], **options: Any) -> None:
        super().__init__()
        self.stem, self.memory = nn.Conv2d(1, 8, 2, 2), kind(8, 16, batch_first=True, **options)
        outputs = (options.get("proj_size") or 16) * (2 if options.get("bidirectional") else 1)
        self.head = nn.Linear(outputs, 4)

    def forward(self, x: Tensor) -> Tensor:
        steps = self.stem(x).flatten(2).transpose(1, 2)
        out: Tensor = self.head(self.memory(steps)[0][:, -1])
        return out
