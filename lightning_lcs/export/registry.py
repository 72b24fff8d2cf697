"""Export formats: one place where the package's own and the user's are registered."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportedFile:
    """A file that an export wrote, and what is known of it.

    Attributes:
        path: The path of the file.
        alphas: The levels in the file; in a file that takes the number of a level, in the order of these numbers.
        size_bytes: The size of the file in bytes.
        dense_bytes: The size of the parameters and buffers of one level, uncompressed, in bytes; ``None`` where the
            format does not pack them.
        difference: How far outputs are from those of the level in torch: the largest difference relative to the largest
            output, and for integers the mean difference relative to the mean magnitude. ``None`` where the file holds
            tensors and no program.
        agreement: For integers, the share of the given images whose largest output is that of the simulated
            quantization; else ``None``.
        time_ratio: For integers, the time of one image with one thread, divided by that of the float network at this
            level, both in onnxruntime on this machine; else ``None``.
        bits: The bits of each quantized layer by its path; empty where the format has none.
        kept_float: Weights that are quantized in the simulation and stay float in the file, as no operation on integers
            fits the operation that reads them.

    Example:
        >>> from lightning_lcs.export import ExportedFile
        >>> ExportedFile(path="alpha_0.onnx", alphas=(0.0,), size_bytes=1200).alpha
        0.0
    """

    path: Path
    alphas: tuple[float, ...]
    size_bytes: int
    dense_bytes: int | None = None
    difference: float | None = None
    agreement: float | None = None
    time_ratio: float | None = None
    bits: Mapping[str, int] = dataclasses.field(default_factory=dict)
    kept_float: tuple[str, ...] = ()

    @property
    def alpha(self) -> float:
        """The level of a file that holds one level."""
        (alpha,) = self.alphas
        return alpha


Write: TypeAlias = Callable[..., Sequence[ExportedFile]]


@dataclasses.dataclass(frozen=True)
class Format:
    """An export format.

    Attributes:
        name: The name after ``lightning-lcs export --format``.
        summary: One line about the format.
        write: Writes the files: ``write(model, folder, alphas, **options)``.
    """

    name: str
    summary: str
    write: Write

    @property
    def options(self) -> list[str]:
        """The names of the format's own options."""
        return list(inspect.signature(self.write).parameters)[3:]


FORMATS: dict[str, Format] = {}


def register_format(name: str, summary: str) -> Callable[[Write], Write]:
    """Register the function below as an export format, which ``lightning-lcs export --format`` then offers.

    The function takes a :class:`SubspaceModel` in evaluation, the output folder (a ``Path``) and the levels (a list of
    alphas, or ``None`` for the default of the format), and returns an :class:`ExportedFile` for each file. Its further
    parameters, which have types and defaults, become options of the command.

    Args:
        name: The name of the format, such as "tflite".
        summary: One line about the format, for the help.

    Raises:
        ValueError: There is a format of this name already.

    Example:
        >>> from lightning_lcs.export import ExportedFile, register_format
        >>> @register_format("readme_parameters", "the number of parameters of each level, as text")
        ... def write(model, folder, alphas, digits: int = 0):
        ...     folder.mkdir(parents=True, exist_ok=True)
        ...     counts = [f"{model.efficiency(alpha).params:,.{digits}f}" for alpha in alphas or [0.0, 1.0]]
        ...     size = (folder / "parameters.txt").write_text(", ".join(counts))
        ...     return [ExportedFile(path=folder / "parameters.txt", alphas=(0.0, 1.0), size_bytes=size)]
    """

    def register(write: Write) -> Write:
        if name in FORMATS:
            known = FORMATS[name].write
            raise ValueError(f"there is a format {name!r} already: {known.__module__}.{known.__qualname__}")
        FORMATS[name] = Format(name, summary, write)
        return write

    return register
