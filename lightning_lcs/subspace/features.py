"""What modules inside a network return in one of its calls."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from lightning_lcs.graph.channels.plan import Selection


@dataclasses.dataclass(frozen=True)
class Feature:
    """What a module returned.

    Attributes:
        value: A copy of its output, which later operations in place leave alone.
        selection: Which entries of the output at full width these are.
    """

    value: Tensor
    selection: Selection = ()


class Features:
    """The outputs of some modules in one call of a network; of a module that runs several times, the last one.

    Args:
        paths: The paths of the modules within the network.

    Attributes:
        found: The outputs by path.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        self.paths = tuple(paths)
        self.found: dict[str, Feature] = {}

    def watch(self, network: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        """A forward of a network that runs the network's own code, and keeps what the modules return.

        Raises:
            ValueError: A module returns something else than a tensor (raised when it is called).
        """

        def watched(*args: Any, **kwargs: Any) -> Any:
            handles = [network.get_submodule(path).register_forward_hook(self._hook(path)) for path in self.paths]
            try:
                return forward(*args, **kwargs)
            finally:
                for handle in handles:
                    handle.remove()

        return watched if self.paths else forward

    def _hook(self, path: str) -> Callable[[nn.Module, Any, Any], None]:
        def keep(module: nn.Module, args: Any, output: Any) -> None:
            if not isinstance(output, Tensor):
                raise ValueError(
                    f"features of {path!r} are not a tensor, but of type {type(output).__name__}; name a module that "
                    "returns one tensor"
                )
            self.found[path] = Feature(output.clone())

        return keep
