"""LightningDataModules for examples and figures."""

from lightning_lcs.data.digits import DigitsDataModule
from lightning_lcs.data.fashion_mnist import FashionMNISTDataModule
from lightning_lcs.data.vision import VisionDataModule

__all__ = ["DigitsDataModule", "FashionMNISTDataModule", "VisionDataModule"]
