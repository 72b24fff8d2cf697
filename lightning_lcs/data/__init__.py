"""LightningDataModules for examples and figures, and an adapter for those of others."""

from lightning_lcs.data.adapter import AdaptedDataModule
from lightning_lcs.data.digits import DigitsDataModule
from lightning_lcs.data.fashion_mnist import FashionMNISTDataModule
from lightning_lcs.data.vision import VisionDataModule

__all__ = ["AdaptedDataModule", "DigitsDataModule", "FashionMNISTDataModule", "VisionDataModule"]
