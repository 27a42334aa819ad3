"""load("signs"): every data set of the course by name, as float images in [0, 1] with a clean split for the defender.

signs    12 traffic signs, 32x32 RGB, drawn by `signs.py`: no network, no files
digits   scikit-learn's handwritten digits, 8x8 grey, 1,797 images: no network
mnist, cifar10, gtsrb    $LABKIT_DATA/<name>.npz if it exists, else torchvision's data sets, downloaded once
own.npz  your data: arrays train_images, train_labels, test_images, test_labels and, if you like, class_names;
         images uint8 (N, H, W) or (N, H, W, 3), labels integers from 0
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from labkit.cache import CacheUnavailable, cache_folder, locked, written_whole
from labkit.data import signs
from labkit.data.imageset import ImageSet, Splits
from labkit.device import generator

CLEAN_SHARE = 0.05  # the defender's clean images, as a share of the training images
ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")
Arrays = dict[str, np.ndarray]


def load(name: str | os.PathLike, *, seed: int = 0) -> Splits:
    """The data set `name` as `Splits(train, test, clean)`; `seed` decides which images are the defender's.

    Images float32 (N, C, H, W) in [0, 1], labels int64 (N,). Raises ValueError for an unknown name or a file with
    another layout, and ConnectionError when a download fails and no file is there. Lab 00.
    """
    name = os.fspath(name)
    if name.endswith(".npz"):
        return _split(Path(name).stem, read_npz(Path(name)), seed)
    if name not in SOURCES:
        raise ValueError(f"data: expected one of {', '.join(SOURCES)}, or the path of an .npz file; got {name!r}.")
    return _split(name, SOURCES[name](), seed)


def _split(name: str, arrays: Arrays, seed: int) -> Splits:
    """Set the defender's images aside: given as clean_images and clean_labels, or 5% drawn from the training set."""
    classes = tuple(str(c) for c in arrays["class_names"])
    made = {
        part: ImageSet(to_images(arrays[f"{part}_images"]), torch.from_numpy(arrays[f"{part}_labels"]), classes, name)
        for part in ("train", "test", "clean")
        if f"{part}_images" in arrays
    }
    if "clean" not in made:
        order = torch.randperm(len(made["train"]), generator=generator(seed))
        n = max(1, round(CLEAN_SHARE * len(order)))
        made["clean"], made["train"] = made["train"][order[:n].sort().values], made["train"][order[n:].sort().values]
    return Splits(made["train"], made["test"], made["clean"], name)


def to_images(pixels: np.ndarray) -> Tensor:
    """uint8 (N, H, W) or (N, H, W, 3) -> float32 (N, C, H, W) in [0, 1]."""
    images = torch.from_numpy(np.ascontiguousarray(pixels))
    images = images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2).contiguous()
    return images.float().div_(255)


def read_npz(path: Path) -> Arrays:
    """The arrays of a file in the documented layout, checked; a ValueError names the array that is off."""
    layout = f"an .npz with {', '.join(ARRAYS)}[, class_names]: images uint8 (N,H,W) or (N,H,W,3), labels integers (N,)"
    if not path.is_file():
        raise ValueError(f"data: expected {layout}; got no file at {path}. Check the path.")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: expected {layout}; got a file that numpy can't read ({error}).") from error
    parts = [p for p in ("train", "test", "clean") if p != "clean" or "clean_images" in arrays]
    for key in [f"{part}_{what}" for part in parts for what in ("images", "labels")]:
        if key not in arrays:
            raise ValueError(f"{path}: expected {layout}; got only {', '.join(arrays) or 'nothing'}. Add {key}.")
    for part in parts:
        images, labels = arrays[f"{part}_images"], arrays[f"{part}_labels"]
        if images.dtype != np.uint8 or images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] != 3):
            raise ValueError(
                f"{path}: {part}_images: expected uint8 (N,H,W) or (N,H,W,3); got {images.dtype} {images.shape}. "
                "Convert it: (images * 255).round().astype('uint8')."
            )
        if not len(images) or labels.shape != (len(images),) or not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(
                f"{path}: {part}_labels: expected {len(images)} integers (and at least one), one per image; "
                f"got {labels.dtype} {labels.shape}."
            )
        arrays[f"{part}_labels"] = labels.astype(np.int64)
    top = int(arrays["train_labels"].max())
    names = arrays.setdefault("class_names", np.array([str(k) for k in range(top + 1)]))
    for part in parts:
        low, high = int(arrays[f"{part}_labels"].min()), int(arrays[f"{part}_labels"].max())
        if low < 0 or high >= len(names):
            raise ValueError(
                f"{path}: {part}_labels: expected 0 to {len(names) - 1} for {len(names)} classes; got {low} to {high}."
            )
    return arrays


def _signs() -> Arrays:
    """The drawn set, kept in the cache: 8,000 train, 2,000 test, 400 clean, each from its own seed."""
    try:
        path = cache_folder("data") / f"signs-{signs.SIGNS_VERSION}.npz"
        with locked(path):
            if path.is_file():
                try:
                    return read_npz(path)
                except ValueError:
                    path.unlink()  # a damaged file: draw again
            arrays = _draw_signs()
            with written_whole(path) as part, part.open("wb") as file:
                np.savez(file, allow_pickle=False, **arrays)
            return arrays
    except CacheUnavailable:
        return _draw_signs()


def _draw_signs() -> Arrays:
    arrays: Arrays = {"class_names": np.array(signs.CLASSES)}
    for part, n, seed in (("train", 8000, 1), ("test", 2000, 2), ("clean", 400, 3)):
        arrays[f"{part}_images"], arrays[f"{part}_labels"] = signs.draw(n, seed)
    return arrays


def _digits() -> Arrays:
    """scikit-learn's 8x8 digits (values 0 to 16), every fifth image for the test."""
    from sklearn.datasets import load_digits

    values, target = load_digits(return_X_y=True)
    pixels = (values.reshape(-1, 8, 8) * (255 / 16)).round().astype(np.uint8)
    labels = target.astype(np.int64)
    test = np.arange(len(labels)) % 5 == 4
    return {
        "train_images": pixels[~test],
        "train_labels": labels[~test],
        "test_images": pixels[test],
        "test_labels": labels[test],
        "class_names": np.array([str(k) for k in range(10)]),
    }


def _benchmark(name: str) -> Callable[[], Arrays]:
    def arrays() -> Arrays:
        own = Path(os.environ.get("LABKIT_DATA", ""), f"{name}.npz")
        if os.environ.get("LABKIT_DATA") and own.is_file():
            return read_npz(own)
        from labkit.data import benchmarks  # here, since torchvision takes a second to import

        return benchmarks.download(name, cache_folder("data", "torchvision"))

    return arrays


SOURCES: dict[str, Callable[[], Arrays]] = {
    "signs": _signs,
    "digits": _digits,
    "mnist": _benchmark("mnist"),
    "cifar10": _benchmark("cifar10"),
    "gtsrb": _benchmark("gtsrb"),
}
