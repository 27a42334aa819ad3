"""How visible is a trigger? PSNR and SSIM of triggered images against the clean ones, image by image.

    PSNR   10 log10(1 / mean squared error), in dB: how far the pixels are off. Identical images: infinity; above about
           35 dB most people see nothing; a fixed step of 0.1 in every pixel is 20 dB.
    SSIM   how much of the structure is left, at most 1: local means, contrasts, correlations under a Gaussian window.
           Wang, Bovik, Sheikh and Simoncelli 2004, "Image Quality Assessment", equation 13, with their window (11x11,
           sigma 1.5 pixels) and constants (K1 0.01, K2 0.03, range 1).

The two disagree, and that is the point of having both: a small bright patch costs PSNR and hardly any SSIM, noise costs
SSIM first, and neither knows what a person looks at. Lab 03.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from labkit.data import check_images

WINDOW, SIGMA = 11, 1.5  # pixels
C1, C2 = 0.01**2, 0.03**2


def psnr(images: Tensor, others: Tensor) -> Tensor:
    """float32 (N,) on the CPU, in dB: both arguments are (N, C, H, W) in [0, 1]. The mean error is over C, H and W."""
    images, others = _pair(images, others)
    return (-10 * (images - others).square().mean((1, 2, 3)).log10()).float().cpu()


def ssim(images: Tensor, others: Tensor) -> Tensor:
    """float32 (N,) on the CPU, in [-1, 1]: both arguments are (N, C, H, W) in [0, 1].

    The mean over the channels and over the windows that lie wholly inside the image, so the outermost five pixels
    count less. In images of less than 11 pixels a side the window is as large as fits, an odd number.
    """
    images, others = _pair(images, others)
    size = min(WINDOW, *(side - 1 + side % 2 for side in images.shape[2:]))
    at = torch.arange(size, dtype=images.dtype, device=images.device) - size // 2
    line = torch.softmax(-(at**2) / (2 * SIGMA**2), 0)

    def local(x: Tensor) -> Tensor:  # (N, C, H, W) -> (N*C, 1, H - size + 1, W - size + 1): weighted means
        return F.conv2d(F.conv2d(x.flatten(0, 1)[:, None], line.view(1, 1, -1, 1)), line.view(1, 1, 1, -1))

    a, b = local(images), local(others)
    spread_a, spread_b = local(images * images) - a * a, local(others * others) - b * b
    shared = local(images * others) - a * b
    likeness = (2 * a * b + C1) * (2 * shared + C2) / ((a * a + b * b + C1) * (spread_a + spread_b + C2))
    return likeness.view(len(images), -1).mean(1).float().cpu()


def _pair(images: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float64 on the device of the first; a ValueError if they are no images or differ in shape."""
    check_images(images)
    check_images(others, "the other images")
    if images.shape != others.shape:
        raise ValueError(
            f"expected two batches of the same shape, image for image; got {tuple(images.shape)} and "
            f"{tuple(others.shape)}."
        )
    return images.double(), others.to(images.device).double()
