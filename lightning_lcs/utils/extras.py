"""Optional packages: an error that says which package is missing, what needs it, and how to install it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple


class Package(NamedTuple):
    """An optional package.

    Attributes:
        name: The name on the package index.
        extra: The extra of lightning-lcs that brings it; empty for a package that lightning-lcs itself depends on.
    """

    name: str
    extra: str = ""

    @property
    def command(self) -> str:
        """The command that installs it."""
        return f"pip install 'lightning-lcs[{self.extra}]'" if self.extra else f"pip install {self.name}"


PACKAGES = {
    "timm": Package("timm"),
    "rich": Package("rich"),
    "torchmetrics": Package("torchmetrics"),
    "lightning": Package("lightning"),
    "jsonargparse": Package("jsonargparse", "cli"),
    "matplotlib": Package("matplotlib", "plots"),
    "plotly": Package("plotly", "report"),
    "wandb": Package("wandb", "wandb"),
    "wandb_workspaces": Package("wandb-workspaces", "dashboard"),
    "onnx": Package("onnx", "onnx"),
    "onnxscript": Package("onnxscript", "onnx"),
    "onnxruntime": Package("onnxruntime", "onnx"),
    "torchao": Package("torchao", "torchao"),
    "psutil": Package("psutil", "control"),
    "sklearn": Package("scikit-learn", "demo"),
    "PIL": Package("pillow", "demo"),
    "torchvision": Package("torchvision", "demo"),
}
"""The optional packages, by the name under which Python imports them."""


class MissingPackageError(ModuleNotFoundError):
    """A package that is optional is not installed; the message says how to install it."""


@contextlib.contextmanager
def needed_for(purpose: str) -> Iterator[None]:
    """Explain an optional package that an import inside the block does not find.

    Args:
        purpose: What needs the package, such as "plots".

    Raises:
        MissingPackageError: One of :data:`PACKAGES` is not installed.

    Example:
        >>> from lightning_lcs.utils.extras import needed_for
        >>> with needed_for("plots"):
        ...     from matplotlib.figure import Figure
    """
    try:
        yield
    except MissingPackageError:
        raise
    except ModuleNotFoundError as error:
        package = PACKAGES.get((error.name or "").partition(".")[0])
        if package is None:
            raise
        raise MissingPackageError(
            f"{package.name}, which is needed for {purpose}, is not installed: {package.command}", name=error.name
        ) from error
