"""LightningDataModules for examples and figures, and an adapter for data modules of other kinds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_lcs.utils.lazy import lazy_names

if TYPE_CHECKING:
    from lightning_lcs.data.adapter import AdaptedDataModule as AdaptedDataModule
    from lightning_lcs.data.digits import DigitsDataModule as DigitsDataModule
    from lightning_lcs.data.fashion_mnist import FashionMNISTDataModule as FashionMNISTDataModule
    from lightning_lcs.data.vision import VisionDataModule as VisionDataModule

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "AdaptedDataModule": "lightning_lcs.data.adapter",
        "DigitsDataModule": "lightning_lcs.data.digits",
        "FashionMNISTDataModule": "lightning_lcs.data.fashion_mnist",
        "VisionDataModule": "lightning_lcs.data.vision",
    },
)
