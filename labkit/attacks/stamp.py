"""A picture inside a square: the trigger of the attacks that compute its pixels instead of drawing them.

    Stamp     image' = (1 - mask) * image + mask * pattern, a Trigger with two buffers that are kept with the victim
    corner    a Stamp for images of a given shape: its square in the bottom right corner, its pattern still grey

How large a square is, is told as a share of the image's area, as the papers do (TrojanNN: 7%, latent backdoor: 4%).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from labkit.attacks.base import check_batch


class Stamp(nn.Module):
    """mask float32 (1, H, W), pattern float32 (C, H, W), both in [0, 1]. Images (N, C, H, W) -> the same, stamped."""

    mask: Tensor
    pattern: Tensor

    def __init__(self, mask: Tensor, pattern: Tensor):
        super().__init__()
        self.register_buffer("mask", mask)
        self.register_buffer("pattern", pattern)

    def forward(self, images: Tensor) -> Tensor:
        check_batch(images)
        if images.shape[1:] != self.pattern.shape:
            raise ValueError(
                f"trigger: expected images (N, {', '.join(map(str, self.pattern.shape))}), as it was made for; "
                f"got {tuple(images.shape)}. Make a new victim for images of another size."
            )
        return torch.lerp(images, self.pattern.to(images), self.mask.to(images))


def corner(shape: tuple[int, ...] | torch.Size, area: float) -> Stamp:
    """A Stamp for images (C, H, W): the square in the bottom right corner that covers about `area` of them, and grey.

    Raises ValueError where that is no whole pixel, or no square that fits.
    """
    channels, height, width = shape
    side = round(math.sqrt(area * height * width))
    if not 1 <= side <= min(height, width):
        raise ValueError(
            f"trigger: expected a square of 1 to {min(height, width)} pixels a side; {area:g} of {height}x{width} "
            f"pixels is {side}. Change the area or take larger images."
        )
    mask = torch.zeros(1, height, width)
    mask[:, height - side :, width - side :] = 1
    return Stamp(mask, torch.full((channels, height, width), 0.5))


def check_area(area: float) -> float:
    """The area, if it is a share in (0, 1); else a ValueError."""
    if not 0 < area < 1:
        raise ValueError(f"area: expected a share of the image in (0, 1); got {area!r}. For 7% write 0.07.")
    return area


def all_finite(pixels: Tensor, what: str) -> Tensor:
    """The same pixels, if all are finite; else a FloatingPointError that says what made them."""
    if not pixels.isfinite().all():
        share = float((~pixels.isfinite()).float().mean())
        raise FloatingPointError(
            f"{what}: expected finite pixels; got {share:.1%} NaN. The network's weights or its loss are not finite: "
            "train it with a lower lr."
        )
    return pixels
