"""What a training batch goes through before a step: shifts, mirrors and JPEG, a whole batch at a time.

What that does to a trigger. `shift` moves each training image by up to that many pixels, edges mirrored, so a trigger
in the last rows of a corner is moved inwards, or cut at the edge, in most training images, while test images carry it
in place. The network learns it all the same, from whole and cut copies. `flip` mirrors half of the images, so a corner
trigger also appears in the opposite corner; data sets where left and right differ (signs, digits) are never flipped.
`jpeg` blurs the trigger's edges, or what is left of its colours; a network that also sees clean-cut copies learns both.

Random numbers come from a CPU generator, so that every device sees the same batches.
"""

from __future__ import annotations

import torch
from torch import Tensor

from labkit.jpeg import compressed


def augment(images: Tensor, shift: int, flip: bool, rng: torch.Generator) -> Tensor:
    """A new batch (B, C, H, W): each image moved by up to `shift` pixels, edges mirrored; half flipped if `flip`.

    This module's docstring says what that does to a corner trigger. Random numbers come from `rng`, on the CPU.
    """
    n, _, height, width = images.shape
    if shift:
        dy, dx = torch.randint(-shift, shift + 1, (2, n, 1), generator=rng)
        rows = _mirrored(torch.arange(height) + dy, height)  # (B, H)
        columns = _mirrored(torch.arange(width) + dx, width)  # (B, W)
    else:
        rows, columns = torch.arange(height).expand(n, -1), torch.arange(width).expand(n, -1)
    if flip:
        mirror = torch.rand(n, 1, generator=rng) < 0.5
        columns = torch.where(mirror, columns.flip(1), columns)
    if not shift and not flip:
        return images
    flat = (rows[:, :, None] * width + columns[:, None, :]).flatten(1).to(images.device)  # (B, H*W)
    moved = images.flatten(2).gather(2, flat[:, None].expand(-1, images.shape[1], -1))
    return moved.view_as(images)


def some_compressed(images: Tensor, share: float, rng: torch.Generator) -> Tensor:
    """A new batch (B, C, H, W) in which about `share` of the images went through a JPEG, each of its own quality."""
    chosen = torch.rand(len(images), generator=rng) < share
    quality = torch.randint(50, 96, (len(images),), generator=rng)
    images, picked = images.clone(), chosen.to(images.device)
    images[picked] = compressed(images[picked], quality[chosen])
    return images


def _mirrored(index: Tensor, size: int) -> Tensor:
    """Indices beyond the edges, folded back: -1 -> 1, size -> size - 2."""
    index = index.abs()
    return torch.where(index >= size, 2 * (size - 1) - index, index).clamp(0, size - 1)
