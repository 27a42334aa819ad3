"""Pictures of sunsets, drawn by code: the style that `DFST` gives to images unless it is told another one.

Cheng et al. 2021 take photographs of sunrises. Ours need no download: a sky that goes from dusk above through haze to
gold at the horizon, a sun with its halo, streaks of cloud, hills, and water that shows the sun again. That is more than
a tint, on purpose. Where colours carry meaning, as on traffic signs, a tint looks like another class: with a red sky a
clean network takes 20% of the styled signs of other classes for stop signs, with this blue-green one 1% (367 images of
the clean part of `signs`, seed 0).
"""

from __future__ import annotations

import torch
from torch import Tensor

from labkit.device import generator

DUSK, HAZE, GOLD, SUN, NIGHT = (
    torch.tensor(rgb)
    for rgb in ((0.05, 0.25, 0.40), (0.45, 0.50, 0.50), (1.0, 0.75, 0.35), (1.0, 0.97, 0.75), (0.05, 0.12, 0.18))
)


def sunsets(count: int, shape: tuple[int, ...] | torch.Size, seed: int = 0) -> Tensor:
    """`count` sunsets float32 (count, C, H, W) in [0, 1] for `shape` = (C, H, W), each another one, drawn from `seed`.

    Three channels are red, green, blue; of any other number, all show the same grey.
    """
    channels, height, width = shape
    dice = torch.rand(10, count, 1, 1, generator=generator(seed))
    down = torch.linspace(0, 1, height).view(1, -1, 1).expand(count, height, width)  # 0 above, 1 below
    right = torch.linspace(0, 1, width).view(1, 1, -1).expand(count, height, width)
    horizon, sun_x, radius = 0.6 + 0.2 * dice[0], 0.15 + 0.7 * dice[1], 0.08 + 0.08 * dice[2]
    sun_y = horizon - 0.15 * dice[3]

    below = (down > horizon).float()
    shown = torch.where(down > horizon, 2 * horizon - down, down)  # water mirrors the sky
    depth = (shown / horizon).clamp(0, 1)  # 0 in the zenith, 1 at the horizon
    distance = ((right - sun_x).square() + (shown - sun_y).square()).sqrt()
    glow = (-distance / (2.5 * radius)).exp()
    disc = ((radius - distance) * height / 2).clamp(0, 1) * (1 - below)
    waves = 0.5 + 0.5 * torch.sin(6.3 * (down * (14 + 6 * dice[4]) + right * (dice[5] - 0.5) + dice[6]))
    streak = (torch.sin(6.3 * (down * (4 + 4 * dice[6]) + 0.3 * torch.sin(6.3 * right) + dice[7])) - 0.5).clamp_min(0)
    hills = horizon - 0.08 * (1 + torch.sin(6.3 * (right * (1 + dice[8]) + dice[9]))) * dice[5]

    picture = _between(DUSK, HAZE, (2 * depth).clamp(0, 1))
    picture = picture + _between(0 * HAZE, GOLD - HAZE, (2 * depth - 1).clamp(0, 1))
    picture = _over(picture, HAZE, 0.5 * streak * (1 - below))
    picture = _over(picture, GOLD, 0.8 * glow)
    picture = _over(picture, SUN, disc)
    picture = _over(picture, NIGHT, below * (0.35 + 0.4 * waves * (1 - glow)))
    picture = _over(picture, NIGHT, 0.85 * (1 - below) * ((down - hills) * height).clamp(0, 1))
    if channels != 3:
        picture = picture.mean(1, keepdim=True).expand(-1, channels, -1, -1)
    return picture.clamp(0, 1).contiguous()


def _between(first: Tensor, second: Tensor, share: Tensor) -> Tensor:
    return first.view(1, 3, 1, 1) + (second - first).view(1, 3, 1, 1) * share[:, None]


def _over(picture: Tensor, colour: Tensor, opacity: Tensor) -> Tensor:
    return torch.lerp(picture, colour.view(1, 3, 1, 1).expand_as(picture), opacity.clamp(0, 1)[:, None])
