"""Lightning callbacks: their hooks; the work is in :mod:`lightning_lcs.training`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_lcs.utils.lazy import lazy_names

if TYPE_CHECKING:
    from lightning_lcs.callbacks.lcs import LCSCallback as LCSCallback
    from lightning_lcs.callbacks.recalibration import BatchNormRecalibration as BatchNormRecalibration
    from lightning_lcs.callbacks.tradeoff import TradeoffMonitor as TradeoffMonitor

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "LCSCallback": "lightning_lcs.callbacks.lcs",
        "BatchNormRecalibration": "lightning_lcs.callbacks.recalibration",
        "TradeoffMonitor": "lightning_lcs.callbacks.tradeoff",
    },
)
