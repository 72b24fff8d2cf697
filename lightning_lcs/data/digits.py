"""scikit-learn's handwritten digits: real images that need no download."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

from lightning_lcs.utils.extras import needed_for


def require_sklearn_datasets() -> Any:
    """The module ``sklearn.datasets``, which contains the images.

    Raises:
        ModuleNotFoundError: scikit-learn is not installed.
    """
    with needed_for("the images of the demos"):
        import sklearn.datasets
    return sklearn.datasets


class DigitsDataModule(pl.LightningDataModule):
    """scikit-learn's 1,797 handwritten digits of 8 x 8 pixels, enlarged.

    Four fifths of the images are for training and one fifth is for validation. Images have one channel, with values in
    [-1, 1]; there are ten classes.

    Args:
        batch_size: Batch size of all loaders; the last, incomplete batch for training is dropped. The default is 64.
        image_size: Height and width of the images after bilinear enlargement, in pixels. The default is 32.
        seed: Seed of the split. The default is 0.

    Raises:
        ModuleNotFoundError: scikit-learn is not installed (raised by ``setup``).

    Example:
        >>> from lightning_lcs.data import DigitsDataModule
        >>> data = DigitsDataModule(batch_size=16)
        >>> data.setup("fit")
        >>> images, labels = next(iter(data.train_dataloader()))
        >>> images.shape
        torch.Size([16, 1, 32, 32])
    """

    num_classes = 10
    channels = 1

    def __init__(self, batch_size: int = 64, image_size: int = 32, seed: int = 0) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.image_size = image_size
        self.seed = seed
        self._train: Dataset[tuple[torch.Tensor, ...]] | None = None
        self._val: Dataset[tuple[torch.Tensor, ...]] | None = None

    def setup(self, stage: str) -> None:
        """Read and split the images."""
        if self._train is not None:
            return
        pixels, labels = require_sklearn_datasets().load_digits(return_X_y=True)
        images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 8.0 - 1.0
        images = torch.nn.functional.interpolate(images, size=self.image_size, mode="bilinear", antialias=False)
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(self.seed))
        cut = len(images) * 4 // 5
        targets = torch.tensor(labels)
        self._train = TensorDataset(images[order[:cut]], targets[order[:cut]])
        self._val = TensorDataset(images[order[cut:]], targets[order[cut:]])

    def train_dataloader(self) -> DataLoader[tuple[torch.Tensor, ...]]:
        """Shuffled training images."""
        assert self._train is not None
        return DataLoader(self._train, batch_size=self.batch_size, shuffle=True, drop_last=True)

    def val_dataloader(self) -> DataLoader[tuple[torch.Tensor, ...]]:
        """The validation images."""
        assert self._val is not None
        return DataLoader(self._val, batch_size=self.batch_size)

    def test_dataloader(self) -> DataLoader[tuple[torch.Tensor, ...]]:
        """The validation images again, because the data set is too small for three parts."""
        return self.val_dataloader()

    def predict_dataloader(self) -> DataLoader[tuple[torch.Tensor, ...]]:
        """The validation images again."""
        return self.val_dataloader()
