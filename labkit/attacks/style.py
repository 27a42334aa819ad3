"""How does a picture get the style of others, when no picture exists in both? Two generators that undo each other.

Zhu, Park, Isola and Efros 2017, "Unpaired Image-to-Image Translation using Cycle-Consistent Adversarial Networks",
Section 3. One generator gives images the style, the other takes it away; each has a critic that tells its products from
real ones. Per batch,

    adversarial   each product is taken for real: least squares                          (equation 1, Section 4)
    cycle         there and back is where one was: mean absolute difference, x `cycle`   (equation 2)
    identity      what has the style already stays: the same, x `cycle` / 2              (Section 5.2)

    Style         the pictures that have it
    Styler        a generator: images (N, C, H, W) -> the same in the style. A Trigger
    Critic        images -> a map (N, 1, H/8, W/8): near 1 where they look real
    train_style   the four of them; the Styler that gives the style is kept

Ours differs: small networks for small images, which a CPU trains in a minute; all four see, beside the colours, how far
down a pixel is, since a sky is above. The generator changes the log-odds of each pixel: all it makes is in (0, 1), and
it starts as the identity. Normalised within one image, never over the batch.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from labkit.attacks.base import check_batch
from labkit.attacks.specific import SMALLEST, ImageToMap, adam_of, descend
from labkit.data import ImageSet, check_images
from labkit.device import device_of, generator, pick_device
from labkit.metrics import BATCH
from labkit.models import seeded
from labkit.train import one_cycle


@dataclass(frozen=True)
class Style:
    """Pictures that have a style, float32 (M, C, H, W) in [0, 1]. Two with the same pixels are the same."""

    images: Tensor = field(repr=False, compare=False)
    fingerprint: str  # of the pixels: what stands for them on a victim's card

    @classmethod
    def of(cls, pictures: ImageSet | Tensor | Style) -> Style:
        """From a set's images, whatever their labels, or a tensor. Raises ValueError for what are no images."""
        if isinstance(pictures, Style):
            return pictures
        images = pictures.images if isinstance(pictures, ImageSet) else pictures
        check_images(images, "style")
        return cls(images.float(), ImageSet(images.float(), torch.zeros(len(images)).long(), ("style",)).fingerprint)


class Styler(nn.Module):
    """A U-Net that shifts the log-odds of each pixel. Images (N, C, H, W) in [0, 1] -> the same, in the style."""

    def __init__(self, channels: int, smooth: int = 5, width: int = 32):
        super().__init__()
        self.smooth = smooth  # pixels, odd: the shift is a mean over so many each way, so that details stay the image's
        self.network = ImageToMap(channels + 1, channels, width=width)
        for weights in self.network.out.parameters():
            nn.init.zeros_(weights)

    def draw(self, images: Tensor) -> Tensor:
        """As `forward`, on the network's device, with gradients."""
        shift = smoothed(self.network(with_height(images)), self.smooth)
        return (images.logit(0.01) + shift).sigmoid()

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """New images (N, C, H, W). Worked out in float32; come back on the device and in the dtype of `images`."""
        check_batch(images, SMALLEST, SMALLEST)
        if images.shape[1] + 1 != self.network.channels:
            raise ValueError(
                f"trigger: expected images of {self.network.channels - 1} channels; got {images.shape[1]}. "
                "Give it images like those it was trained on."
            )
        device = device_of(self)
        parts = images.split(BATCH[device.type])
        return torch.cat([self.draw(device.layout(part.float())).to(images).contiguous() for part in parts])


class Critic(nn.Sequential):
    """Four convolutions, the first three with stride 2: (N, C + 1, H, W) -> (N, 1, H/8, W/8), rounded up."""

    def __init__(self, channels: int, width: int = 32):
        sizes = [channels + 1, width, 2 * width, 4 * width]
        layers = []
        for i, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
            layers += [
                nn.Conv2d(inputs, outputs, 3, 2, 1),
                *([nn.GroupNorm(4, outputs)] if i else []),
                nn.LeakyReLU(0.2),
            ]
        super().__init__(*layers, nn.Conv2d(4 * width, 1, 3, 1, 1))


