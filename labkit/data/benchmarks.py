"""MNIST, CIFAR-10 and GTSRB through torchvision, as uint8 arrays. torchvision downloads them with a progress bar.

GTSRB comes as photographs of many sizes; they are resized to 32x32 (bilinear, antialiased) as the papers do.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL.Image import Resampling
from torchvision import datasets

SIZE, BILINEAR = 32, Resampling.BILINEAR  # GTSRB's pixels along each side, and how they are made


def download(name: str, folder: Path) -> dict[str, np.ndarray]:
    """The arrays train_images, train_labels, test_images, test_labels, class_names of one of the three.

    Reads them from `folder` if they are there, else downloads them into it. Raises ConnectionError if that fails.
    """
    try:
        parts = {part: _arrays(name, folder, part == "train") for part in ("train", "test")}
    except (OSError, RuntimeError) as error:  # torchvision: no network, a damaged or a missing file
        raise ConnectionError(
            f"data {name!r}: expected a network connection, or torchvision's files in {folder}, or "
            f"$LABKIT_DATA/{name}.npz; got none of them ({error}). Connect once, or set LABKIT_DATA to a folder that "
            f"holds {name}.npz."
        ) from error
    arrays = {"class_names": np.array(parts["train"][2])}
    for part, (images, labels, _) in parts.items():
        arrays |= {f"{part}_images": images.astype(np.uint8), f"{part}_labels": labels.astype(np.int64)}
    return arrays


def _arrays(name: str, folder: Path, train: bool) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Images, labels and class names of one part."""
    if name == "gtsrb":
        data = datasets.GTSRB(str(folder), split="train" if train else "test", download=True)
        pairs = [data[i] for i in range(len(data))]
        images = np.stack([np.asarray(image.convert("RGB").resize((SIZE, SIZE), BILINEAR)) for image, _ in pairs])
        return images, np.array([label for _, label in pairs]), [str(k) for k in range(43)]
    kind = {"mnist": datasets.MNIST, "cifar10": datasets.CIFAR10}[name]
    data = kind(str(folder), train=train, download=True)
    return np.asarray(data.data), np.asarray(data.targets), list(data.classes)
