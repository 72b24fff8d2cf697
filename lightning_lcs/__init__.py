"""lightning-lcs: one training run, one checkpoint, every size.

The names below are imported when they are first used, so that a device that only runs a trained network never imports
Lightning, timm or wandb.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_lcs.utils.lazy import lazy_names

if TYPE_CHECKING:
    from lightning_lcs.callbacks.lcs import LCSCallback as LCSCallback
    from lightning_lcs.callbacks.levels import levels as levels
    from lightning_lcs.callbacks.recalibration import BatchNormRecalibration as BatchNormRecalibration
    from lightning_lcs.callbacks.tradeoff import TradeoffMonitor as TradeoffMonitor
    from lightning_lcs.control.controller import RuntimeController as RuntimeController
    from lightning_lcs.model import SubspaceModel as SubspaceModel
    from lightning_lcs.subspace.modes import Quantized as Quantized
    from lightning_lcs.subspace.modes import Structured as Structured
    from lightning_lcs.subspace.modes import Unstructured as Unstructured
    from lightning_lcs.subspace.weights.line import Line as Line
    from lightning_lcs.training.options import Distillation as Distillation
    from lightning_lcs.training.options import Loss as Loss
    from lightning_lcs.training.options import Recalibration as Recalibration
    from lightning_lcs.training.options import Sampling as Sampling
    from lightning_lcs.wrapper import CompressibleSubspaceWrapper as CompressibleSubspaceWrapper

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "LCSCallback": "lightning_lcs.callbacks.lcs",
        "CompressibleSubspaceWrapper": "lightning_lcs.wrapper",
        "SubspaceModel": "lightning_lcs.model",
        "Structured": "lightning_lcs.subspace.modes",
        "Unstructured": "lightning_lcs.subspace.modes",
        "Quantized": "lightning_lcs.subspace.modes",
        "Line": "lightning_lcs.subspace.weights.line",
        "Sampling": "lightning_lcs.training.options",
        "Distillation": "lightning_lcs.training.options",
        "Loss": "lightning_lcs.training.options",
        "Recalibration": "lightning_lcs.training.options",
        "BatchNormRecalibration": "lightning_lcs.callbacks.recalibration",
        "TradeoffMonitor": "lightning_lcs.callbacks.tradeoff",
        "RuntimeController": "lightning_lcs.control.controller",
        "levels": "lightning_lcs.callbacks.levels",
    },
)
__version__ = "0.1.0"
