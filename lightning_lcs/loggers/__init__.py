"""The curve in W&B and TensorBoard, and in loggers that users register."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_lcs.utils.lazy import lazy_names

if TYPE_CHECKING:
    from lightning_lcs.loggers.registry import Measurement as Measurement
    from lightning_lcs.loggers.registry import register_logger as register_logger
    from lightning_lcs.loggers.wandb import log_curve as log_curve
    from lightning_lcs.loggers.wandb_workspace import workspace as workspace

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "Measurement": "lightning_lcs.loggers.registry",
        "log_curve": "lightning_lcs.loggers.wandb",
        "register_logger": "lightning_lcs.loggers.registry",
        "workspace": "lightning_lcs.loggers.wandb_workspace",
    },
)
