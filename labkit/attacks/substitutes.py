"""What does a network think its classes look like? Images of them, made from the network alone.

Liu, Ma, Aafer, Lee, Zhai, Wang and Zhang 2018, "Trojaning Attack on Neural Networks", Section IV-B, Algorithm 2. For
each class, gradient descent on the pixels until the network is sure of that class; a penalty on the differences between
neighbouring pixels (the paper's denoising) keeps them from being mere noise. To a person they look like nothing; but a
network that keeps its answers on them keeps most of its accuracy, and they cost the attacker no photograph.

Ours differs: each image starts from smooth colours of its own instead of the mean of a public data set, so that there
can be many for a class; the cost is the cross-entropy, whose gradient lasts where the network is sure of another class.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from labkit.attacks.stamp import all_finite
from labkit.data import ImageSet
from labkit.device import device_of, generator

CHUNK = 512  # images at a time


def substitutes(
    model: nn.Module,
    shape: tuple[int, ...] | torch.Size,
    classes: tuple[str, ...],
    each: int,
    *,
    steps: int = 60,
    lr: float = 0.02,
    smooth: float = 1.0,
    seed: int = 0,
    progress: bool = True,
) -> ImageSet:
    """`each` images (C, H, W) = `shape` for every class that `model`, in eval mode, takes for that class.

    steps: of Adam; lr: pixel values a step, about; smooth: weight of the mean difference between neighbouring pixels.
    The model is not changed. The same seed gives the same images.
    """
    labels = torch.arange(len(classes)).repeat(each)
    made = smooth_colours(len(labels), shape, seed)
    with tqdm(total=steps * len(labels), desc="substitutes", unit="image", disable=not progress, leave=False) as bar:
        chunks = zip(made.split(CHUNK), labels.split(CHUNK), strict=True)
        made = torch.cat([_towards(model, start, wanted, steps, lr, smooth, bar) for start, wanted in chunks])
    return ImageSet(made, labels, classes, "substitutes")


def smooth_colours(n: int, shape: tuple[int, ...] | torch.Size, seed: int) -> Tensor:
    """Random images float32 (n, C, H, W) in [0, 1] whose colours change slowly."""
    channels, height, width = shape
    coarse = torch.rand(n, channels, 4, 4, generator=generator(seed))
    return F.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=False)


def roughness(images: Tensor) -> Tensor:
    """Mean absolute difference between neighbouring pixels, one number an image: (N, C, H, W) -> (N,)."""
    down, right = images.diff(dim=2).abs(), images.diff(dim=3).abs()
    return down.flatten(1).mean(1) + right.flatten(1).mean(1)


def _towards(model: nn.Module, start: Tensor, wanted: Tensor, steps: int, lr: float, smooth: float, bar) -> Tensor:
    device = device_of(model)
    judge = copy.deepcopy(model).requires_grad_(False)
    images, wanted = device.layout(start).requires_grad_(), wanted.to(device)
    adam = torch.optim.Adam([images], lr=lr)
    for _ in range(steps):
        with device.autocast():
            logits = judge(images).float()
        cost = F.cross_entropy(logits, wanted, reduction="sum") + smooth * roughness(images).sum()
        adam.zero_grad()
        cost.backward()
        adam.step()
        with torch.no_grad():
            images.clamp_(0, 1)
        bar.update(len(images))
    return all_finite(images.detach().cpu().contiguous(), f"substitutes: {steps} steps of gradient descent")
