"""Images for exports that need some, from an array in a file or from a folder of image files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lightning_lcs.model import SubspaceModel
from lightning_lcs.utils.extras import needed_for

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # the mean and standard deviation of ImageNet


def read_images(path: Path, model: SubspaceModel) -> Tensor:
    """A batch of images.

    Args:
        path: A ``.npy`` or ``.pt`` file that holds an array of shape (N, C, H, W), as the network takes it; or a folder
            of image files, which are resized to the input of the network, scaled to [0, 1] and, if they have three
            channels, normalised with ImageNet's mean and standard deviation.
        model: The model, whose input has the size to which images from a folder are resized.

    Raises:
        FileNotFoundError: There is no such file or folder.
        ValueError: The file or folder does not hold images.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: give a .npy or .pt file, or a folder of images")
    if path.is_dir():
        return _of_folder(path, model)
    if path.suffix == ".npy":
        images = torch.from_numpy(np.load(path))
    elif path.suffix == ".pt":
        images = torch.load(path, weights_only=True)
    else:
        raise ValueError(f"{path} is neither a .npy or .pt file nor a folder of images")
    if not isinstance(images, Tensor) or images.ndim != 4 or not len(images):
        found = f"an array of shape {tuple(images.shape)}" if isinstance(images, Tensor) else "something else"
        raise ValueError(f"{path} should hold an array of shape (N, C, H, W), and it holds {found}")
    return images.float()


def _of_folder(folder: Path, model: SubspaceModel) -> Tensor:
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES)
    if not files:
        raise ValueError(f"{folder} holds no image file ({', '.join(SUFFIXES)})")
    network = model.parts[0].network
    if network.example is None:
        raise ValueError("the size of the images is not known: give --input_shape, such as --input_shape 3 224 224")
    channels, height, width = network.example_inputs()[0][0].shape[1:]
    with needed_for("a folder of images"):
        from PIL import Image
    mode = "L" if channels == 1 else "RGB"
    pixels = [np.asarray(Image.open(file).convert(mode).resize((width, height)), np.float32) for file in files]
    images = torch.from_numpy(np.stack(pixels)).reshape(len(files), height, width, channels).permute(0, 3, 1, 2) / 255.0
    if channels == 3:
        mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in (_MEAN, _DEVIATION))
        images = (images - mean) / deviation
    return images.contiguous()