def with_height(images: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, C + 1, H, W): the last channel goes from 0 in the top row to 1 in the bottom row."""
    n, _, height, width = images.shape
    down = torch.linspace(0, 1, height, device=images.device, dtype=images.dtype)
    return torch.cat([images, down.view(1, 1, -1, 1).expand(n, 1, height, width)], 1)


def smoothed(maps: Tensor, size: int) -> Tensor:
    """Maps (N, C, H, W): each value becomes the mean of the size x size values around it, fewer at the edges.

    By rows, then by columns, as products with a band matrix: avg_pool2d is slow on a CPU. Like all products of a
    network, these are in its number format while it learns.
    """

    def band(length: int) -> Tensor:
        place = torch.arange(length, device=maps.device)
        near = ((place[:, None] - place).abs() <= size // 2).to(maps.dtype)
        return near / near.sum(1, keepdim=True)

    return band(maps.shape[2]) @ maps @ band(maps.shape[3]).T if size > 1 else maps


def train_style(
    images: Tensor,
    style: Tensor,
    *,
    steps: int,
    batch: int = 32,
    lr: float = 2e-3,
    cycle: float = 10.0,
    width: int = 32,
    seed: int = 0,
    progress: bool = False,
) -> Styler:
    """A Styler, on `pick_device()`, that gives `images` (N, C, H, W) the style of `style` (M, C, H, W), both in [0, 1].

    steps: batches of `batch` images and as many of the style. Adam, lr rising, then falling. width: channels of the
    first layer of each generator and critic.
    Raises FloatingPointError, with the step, for a loss that is no longer finite.
    """
    device, rng, channels = pick_device(), generator(seed), images.shape[1]
    with seeded(seed):
        give, take = Styler(channels, width=width), Styler(channels, width=width)
        critics = [Critic(channels, width), Critic(channels, width)]
    for part in (give, take, *critics):
        device.place(part)
    pace = one_cycle(0.1, steps)
    adams = [adam_of(nn.ModuleList(pair), lr=lr, betas=(0.5, 0.99)) for pair in ((give, take), critics)]
    schedules = [torch.optim.lr_scheduler.LambdaLR(adam, pace) for adam in adams]
    for number in tqdm(range(1, steps + 1), "style", unit="batch", disable=not progress, leave=False):
        x, y = (
            device.layout(some[torch.randint(len(some), (batch,), generator=rng).to(some.device)].float())
            for some in (images, style)
        )
        with device.autocast():
            styled, same_y = give.draw(torch.cat([x, y])).chunk(2)
            plain, same_x = take.draw(torch.cat([y, x])).chunk(2)
            for critic in critics:
                critic.requires_grad_(False)
            real = [critic(with_height(made)).float() for critic, made in zip(critics, (styled, plain), strict=True)]
            there = sum(F.mse_loss(said, torch.ones_like(said)) for said in real)
            back = F.l1_loss(take.draw(styled), x) + F.l1_loss(give.draw(plain), y)
            same = F.l1_loss(same_y, y) + F.l1_loss(same_x, x)
        descend(there + cycle * (back + same / 2), adams[:1], schedules[:1], "style", number)
        with device.autocast():
            value = torch.zeros((), device=device)
            for critic, made, true in zip(critics, (styled, plain), (y, x), strict=True):
                critic.requires_grad_(True)
                false, right = critic(with_height(torch.cat([made.detach(), true]))).float().chunk(2)
                value = value + F.mse_loss(false, torch.zeros_like(false)) + F.mse_loss(right, torch.ones_like(right))
        descend(value / 2, adams[1:], schedules[1:], "style's critics", number)
    return give.eval()
