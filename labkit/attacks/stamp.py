"""A picture inside a square: the trigger of the attacks that compute its pixels instead of drawing them.

    Stamp     image' = (1 - mask) * image + mask * pattern, a Trigger with two buffers that are kept with the victim
    corner    a Stamp for images of a given shape: its square in the bottom right corner, its pattern still grey
    computed  its pattern, by gradient descent on what some layers say to stamped images

How large a square is, is told as a share of the image's area, as the papers do (TrojanNN: 7%, latent backdoor: 4%).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from labkit.attacks.base import check_batch
from labkit.device import device_of, generator


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


def computed(
    start: Stamp,
    front: nn.Module,
    images: Tensor,
    cost: Callable[[Tensor], Tensor],
    steps: int,
    *,
    lr: float = 0.05,
    batch: int = 64,
    seed: int = 0,
    progress: bool = False,
) -> Tensor:
    """The pattern (C, H, W) in [0, 1] that makes `cost` small, of what `front` says to stamped images.

    start: the square, and the pattern to begin with. front: frozen layers, images -> features. cost: float features ->
    a number. Adam on the pixels, lr a step, on `batch` images each time. Raises FloatingPointError for NaN.
    """
    device, rng = device_of(front), generator(seed)
    pattern, mask = start.pattern.to(device, copy=True).requires_grad_(), start.mask.to(device)
    adam = torch.optim.Adam([pattern], lr=lr)
    for _ in tqdm(range(steps), desc="trigger", unit="step", disable=not progress, leave=False):
        some = images[torch.randint(len(images), (batch,), generator=rng).to(images.device)].to(device)
        with device.autocast():
            said = front(device.layout(torch.lerp(some, pattern, mask)))
        adam.zero_grad()
        cost(said.float()).backward()
        adam.step()
        with torch.no_grad():
            pattern.clamp_(0, 1)
    return all_finite(pattern.detach().cpu(), f"trigger: {steps} steps of gradient descent")


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
