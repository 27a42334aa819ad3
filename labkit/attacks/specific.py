"""A trigger of its own for every image, drawn by a network that sees the image: what sample-specific attacks share.

    ImageToMap        images (N, C, H, W) -> maps (N, outputs, H, W): a small U-Net
    SpecificTrigger   trigger(images): each with its own trigger; trigger(images, of=others): each with that of another

The second form is the cross-trigger test of specificity: the trigger of one image, put on another, should do nothing
there. A trigger that passes has no fixed pattern that a defender could find, copy or reverse.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labkit.attacks.base import check_batch
from labkit.device import device_of
from labkit.metrics import BATCH

SMALLEST = 8  # pixels a side: the U-Net halves the image twice


def check_width(width: int) -> int:
    """The width of an ImageToMap, if its channels can be normalised in four groups; else a ValueError."""
    if width < 4 or width % 4:
        raise ValueError(f"width: expected a multiple of 4, since channels are normalised in 4 groups; got {width!r}.")
    return width


class ImageToMap(nn.Module):
    """A U-Net of five convolutions that does its work at half and quarter size, where a CPU is fast.

    forward(images (N, C, H, W), extra (N, E) or None) -> (N, outputs, H, W), unbounded. `extra` is laid over the whole
    quarter-size map, one channel for each of its E numbers. Normalised by groups of channels within one image, never
    over the batch: what an image gets doesn't depend on its neighbours.
    """

    def __init__(self, channels: int, outputs: int, extra: int = 0, width: int = 32):
        super().__init__()
        self.channels = channels
        self.down = _layer(nn.Conv2d(channels, width, 4, 2, 1), width)
        self.deeper = _layer(nn.Conv2d(width, 2 * width, 4, 2, 1), 2 * width)
        self.middle = _layer(nn.Conv2d(2 * width + extra, 2 * width, 3, 1, 1), 2 * width)
        self.up = _layer(nn.Conv2d(2 * width, 4 * width, 3, 1, 1), 4 * width)
        self.out = nn.Conv2d(2 * width, 4 * outputs, 3, 1, 1)

    def forward(self, images: Tensor, extra: Tensor | None = None) -> Tensor:
        height, width = images.shape[2:]
        if images.shape[1] != self.channels:
            raise ValueError(
                f"trigger: expected images of {self.channels} channels; got {images.shape[1]}. "
                "Give it images like those it was trained on."
            )
        x = F.pad(4 * images - 2, (0, -width % 4, 0, -height % 4), mode="replicate")
        half = self.down(x)  # (N, w, H/2, W/2)
        low = self.deeper(half)  # (N, 2w, H/4, W/4)
        if extra is not None:
            low = torch.cat([low, extra[:, :, None, None].expand(-1, -1, *low.shape[2:]).to(low)], 1)
        up = F.pixel_shuffle(self.up(self.middle(low)), 2)  # (N, 4w, H/4, W/4) -> (N, w, H/2, W/2)
        maps = F.pixel_shuffle(self.out(torch.cat([half, up], 1)), 2)  # (N, 4*outputs, H/2, W/2) -> (N, outputs, H, W)
        return maps[:, :, :height, :width].float()


class SpecificTrigger(nn.Module):
    """A Trigger whose network draws it. A subclass says how in `draw`, which gradients can pass through."""

    def draw(self, images: Tensor, of: Tensor) -> Tensor:
        """New images (N, C, H, W): `images` with the triggers that belong to the images `of`."""
        raise NotImplementedError

    @torch.no_grad()
    def forward(self, images: Tensor, of: Tensor | None = None) -> Tensor:
        """New images (N, C, H, W): each with its own trigger or, given `of`, with that of the image in its row there.

        Worked out in float32 in batches, where the network is; comes back on the device and in the dtype of `images`.
        """
        check_batch(images, SMALLEST, SMALLEST)
        of = images if of is None else check_batch(of, SMALLEST, SMALLEST)
        if of.shape != images.shape:
            raise ValueError(
                f"trigger: expected one other image for each, {tuple(images.shape)}; got {tuple(of.shape)}. "
                "For another of the same batch: of=images.roll(1, 0)."
            )
        device = device_of(self)
        out = []
        for mine, other in zip(images.split(BATCH[device.type]), of.split(BATCH[device.type]), strict=True):
            drawn = self.draw(device.layout(mine.float()), device.layout(other.float()))
            out.append(drawn.clamp(0, 1).to(images).contiguous())
        return torch.cat(out)


def batches(count: int, size: int, epochs: int, rng: torch.Generator) -> list[Tensor]:
    """Indices of every batch of `epochs` passes over `count` images, each pass in an order of its own."""
    steps = max(1, round(count / size))
    return [batch for _ in range(epochs) for batch in torch.randperm(count, generator=rng).tensor_split(steps)]


def adam_of(network: nn.Module, **options) -> torch.optim.Adam:
    """Adam on the network's weights, in one pass over all of them."""
    return torch.optim.Adam(network.parameters(), fused=device_of(network).type in ("cpu", "cuda"), **options)


def descend(value: Tensor, optimizers: list, schedules: list, what: str, step: int) -> None:
    """One gradient step for each optimizer, and the schedules' next rate. Raises FloatingPointError, with the step."""
    if not bool(value.isfinite()):
        raise FloatingPointError(
            f"{what}: expected a finite loss; got {float(value.detach())} in step {step}. Lower the learning rate "
            "(the attack's lr, or the recipe's) or check the images."
        )
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    value.backward()
    for part in (*optimizers, *schedules):
        part.step()


def _layer(conv: nn.Conv2d, outputs: int) -> nn.Sequential:
    return nn.Sequential(conv, nn.GroupNorm(4, outputs), nn.ReLU())
