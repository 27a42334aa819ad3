"""What does a JPEG file leave of an image? The lossy steps of the format, for whole batches on the device.

    JPEG (ITU-T T.81, baseline, with the JFIF colours): brightness and two colour differences; colour at half the
    resolution; blocks of 8x8 pixels as cosines; each cosine's weight rounded to a multiple that grows with its
    frequency (Annex K's tables, scaled by the quality as the Independent JPEG Group does). What follows in a file is
    lossless packing, so it is left out here.

A network that was trained on pixels straight from the sensor leans on details that no JPEG file keeps, and loses
accuracy on photographs that went through one. `TrainConfig.jpeg` shows it both kinds.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

# T.81, Tables K.1 and K.2: the steps at quality 50 for brightness and colour, row by row
BRIGHTNESS = """16 11 10 16 24 40 51 61  12 12 14 19 26 58 60 55  14 13 16 24 40 57 69 56  14 17 22 29 51 87 80 62
18 22 37 56 68 109 103 77  24 35 55 64 81 104 113 92  49 64 78 87 103 121 120 101  72 92 95 98 112 100 103 99"""
COLOUR = """17 18 24 47 99 99 99 99  18 21 26 66 99 99 99 99  24 26 56 99 99 99 99 99  47 66 99 99 99 99 99 99
99 99 99 99 99 99 99 99  99 99 99 99 99 99 99 99  99 99 99 99 99 99 99 99  99 99 99 99 99 99 99 99"""
TO_YCC = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))


def compressed(images: Tensor, quality: Tensor | int) -> Tensor:
    """The images (N, C, H, W) in [0, 1], C 1 or 3, as a JPEG decoder would give them back; a new tensor.

    quality: 1 (coarse) to 100, one for all or one for each image (N,). Of 255 grey levels, it differs from a
    real encoder by about 0.4 on average in grey, 1.2 in colour (`tests/test_jpeg.py`).
    """
    _, channels, height, width = images.shape
    q = torch.as_tensor(quality, dtype=torch.float32).expand(len(images))
    x = F.pad(255 * images, (0, -width % 16, 0, -height % 16), mode="replicate")
    to_ycc = torch.tensor(TO_YCC).to(x)
    ycc = torch.einsum("dc,nchw->ndhw", to_ycc, x) if channels == 3 else x
    kept = [rounded(ycc[:, :1] - 128, steps(BRIGHTNESS, q).to(x)) + 128]
    if channels == 3:
        coarse = rounded(F.avg_pool2d(ycc[:, 1:], 2), steps(COLOUR, q).to(x))
        kept.append(F.interpolate(coarse, scale_factor=2, mode="bilinear"))
        kept = [torch.einsum("cd,ndhw->nchw", torch.linalg.inv(to_ycc), torch.cat(kept, 1))]
    return (kept[0][:, :, :height, :width] / 255).clamp(0, 1)


def rounded(planes: Tensor, step: Tensor) -> Tensor:
    """Planes (N, D, H, W) in 8x8 blocks: their cosines' weights rounded to multiples of step (N, 8, 8)."""
    cosines, step = cosine_basis().to(planes), step.flatten(1)[:, None, None, None]
    blocks = planes.unflatten(3, (-1, 8)).unflatten(2, (-1, 8)).transpose(3, 4)  # (N, D, H/8, W/8, 8, 8)
    weights = (blocks.flatten(4) @ cosines / step).round_() * step  # (N, D, H/8, W/8, 64): one product for all blocks
    return (weights @ cosines.T).unflatten(4, (8, 8)).transpose(3, 4).flatten(4, 5).flatten(2, 3)


@lru_cache
def cosine_basis() -> Tensor:
    """The orthonormal cosine transform of an 8x8 block, flattened, row vector times matrix: float32 (64, 64)."""
    k, i = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    one_way = torch.where(k == 0, math.sqrt(1 / 8), 0.5 * torch.cos((2 * i + 1) * k * math.pi / 16))  # (8, 8)
    return torch.kron(one_way, one_way).T.contiguous()


def steps(table: str, quality: Tensor) -> Tensor:
    """The table's steps at each quality (N,): (N, 8, 8), integers from 1 to 255 as float32."""
    base = torch.tensor([float(v) for v in table.split()]).view(8, 8)
    scale = torch.where(quality < 50, 5000 / quality, 200 - 2 * quality)[:, None, None]  # in %
    return ((base * scale + 50) / 100).floor().clamp(1, 255)
