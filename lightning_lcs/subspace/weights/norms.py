"""Norms without running statistics: a network's batch norms are replaced by instance or group norms."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

NORMS = ("keep", "instance", "group")
GROUPS = 32
# The number of channels that a group needs so that widths down to a quarter divide it evenly.
_CHANNELS_PER_GROUP = 8


class ConvertedNorm(nn.Module):
    """An instance or group norm in the place of a batch norm, with the scale, shift and submodules of that norm.

    The batch norms of timm hold an activation, which is kept. Parameters keep their names.

    Args:
        norm: The batch norm.
        groups: The number of groups; ``None`` for an instance norm.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(self, norm: nn.modules.batchnorm._BatchNorm, groups: int | None) -> None:
        super().__init__()
        self.num_features = norm.num_features
        self.eps = norm.eps
        self.groups = groups
        self.register_parameter("weight", norm.weight)
        self.register_parameter("bias", norm.bias)
        self.after = tuple(norm._modules)
        for name, child in norm.named_children():
            self.add_module(name, child)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise values of shape ``(N, C, ...)``; the shape stays the same."""
        if self.groups is None:
            x = nn.functional.instance_norm(x, weight=self.weight, bias=self.bias, eps=self.eps)
        else:
            x = nn.functional.group_norm(x, self.groups, self.weight, self.bias, self.eps)
        for name in self.after:
            x = self._modules[name](x)  # type: ignore[misc]
        return x

    def extra_repr(self) -> str:
        """The options that ``print`` shows."""
        return f"{self.num_features}, {'instance' if self.groups is None else f'{self.groups} groups'}"


def check_norm(norm: str) -> str:
    """Return ``norm``, or raise an error.

    Raises:
        ValueError: ``norm`` is not one of "keep", "instance" and "group".
    """
    if norm not in NORMS:
        raise ValueError(f"norm={norm!r} is not known; choose one of {', '.join(map(repr, NORMS))}")
    return norm


def group_count(channels: int, sliced: bool) -> int:
    """The number of groups of a norm: 32, or the next smaller number that divides the number of channels.

    Slicing keeps the number of groups and removes channels from each. If channels are sliced, each group therefore has
    at least 8 channels, or there is a single group.
    """
    limit = min(GROUPS, channels // _CHANNELS_PER_GROUP if sliced else channels)
    return next((groups for groups in range(limit, 1, -1) if channels % groups == 0), 1)


def convert_norms(modules: Iterable[nn.Module], norm: str, sliced: bool) -> list[str]:
    """Replace every batch norm of some networks, in place.

    A group norm has 32 groups, or the next smaller number that divides the channels.

    Args:
        modules: The networks.
        norm: "instance" or "group"; "keep" changes nothing.
        sliced: Whether channels will be sliced, as in structured mode: each group then has at least 8 channels, or
            there is one group.

    Returns:
        What was replaced, and with what, a line each.

    Raises:
        ValueError: ``norm`` is not known, the networks have no batch norm, or a network is itself a batch norm.

    Example:
        >>> import torch
        >>> from lightning_lcs.subspace.weights.norms import convert_norms
        >>> network = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3), torch.nn.BatchNorm2d(16))
        >>> convert_norms([network], "group", sliced=True)
        ['1: 16, 2 groups']
    """
    if check_norm(norm) == "keep":
        return []
    networks = list(modules)
    found = [
        (module, path, child)
        for module in networks
        for path, child in module.named_modules()
        if isinstance(child, nn.modules.batchnorm._BatchNorm)
    ]
    if not found and not any(isinstance(child, ConvertedNorm) for module in networks for child in module.modules()):
        names = ", ".join(type(module).__name__ for module in networks)
        raise ValueError(f"norm={norm!r} needs a batch norm to replace, and {names} has none: leave it out")
    report = []
    for module, path, child in found:
        if not path:
            raise ValueError("the network is itself a batch norm, which can't be replaced: leave norm= out")
        parent_path, _, leaf = path.rpartition(".")
        groups = None if norm == "instance" else group_count(child.num_features, sliced)
        converted = ConvertedNorm(child, groups)
        converted.train(child.training)
        setattr(module.get_submodule(parent_path), leaf, converted)
        report.append(f"{path}: {converted.extra_repr()}")
    return report


def state_without_statistics(module: nn.Module) -> set[str]:
    """The names in the ``state_dict`` of a converted copy of a network."""
    gone = {
        f"{path}.{buffer}" if path else buffer
        for path, child in module.named_modules()
        if isinstance(child, nn.modules.batchnorm._BatchNorm)
        for buffer in child._buffers
    }
    return set(module.state_dict()) - gone
