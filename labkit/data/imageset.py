"""Labelled images, and how a course's data are split.

An `ImageSet` never changes: indexing and poisoning make new ones. A `Splits` has three parts because three parties
need images: the trainer (`train`), the examiner (`test`), and the defender, who holds a few clean images (`clean`)
that neither the trainer nor the examiner has seen.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields, replace
from functools import cached_property

import torch
from torch import Tensor


def check_images(images, what: str = "images") -> Tensor:
    """The same tensor, if it is float (N, C, H, W) with N > 0 and finite values in [0, 1]; else a ValueError."""
    if not isinstance(images, Tensor) or images.ndim != 4 or not images.is_floating_point():
        got = f"{images.dtype} {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(f"{what}: expected a float tensor (N, C, H, W); got {got}. Divide uint8 images by 255.")
    if not images.numel():
        raise ValueError(f"{what}: expected at least one image; got shape {tuple(images.shape)}. Check your selection.")
    low, high = (float(v) for v in torch.aminmax(images.detach()))
    if not (low >= -1e-6 and high <= 1 + 1e-6):  # also False for NaN
        problem = "NaN" if low != low or high != high else f"values in [{low:.3g}, {high:.3g}]"
        raise ValueError(
            f"{what}: expected values in [0, 1]; got {problem}. Images here are not normalised: divide uint8 by 255, "
            "and leave mean and standard deviation to the model's first layer."
        )
    return images


@dataclass(frozen=True, eq=False)
class ImageSet:
    """images float32 (N, C, H, W) in [0, 1]; labels int64 (N,); classes, the K names; name, where they come from.

    `len(s)`; `s[i]`, `s[2:5]`, `s[mask]`, `s[indices]` are smaller ImageSets; `s.to(device)`.
    Raises ValueError for another shape, dtype or range, and for labels outside the classes.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    name: str = ""

    def __post_init__(self):
        images, labels = self.images, self.labels
        if isinstance(images, Tensor) and images.dtype == torch.uint8:
            images = images.float() / 255
        if isinstance(images, Tensor) and images.numel():  # an empty selection is a legal, if useless, set
            check_images(images)
        labels = torch.as_tensor(labels)
        if labels.shape != (len(images),) or labels.is_floating_point():
            raise ValueError(
                f"labels: expected {len(images)} integers, one per image; got {labels.dtype} {tuple(labels.shape)}."
            )
        classes = tuple(str(c) for c in self.classes)
        if len(labels) and not (0 <= int(labels.min()) and int(labels.max()) < len(classes)):
            raise ValueError(
                f"labels: expected 0 to {len(classes) - 1} for {len(classes)} classes; got {int(labels.min())} to "
                f"{int(labels.max())}. Number the classes from 0."
            )
        for key, value in (("images", images.float()), ("labels", labels.long()), ("classes", classes)):
            object.__setattr__(self, key, value)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, key) -> ImageSet:
        if isinstance(key, int):
            key = slice(key, key + 1) if key != -1 else slice(key, None)
        rows = {f.name: getattr(self, f.name)[key] for f in fields(self) if isinstance(getattr(self, f.name), Tensor)}
        return replace(self, **rows)

    def to(self, device) -> ImageSet:
        rows = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: v.to(device) for k, v in rows.items() if isinstance(v, Tensor)})

    def __repr__(self) -> str:
        shape = "x".join(str(n) for n in self.images.shape[1:])
        what = f"{len(self):,} images {shape}, {len(self.classes)} classes"
        return f"{type(self).__name__}({self.name or 'unnamed'}: {what})"

    @cached_property
    def fingerprint(self) -> str:
        """A hash of every pixel, label and class name: two sets with the same fingerprint are the same set."""
        digest = hashlib.sha256(repr((tuple(self.images.shape), self.classes)).encode())
        digest.update(self.images.cpu().contiguous().numpy().data)
        digest.update(self.labels.cpu().contiguous().numpy().data)
        return digest.hexdigest()[:16]


@dataclass(frozen=True, eq=False)
class Splits:
    """train, test, clean: three disjoint ImageSets with the same classes. `clean` is the defender's."""

    train: ImageSet
    test: ImageSet
    clean: ImageSet
    name: str = ""

    @property
    def classes(self) -> tuple[str, ...]:
        return self.train.classes

    def __repr__(self) -> str:
        shape = "x".join(str(n) for n in self.train.images.shape[1:])
        return (
            f"Splits({self.name}: {len(self.train):,} train, {len(self.test):,} test, {len(self.clean):,} clean; "
            f"{shape}, {len(self.classes)} classes)"
        )
