import gzip

import pytest
import torch

from lightning_lcs.data import FashionMNISTDataModule


def files(folder, pixel):
    """Six images of one shade for training, two for test, as the original files have them."""
    for prefix, count in (("train", 6), ("t10k", 2)):
        images = bytes(16) + bytes([pixel]) * (28 * 28 * count)
        (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
        (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(bytes(8) + bytes(range(count))))
    return folder


def training_images(folder, **options):
    data = FashionMNISTDataModule(str(folder), batch_size=6, **options)
    data.setup("fit")
    return torch.cat([next(iter(data.train_dataloader()))[0] for _ in range(5)])


def test_borders_are_black_like_the_background(tmp_path):
    """Cropped at random, a black image stays one: a border of another shade would be in training images alone."""
    black = training_images(files(tmp_path, 0))
    assert black.unique().numel() == 1
    cropped = training_images(tmp_path, augment=True)
    assert cropped.shape == (30, 1, 32, 32)
    torch.testing.assert_close(cropped, black)
    # Cropping moves what is there: borders of white images are wider than the two pixels on some side.
    white = training_images(files(tmp_path, 255), augment=True, channels=3)
    assert white.shape[1] == 3
    dark = (white[:, 0] - black.min() < 1e-6).float().mean((1, 2))
    assert dark.max() > 1 - (28 / 32) ** 2


def test_missing_files_are_named(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"train-images-idx3-ubyte.gz is missing: install it with apt-get install"
    ):
        training_images(tmp_path)
