"""The compression modes, one file per mode."""

from lightning_lcs.subspace.modes.quantized import Quantized
from lightning_lcs.subspace.modes.structured import Structured
from lightning_lcs.subspace.modes.unstructured import Unstructured

__all__ = ["Quantized", "Structured", "Unstructured"]
