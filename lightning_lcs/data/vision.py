"""CIFAR-10, CIFAR-100 and ImageNet from torchvision, for users with an internet connection or the files."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from torch.utils.data import DataLoader

from lightning_lcs.utils.extras import needed_for

# Mean and standard deviation of the training pixels, per channel.
_STATISTICS = {
    "CIFAR10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "CIFAR100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "ImageNet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


class VisionDataModule(pl.LightningDataModule):
    """CIFAR-10, CIFAR-100 or ImageNet with the standard augmentation.

    CIFAR images have 32 x 32 pixels; those for training are cropped at random after padding with 4 pixels, and flipped
    at random. ImageNet images for training are cropped at random, resized to 224 x 224 pixels, and flipped at random.
    For evaluation they are resized to 256 pixels, and their centre of 224 x 224 pixels is taken.

    Args:
        dataset: The data set, "CIFAR10", "CIFAR100" or "ImageNet". The default is "CIFAR10".
        root: The folder of the files, to which CIFAR is downloaded. The default is "data".
        batch_size: Batch size of all loaders. The default is 128.
        num_workers: Number of worker processes of each loader. The default is 4.
        download: Whether to download CIFAR if it is not in ``root``. The default is to do so.

    Raises:
        ValueError: ``dataset`` is none of the three.

    Example:
        >>> from lightning_lcs.data import VisionDataModule
        >>> data = VisionDataModule("CIFAR100", root="data", batch_size=256)
        >>> data.batch_size
        256
    """

    def __init__(
        self,
        dataset: str = "CIFAR10",
        root: str = "data",
        batch_size: int = 128,
        num_workers: int = 4,
        download: bool = True,
    ) -> None:
        super().__init__()
        if dataset not in _STATISTICS:
            raise ValueError(f"dataset={dataset!r} is not known; choose one of {', '.join(map(repr, _STATISTICS))}")
        self.dataset = dataset
        self.root = root
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.download = download
        self._sets: dict[bool, Any] = {}

    def prepare_data(self) -> None:
        """Download the files, in one process."""
        if self.download and self.dataset != "ImageNet":
            for train in (True, False):
                self._make(train, download=True)

    def setup(self, stage: str) -> None:
        """Open the data set."""
        for train in (True, False):
            if train not in self._sets:
                self._sets[train] = self._make(train, download=False)

    def _make(self, train: bool, download: bool) -> Any:
        with needed_for("VisionDataModule"):
            from torchvision import datasets

        transform = _transform(self.dataset, train)
        if self.dataset == "ImageNet":
            return datasets.ImageNet(self.root, split="train" if train else "val", transform=transform)
        return getattr(datasets, self.dataset)(self.root, train=train, download=download, transform=transform)

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled, augmented training images."""
        return self._loader(train=True)

    def val_dataloader(self) -> DataLoader[Any]:
        """The official validation images of ImageNet, or the test images of CIFAR."""
        return self._loader(train=False)

    def test_dataloader(self) -> DataLoader[Any]:
        """The same images as :meth:`val_dataloader`."""
        return self._loader(train=False)

    def _loader(self, train: bool) -> DataLoader[Any]:
        return DataLoader(
            self._sets[train],
            self.batch_size,
            shuffle=train,
            drop_last=train,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
        )


def _transform(dataset: str, train: bool) -> Any:
    with needed_for("VisionDataModule"):
        from torchvision import transforms as t

    if dataset == "ImageNet":
        spatial = [t.RandomResizedCrop(224), t.RandomHorizontalFlip()] if train else [t.Resize(256), t.CenterCrop(224)]
    else:
        spatial = [t.RandomCrop(32, padding=4), t.RandomHorizontalFlip()] if train else []
    return t.Compose([*spatial, t.ToTensor(), t.Normalize(*_STATISTICS[dataset])])
