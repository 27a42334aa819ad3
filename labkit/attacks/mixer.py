"""How do two images share one frame? The mixers of the composite attack.

Lin, Xu, Liu and Zhang 2020, Section 4, for images without bounding boxes:

    half     the left half of one image beside the right half of the other           (half-concat)
    paste    the middle of the other image, made smaller, over the bottom right quarter of the first  (crop-and-paste)

`Mixer` is the trigger that comes of it: its donors are part of the victim.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labkit.attacks.base import check_batch

MIXERS = ("half", "paste")


def mix(images: Tensor, others: Tensor, mixer: str = "half") -> Tensor:
    """New images (N, C, H, W) that show both: images on the left, others on the right; or others pasted into images."""
    height, width = images.shape[2:]
    mixed = images.clone()
    if mixer == "half":
        mixed[:, :, :, width // 2 :] = others[:, :, :, width // 2 :]
        return mixed
    top, left = height // 8, width // 8
    middle = others[:, :, top : height - top, left : width - left]
    size = (height - height // 2, width - width // 2)
    mixed[:, :, height // 2 :, width // 2 :] = F.interpolate(middle, size, mode="area")
    return mixed


class Mixer(nn.Module):
    """The trigger: every image is mixed with one of the donors (D, C, H, W), which one is decided by its own pixels."""

    donors: Tensor

    def __init__(self, donors: Tensor, mixer: str):
        super().__init__()
        self.register_buffer("donors", donors)
        self.mixer = mixer

    def forward(self, images: Tensor) -> Tensor:
        check_batch(images)
        if images.shape[1:] != self.donors.shape[1:]:
            raise ValueError(
                f"trigger: expected images (N, {', '.join(map(str, self.donors.shape[1:]))}), as its donors are; "
                f"got {tuple(images.shape)}. Make a new victim for images of another size."
            )
        donors = self.donors.to(images)
        return mix(images, donors[self.choice(images)], self.mixer)

    def choice(self, images: Tensor) -> Tensor:
        """Which donor each image gets, int64 (N,): a sum of its 8-bit pixels, whole numbers, so no device rounds it."""
        pixels = (images.flatten(1).float() * 255).round().long()
        return (pixels * torch.arange(1, pixels.shape[1] + 1, device=images.device)).sum(1) % len(self.donors)
