"""Fashion-MNIST, read from its four original files."""

from __future__ import annotations

import gzip
from pathlib import Path

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

from lightning_lcs.utils.extras import needed_for

_FILES = {"train": "train", "test": "t10k"}
# Mean and standard deviation of the training pixels, whose values are in [0, 1].
_MEAN, _DEVIATION = 0.2860, 0.3530
# The value of a black pixel after normalization.
_BLACK = -_MEAN / _DEVIATION


class _Augmented(Dataset[tuple[torch.Tensor, ...]]):
    """A data set whose images are cropped and flipped at random."""

    def __init__(self, dataset: Dataset[tuple[torch.Tensor, ...]]) -> None:
        with needed_for("FashionMNISTDataModule"):
            from torchvision.transforms import v2

        self.dataset = dataset
        self.transform = v2.Compose([v2.RandomCrop(32, padding=4, fill=_BLACK), v2.RandomHorizontalFlip()])

    def __getitem__(self, index: int) -> tuple[torch.Tensor, ...]:
        image, *rest = self.dataset[index]
        return self.transform(image), *rest

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]


class FashionMNISTDataModule(pl.LightningDataModule):
    """Fashion-MNIST: 60,000 training and 10,000 test images of 28 x 28 pixels, padded to 32 x 32 pixels.

    The files are ``train-images-idx3-ubyte.gz``, ``train-labels-idx1-ubyte.gz`` and those of ``t10k``. Debian's package
    ``dataset-fashion-mnist`` puts them into the default folder; torchvision's ``FashionMNIST(root, download=True)``
    puts them into ``root/FashionMNIST/raw``.

    Args:
        root: The folder of the files. The default is "/usr/share/datasets/fashion-mnist".
        batch_size: Batch size for training; the last, incomplete batch is dropped. The default is 128.
        channels: Number of channels: 1, or 3, which repeats the image. The default is 1.
        train_images: Number of training images to use, the first ones. The default is all of them.
        eval_batch_size: Batch size for validation and test. The default is 500.
        augment: Whether to pad training images with 4 black pixels and crop them at random, and to flip half of them.
            This needs torchvision. The default is not to.

    Raises:
        FileNotFoundError: A file is missing (raised by ``setup``).

    Example:
        >>> from lightning_lcs.data import FashionMNISTDataModule
        >>> data = FashionMNISTDataModule(root="fashion-mnist", channels=3)
        >>> data.num_classes, data.channels
        (10, 3)
    """

    num_classes = 10

    def __init__(
        self,
        root: str = "/usr/share/datasets/fashion-mnist",
        batch_size: int = 128,
        channels: int = 1,
        train_images: int | None = None,
        eval_batch_size: int = 500,
        augment: bool = False,
    ) -> None:
        super().__init__()
        self.root = Path(root)
        self.batch_size = batch_size
        self.channels = channels
        self.train_images = train_images
        self.eval_batch_size = eval_batch_size
        self.augment = augment
        self._sets: dict[str, Dataset[tuple[torch.Tensor, ...]]] = {}

    def setup(self, stage: str) -> None:
        """Read the files."""
        for part, prefix in _FILES.items():
            if part not in self._sets:
                images = self._read(f"{prefix}-images-idx3-ubyte.gz", 16).view(-1, 1, 28, 28)
                labels = self._read(f"{prefix}-labels-idx1-ubyte.gz", 8).long()
                images = (torch.nn.functional.pad(images, (2, 2, 2, 2)).float() / 255.0 - _MEAN) / _DEVIATION
                count = self.train_images if part == "train" else None
                images = images.expand(-1, self.channels, -1, -1)[:count]
                self._sets[part] = TensorDataset(images, labels[:count])
        if self.augment and not isinstance(self._sets["train"], _Augmented):
            self._sets["train"] = _Augmented(self._sets["train"])

    def _read(self, name: str, header: int) -> torch.Tensor:
        path = self.root / name
        if not path.exists():
            raise FileNotFoundError(
                f"{path} is missing: install it with apt-get install dataset-fashion-mnist, or set root= to the folder "
                "of the four .gz files"
            )
        with gzip.open(path) as file:
            return torch.frombuffer(bytearray(file.read()[header:]), dtype=torch.uint8)

    def train_dataloader(self) -> DataLoader[tuple[torch.Tensor, ...]]:
        """Shuffled training images."""
        return DataLoader(self._sets["train"], batch_size=self.batch_size, shuffle=True, drop_last=True)

    def val_dataloader(self) -> DataLoader[tuple[torch.Tensor, ...]]:
        """The test images. The recipes of this package make no choice by them."""
        return DataLoader(self._sets["test"], batch_size=self.eval_batch_size)

    def test_dataloader(self) -> DataLoader[tuple[torch.Tensor, ...]]:
        """The test images."""
        return self.val_dataloader()

    def predict_dataloader(self) -> DataLoader[tuple[torch.Tensor, ...]]:
        """The test images."""
        return self.val_dataloader()
