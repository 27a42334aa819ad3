"""MNIST, CIFAR-10 and GTSRB through torchvision, as uint8 arrays. torchvision downloads them with a progress bar.

GTSRB comes as photographs of many sizes; they are resized to 32x32 (bilinear, antialiased) as the papers do.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torchvision import datasets

SIZE = 32  # pixels, for GTSRB


def download(name: str, folder: Path) -> dict[str, np.ndarray]:
    """The arrays train_images, train_labels, test_images, test_labels, class_names of one of the three.

    Reads them from `folder` if they are there, else downloads them into it. Raises ConnectionError if that fails.
    """
    try:
        train, test = (_open(name, folder, is_train) for is_train in (True, False))
    except (OSError, RuntimeError) as error:  # torchvision: no network, a damaged or a missing file
        raise ConnectionError(
            f"data {name!r}: expected a network connection, torchvision's files in {folder}, or $LABKIT_DATA/{name}.npz; "
            f"got none of them ({error}). Connect once, or set LABKIT_DATA to a folder that holds {name}.npz."
        ) from error
    names = getattr(train, "classes", None) or [str(k) for k in range(43)]
    arrays = {"class_names": np.array([str(n) for n in names])}
    for part, data in (("train", train), ("test", test)):
        if name == "gtsrb":
            pairs = [(np.asarray(image.convert("RGB").resize((SIZE, SIZE), 2)), label) for image, label in data]
            images, labels = np.stack([p[0] for p in pairs]), np.array([p[1] for p in pairs])
        else:
            images, labels = np.asarray(data.data), np.asarray(data.targets)
        arrays[f"{part}_images"], arrays[f"{part}_labels"] = images.astype(np.uint8), labels.astype(np.int64)
    return arrays


def _open(name: str, folder: Path, is_train: bool):
    if name == "gtsrb":
        return datasets.GTSRB(str(folder), split="train" if is_train else "test", download=True)
    kind = {"mnist": datasets.MNIST, "cifar10": datasets.CIFAR10}[name]
    return kind(str(folder), train=is_train, download=True)
