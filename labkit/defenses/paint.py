"""How is a found trigger put on? A mask says how much of each pixel is replaced, and a pattern by what.

Wang et al. 2019, "Neural Cleanse", equation 2: x' = (1 - m) * x + m * pattern. Lab 07.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def paint(images: Tensor, mask: Tensor, pattern: Tensor) -> Tensor:
    """(1 - mask) * images + mask * pattern, in one pass over the images. Shapes broadcast: images (..., C, H, W), mask
    (..., 1, H, W), pattern (..., C, H, W), all in [0, 1], as the result is."""
    return torch.lerp(images, laid_out(pattern, images), laid_out(mask, images))


def laid_out(x: Tensor, images: Tensor) -> Tensor:
    """x (..., 1 or C, H, W) with all C channels, in memory as the images are: one loop then runs over a whole image,
    where a mask without channels would break it up into loops over three numbers."""
    full = x.expand(*x.shape[:-3], *images.shape[-3:])
    if images.stride(-3) == 1:  # channels last
        return full.movedim(-3, -1).contiguous().movedim(-1, -3)
    return full.contiguous()


@dataclass(frozen=True, eq=False)
class ReversedTrigger:
    """A Trigger: images (N, C, H, W) -> the same images with the reversed pattern painted in. Pure; any device."""

    mask: Tensor  # (1, H, W)
    pattern: Tensor  # (C, H, W)

    def __call__(self, images: Tensor) -> Tensor:
        return paint(images, self.mask.to(images), self.pattern.to(images))
